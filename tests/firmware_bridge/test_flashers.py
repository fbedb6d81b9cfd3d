"""Every way of flashing: what it plans is what it does. esptool, pyocd and the UF2 drive are fakes."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from model_code import PUBLIC_KEY, adder, signed

from edgeops import plugins
from edgeops.cli.mcu import command
from edgeops.contracts.errors import EdgeopsError
from firmware_bridge import blobs
from firmware_bridge.emulated import HostBoard
from firmware_bridge.flashers import Flasher, Options
from firmware_bridge.flashers.uf2 import FAMILIES, IMAGE_FILE, INFO_FILE, blocks
from firmware_bridge.link import SmpLink
from firmware_bridge.ports import SerialPort

IMAGE = bytes(range(256)) * 5 + b"the end"
_FAKE = """
import json, os, sys
with open(os.environ["FAKE_LOG"], "a") as log:
    files = {word: open(word, "rb").read().hex() for word in sys.argv[1:] if os.path.exists(word)}
    log.write(json.dumps([sys.argv[1:], files]) + "\\n")
if os.environ.get("FAKE_SAYS"):
    print(os.environ["FAKE_SAYS"])
sys.exit(int(os.environ.get("FAKE_STATUS", "0")))
"""


def flasher(way: str, target: str, *, address: int = 0, chip: str = "") -> Flasher:
    """A way, through the door that people's plugins come by, too."""
    made: Flasher = plugins.load("edgeops.flashers", way)(target, Options(address, chip))
    return made


