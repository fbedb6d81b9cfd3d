"""The firmware on emulated Cortex-M boards: the same claims as on the host, with a real processor's instructions."""

from __future__ import annotations

import contextlib
import random
import subprocess
import threading
import time
from pathlib import Path

import pytest
from model_code import CRASH, HANG, PUBLIC_KEY, adder, signed

from edgeops.contracts.errors import EdgeopsError
from firmware_bridge import blobs
from firmware_bridge.build import ARM, EMULATED_BOARDS, FIRMWARE_DIR, build
from firmware_bridge.emulated import QemuBoard
from firmware_bridge.link import ModelInfo, SmpLink
from firmware_bridge.ports import SerialPort

pytestmark = pytest.mark.usefixtures("arm_compiler", "emulator")

CPUS = {"mps2-an385": blobs.Cpu.CORTEX_M3, "mps2-an386": blobs.Cpu.CORTEX_M4, "mps2-an500": blobs.Cpu.CORTEX_M7}
ONE = "mps2-an386"
INPUT = bytes(range(16))
MACHINES = pytest.mark.parametrize(
    "machine", [pytest.param(name, marks=() if name == ONE else pytest.mark.full) for name in EMULATED_BOARDS]
)


def big(folder: Path, cpu: blobs.Cpu, add: int, version: str, size: int = 20_000) -> bytes:
    small = adder(folder, cpu, add=add)
    return signed(
        blobs.pack(blobs.read(small), small[blobs.HEADER_SIZE :] + random.Random(add).randbytes(size)), version
    )


def install(link: SmpLink, blob: bytes) -> None:
    link.upload(blob)
    link.test(blobs.identity(blob))
    link.reset(back_within_s=3)
    link.confirm(blobs.identity(blob))


def added(link: SmpLink) -> int:
    return link.infer(INPUT).output[0]


@MACHINES
def test_a_board_is_updated_and_keeps_its_model_without_power(machine: str, tmp_path: Path):
    cpu = CPUS[machine]
    board = QemuBoard(machine, tmp_path / "flash.bin", [PUBLIC_KEY])
    with board, SmpLink(SerialPort(board.url)) as link:
        assert link.system_info() == f"edgeops-mcu 1 {machine}"
        install(link, big(tmp_path, cpu, 1, "1.0.0"))
        install(link, big(tmp_path, cpu, 2, "2.0.0"))
        assert added(link) == 2
        board.power_off()
        board.power_on()
        info = link.model_info()
        assert (info.version, info.cpu, info.trial) == ("2.0.0", cpu, False)
        assert added(link) == 2


@MACHINES
@pytest.mark.parametrize("harm", [HANG, CRASH], ids=["hangs", "crashes"])
def test_a_model_that_harms_the_processor_costs_one_reset(machine: str, harm: str, tmp_path: Path):
    cpu = CPUS[machine]
    board = QemuBoard(machine, tmp_path / "flash.bin", [PUBLIC_KEY], ["EO_WATCHDOG_MS=1000"])
    with board, SmpLink(SerialPort(board.url), answer_within_s=1.5) as link:
        install(link, signed(adder(tmp_path, cpu, add=1)))
        bad = signed(adder(tmp_path, cpu, add=2, extra=harm), "2.0.0")
        link.upload(bad)
        link.test(blobs.identity(bad))
        link.reset()
        with pytest.raises(EdgeopsError):
            link.infer(INPUT)
        assert (link.model_info().version, link.model_info().outcome) == ("1.0.0", 2)
        assert added(link) == 1


@MACHINES
def test_a_blob_for_another_processor_is_refused(machine: str, tmp_path: Path):
    with QemuBoard(machine, tmp_path / "flash.bin", [PUBLIC_KEY]) as board, SmpLink(SerialPort(board.url)) as link:
        for cpu in set(blobs.Cpu) - {CPUS[machine]}:
            blob = signed(adder(tmp_path, cpu))
            link.upload(blob)
            with pytest.raises(EdgeopsError, match="another processor"):
                link.test(blobs.identity(blob))


def test_an_inference_takes_the_same_instructions_every_time(tmp_path: Path):
    """With virtual time that counts instructions; figures in evidence rest on this."""
    ticks = set()
    for run in range(2):
        board = QemuBoard(ONE, tmp_path / f"flash{run}.bin", [PUBLIC_KEY], count_instructions=True)
        with board, SmpLink(SerialPort(board.url)) as link:
            install(link, signed(adder(tmp_path, CPUS[ONE], size=512)))
            ticks |= {link.infer(bytes(512)).ticks for _ in range(5)}
    # The clock has 40 instructions per tick, so an inference may end one tick later.
    assert max(ticks) - min(ticks) <= 1
    assert min(ticks) > 20


def test_the_protocol_server_is_small():
    """At most 8 KiB of code beside crypto: frames, CBOR, commands and the application's loop."""
    total = 0
    for name in ("frame", "cbor", "commands", "app"):
        flags = ["-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=soft", "-Os", "-c"]
        built = build(ARM, f"{name}.o", [FIRMWARE_DIR / "src" / f"{name}.c"], flags, folders=[FIRMWARE_DIR / "include"])
        said = subprocess.run(["arm-none-eabi-size", built], check=True, capture_output=True, text=True, timeout=30)
        total += int(said.stdout.splitlines()[1].split()[0])
    assert 1000 < total <= 8192


def power_cuts(tmp_path: Path, count: int) -> None:
    """Kill the board at random moments of updates, and ask it afterwards; its model is always one of the two."""
    random_moments = random.Random(17)
    cpu = CPUS[ONE]
    versions = {"1.0.0": 1, "2.0.0": 2}
    update = {version: big(tmp_path, cpu, add, version) for version, add in versions.items()}
    board = QemuBoard(ONE, tmp_path / "flash.bin", [PUBLIC_KEY])
    cuts = 0
    with board:
        with SmpLink(SerialPort(board.url)) as link:
            install(link, update["1.0.0"])
            started = time.monotonic()
            install(link, update["2.0.0"])
            update_s = time.monotonic() - started
        confirmed = "2.0.0"
        while cuts < count:
            wanted = "1.0.0" if confirmed == "2.0.0" else "2.0.0"
            cutter = threading.Timer(random_moments.uniform(0, 1.5 * update_s), board.power_off)
            with SmpLink(SerialPort(board.url), answer_within_s=0.5, erase_within_s=3) as link:
                cutter.start()
                # What the update ends with depends on the moment; what the device is afterwards may not.
                with contextlib.suppress(EdgeopsError):
                    install(link, update[wanted])
                    confirmed = wanted
                cutter.join()
            cuts += 1
            board.power_on()
            with SmpLink(SerialPort(board.url)) as link:
                info = when_up(link)
                if info.trial:
                    link.reset()
                    info = when_up(link)
                assert info.version in ({confirmed, wanted} if confirmed != wanted else {confirmed}), info
                assert added(link) == versions[str(info.version)]
            confirmed = str(info.version)


def when_up(link: SmpLink) -> ModelInfo:
    """What the board says once it answers: an emulator takes its time to start on a busy machine."""
    end_s = time.monotonic() + 60
    while True:
        try:
            return link.model_info()
        except EdgeopsError:
            if time.monotonic() > end_s:
                raise


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_many_power_cuts_at_random_moments_lose_no_model(tmp_path: Path):
    power_cuts(tmp_path, 60)