@pytest.fixture
def board(host_compiler: None, tmp_path: Path) -> Iterator[HostBoard]:
    with HostBoard(tmp_path / "flash.bin", [PUBLIC_KEY]) as board:
        yield board


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs that note how they were called."""
    for name in ("esptool", "pyocd"):
        (tmp_path / "fakes" / name).mkdir(parents=True)
        (tmp_path / "fakes" / name / "__init__.py").write_text("")
        (tmp_path / "fakes" / name / "__main__.py").write_text(_FAKE)
    monkeypatch.syspath_prepend(str(tmp_path / "fakes"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fakes"))
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    for name in ("esptool", "pyocd"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path / "log"


def called(log: Path) -> list[tuple[list[str], dict[str, str]]]:
    return [tuple(json.loads(line)) for line in log.read_text().splitlines()]


def test_a_blob_is_written_by_smp_and_runs_on_trial(board: HostBoard, tmp_path: Path):
    blob = signed(adder(tmp_path), "1.4.0")
    way = flasher("smp", board.url)
    assert way.probe().facts["runs"] == "nothing"
    assert "upload adder 1.4.0" in way.plan(blob)[0]
    with pytest.raises(EdgeopsError, match="no slot holds"):
        way.verify(blob)
    way.write(blob)
    way.verify(blob)
    way.reset()
    with SmpLink(SerialPort(board.url)) as link:
        info = link.model_info()
    assert (info.version, info.trial, info.hash) == ("1.4.0", True, blobs.identity(blob))


def test_an_unsigned_blob_is_refused_before_anything_is_sent(tmp_path: Path, host_compiler: None):
    with pytest.raises(EdgeopsError, match="no signature"):
        flasher("smp", "/no/such/port").plan(adder(tmp_path))


def test_esptool_gets_port_chip_address_and_image(tools: Path):
    way = flasher("esptool", "/dev/ttyUSB0", address=0x10000, chip="esp32s3")
    way.probe()
    way.write(IMAGE)
    way.verify(IMAGE)
    way.reset()
    base = ["--chip", "esp32s3", "--port", "/dev/ttyUSB0"]
    words = [[word for word in said if not word.endswith("image.bin")] for said, _ in called(tools)]
    assert words == [
        [*base, "chip-id"],
        [*base, "write-flash", "0x10000"],
        [*base, "verify-flash", "0x10000"],
        [*base, "--after", "hard-reset", "chip-id"],
    ]
    assert [list(files.values()) for _, files in called(tools)][1] == [IMAGE.hex()]
    assert way.plan(IMAGE) == ["esptool --chip esp32s3 --port /dev/ttyUSB0 write-flash 0x10000 IMAGE"]


def test_pyocd_gets_probe_target_address_and_image(tools: Path, monkeypatch: pytest.MonkeyPatch):
    way = flasher("pyocd", "ABC", address=0x8000000, chip="stm32h743")
    way.write(IMAGE)
    monkeypatch.setenv("FAKE_SAYS", "Mismatched byte at 0x08000000")
    with pytest.raises(EdgeopsError, match="another image"):
        way.verify(IMAGE)
    monkeypatch.setenv("FAKE_SAYS", f"All {len(IMAGE)} bytes match.")
    way.verify(IMAGE)
    (written, files), (compared, _), _ = called(tools)
    assert written[:-1] == [
        "load", "--no-wait", "--uid", "ABC", "--target", "stm32h743", "--format", "bin", "--base-address", "0x8000000",
    ]  # fmt: skip
    assert list(files.values()) == [IMAGE.hex()]
    assert compared[-1].startswith(f"compare 0x8000000 {len(IMAGE)} ")


def probes(*names: str) -> str:
    return json.dumps({"boards": [{"unique_id": name, "info": f"probe of {name}"} for name in names], "status": 0})


@pytest.mark.parametrize(
    ("said", "target", "code"),
    [
        (probes(), "", "E-MCU-PORT"), (probes("AAA1", "AAA2"), "", "E-MCU-PORT"), (probes("AAA1"), "BBB", "E-MCU-PORT"),
        ("no list", "", "E-MCU-ANSWER"), ('{"boards": [7]}', "", "E-MCU-ANSWER"),
    ],
    ids=["none", "which", "another", "no list", "no board"],
)  # fmt: skip
def test_a_probe_that_is_not_there_is_told(
    tools: Path, monkeypatch: pytest.MonkeyPatch, said: str, target: str, code: str
):
    monkeypatch.setenv("FAKE_SAYS", said)
    with pytest.raises(EdgeopsError) as caught:
        flasher("pyocd", target).probe()
    assert caught.value.code == code


def test_a_probe_is_found_by_a_part_of_its_id(tools: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FAKE_SAYS", probes("AAA1", "BBB2"))
    assert flasher("pyocd", "bbb").probe().board == "probe of BBB2"


@pytest.mark.parametrize("way", ["esptool", "pyocd"])
def test_a_tool_that_fails_says_why(tools: Path, way: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FAKE_STATUS", "2")
    monkeypatch.setenv("FAKE_SAYS", "no board found")
    with pytest.raises(EdgeopsError, match="no board found") as caught:
        flasher(way, "x").write(IMAGE)
    assert caught.value.code == "E-MCU-REFUSED"


@pytest.mark.parametrize("way", ["esptool", "pyocd"])
def test_a_tool_that_is_not_there_says_how_to_get_it(way: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(EdgeopsError) as caught:
        flasher(way, "x").write(IMAGE)
    assert (caught.value.code, caught.value.next_step) == ("E-DEPENDENCY", f"pip install 'edgeops[{way}]'")


def read_back(data: bytes) -> dict[int, bytes]:
    """Read UF2 as a boot loader does: address → payload."""
    found = {}
    assert len(data) % 512 == 0
    for number, offset in enumerate(range(0, len(data), 512)):
        block = data[offset : offset + 512]
        first, second, flags, address, size, own, count, family = struct.unpack_from("<8I", block)
        assert (first, second) == (0x0A324655, 0x9E5D5157)
        assert block[-4:] == bytes.fromhex("306fb10a")
        assert (flags, size, own, count) == (0x2000, 256, number, len(data) // 512)
        assert family == FAMILIES["RPI-RP2"]
        found[address] = block[32 : 32 + size]
    return found


def test_a_uf2_drive_gets_blocks_that_a_boot_loader_reads(tmp_path: Path):
    (tmp_path / INFO_FILE).write_text("UF2 Bootloader v3.0\nModel: Raspberry Pi RP2\nBoard-ID: RPI-RP2\n")
    way = flasher("uf2", str(tmp_path))
    assert way.probe().board == "RPI-RP2"
    assert "as 6 blocks" in way.plan(IMAGE)[0]
    way.write(IMAGE)
    found = read_back((tmp_path / IMAGE_FILE).read_bytes())
    assert sorted(found) == [0x10000000 + 256 * number for number in range(6)]
    assert b"".join(found[place] for place in sorted(found)) == IMAGE.ljust(1536, b"\0")
    with pytest.raises(EdgeopsError, match="did not take the image"):
        way.verify(IMAGE)
    (tmp_path / INFO_FILE).unlink()
    way.verify(IMAGE)


@pytest.mark.parametrize(
    ("info", "code"),
    [(None, "E-MCU-PORT"), ("nothing of a board\n", "E-MCU-ANSWER"), ("Board-ID: SAMD51-X\n", "E-MCU-REFUSED")],
)
def test_what_is_no_known_uf2_drive_is_left_alone(tmp_path: Path, info: str | None, code: str):
    if info is not None:
        (tmp_path / INFO_FILE).write_text(info)
    with pytest.raises(EdgeopsError) as caught:
        flasher("uf2", str(tmp_path)).write(IMAGE)
    assert caught.value.code == code
    assert not (tmp_path / IMAGE_FILE).exists()


@pytest.mark.parametrize(("image", "address"), [(b"", 0), (b"x", 3)])
def test_what_is_no_image_makes_no_blocks(image: bytes, address: int):
    with pytest.raises(EdgeopsError) as caught:
        list(blocks(image, address, 1))
    assert caught.value.code == "E-MCU-BLOB"


_ACME = """
import json
from pathlib import Path
from firmware_bridge.flashers import Found

class Acme:
    def __init__(self, target, options):
        self.log = Path(target)
        self.said = [options.address, options.chip]
    def probe(self):
        return Found("acme board", {})
    def plan(self, image):
        return [f"acme writes {len(image)} bytes"]
    def write(self, image, *, on_progress=lambda done, whole: None):
        on_progress(len(image), len(image))
        self.said.append(image.hex())
    def verify(self, image):
        self.said.append("verified")
    def reset(self):
        self.log.write_text(json.dumps([*self.said, "reset"]))
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Installs a package of somebody else's that has a way of flashing under a name."""

    def install(name: str) -> None:
        folder = tmp_path / f"site-{name}"
        (folder / "acme-1.dist-info").mkdir(parents=True)
        (folder / "acme_flash.py").write_text(_ACME)
        (folder / "acme-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1\n")
        entry = f"[edgeops.flashers]\n{name} = acme_flash:Acme\n"
        (folder / "acme-1.dist-info" / "entry_points.txt").write_text(entry)
        monkeypatch.syspath_prepend(str(folder))
        plugins.found.cache_clear()

    yield install
    plugins.found.cache_clear()


def test_a_way_of_somebody_elses_package_is_used_as_ours_are(package: Callable[[str], None], tmp_path: Path):
    package("acme")
    (tmp_path / "image.bin").write_bytes(IMAGE)
    words = ["flash", str(tmp_path / "board"), str(tmp_path / "image.bin"), "--by", "acme", "--address", "0x40"]
    said = CliRunner().invoke(command, [*words, "--plan"])
    assert said.output == f"acme writes {len(IMAGE)} bytes\n"
    assert not (tmp_path / "board").exists()
    said = CliRunner().invoke(command, [*words, "--chip", "x1"])
    assert said.exit_code == 0, said.output
    assert "found acme board" in said.output
    assert json.loads((tmp_path / "board").read_text()) == [0x40, "x1", IMAGE.hex(), "verified", "reset"]


def test_ways_that_are_none_or_claimed_twice_are_refused(package: Callable[[str], None]):
    with pytest.raises(EdgeopsError, match="found: esptool, pyocd, smp, uf2") as caught:
        flasher("acme", "x")
    assert caught.value.code == "E-PLUGIN"
    package("smp")
    with pytest.raises(EdgeopsError, match="'smp' is both") as caught:
        flasher("smp", "x")
    assert caught.value.code == "E-PLUGIN"


@pytest.mark.parametrize("address", ["-256", "0x100000000", "0x10001", "0xffffff00"])
def test_an_address_where_nothing_can_lie_is_refused_by_the_plan_already(tmp_path: Path, address: str):
    image = tmp_path / "image.bin"
    image.write_bytes(bytes(1000))
    words = ("flash", str(tmp_path), str(image), "--by", "uf2", "--plan", "--address", address)
    done = CliRunner().invoke(command, words)
    assert isinstance(done.exception, EdgeopsError)
    assert done.exception.code in ("E-CONFIG", "E-MCU-BLOB")


def test_a_plan_touches_nothing(tmp_path: Path):
    file = tmp_path / "image.bin"
    file.write_bytes(IMAGE)
    said = CliRunner().invoke(
        command, ["flash", "/dev/none", str(file), "--by", "esptool", "--address", "0x1000", "--plan"]
    )
    assert said.exit_code == 0
    assert "write-flash 0x1000 IMAGE" in said.output
