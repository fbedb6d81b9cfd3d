"""Boards with a power switch: whenever and however a run ends, the last word is off, and then the board is free."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
from command_runs import running
from rig_bundles import mcu_bundle
from served_fleet import wait_for

from edgeops.contracts.errors import INTERRUPTED, EdgeopsError
from edgeops.contracts.wire import encode
from edgeops.trust import keys
from hil.boards import mcu
from hil.boards.protocol import broken
from hil.boards.switch import Switch
from hil.checks.cuts import cut_during
from hil.checks.plan import Effort, Subject
from hil.interrupts import one_interrupt
from hil.reservation import Reservation
from hil.rig import PowerSwitch, Rig, SerialMcuSpec
from hil.run import Request, run_rig
from hil.standing.run import Job

# Says when it begins, and what it has done when it has.
SWITCH = """
import sys, time
from pathlib import Path
notes, word, takes_s = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
def note(text):
    with notes.open("a") as file:
        file.write(text + "\\n")
note("begins " + word)
time.sleep(takes_s)
note(word)
"""

# Stands for a rig's daemon: its run has the board under power, and is killed.
DAEMON = """
import ctypes, subprocess, sys, time
from pathlib import Path
from hil.standing import runner
{mutant}
RUN = (
    "import sys, time; from pathlib import Path; from hil.rig import read_rig; from hil.boards.switch import Switch;"
    "Switch('b', read_rig(Path(sys.argv[1])).boards[0].power).on(); time.sleep(600)"
)
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
run = subprocess.Popen([sys.executable, "-c", RUN, sys.argv[1]])
notes = Path(sys.argv[2])
while not notes.exists() or "on" not in notes.read_text().split():
    time.sleep(0.05)
run.kill()
run.wait()
runner.end_children()
"""
NO_GUARDIAN = (
    "from hil.boards import switch\n"
    "class Nobody:\n"
    "    __init__ = dismiss = abandon = lambda *_: None\n"
    "switch.Guardian = Nobody"
)


class Bench:
    """A line on which nobody answers, and a switch that notes what it is told."""

    def __init__(self, folder: Path, off_takes_s: float = 1.0) -> None:
        self.notes, self._ends = folder / "notes", os.openpty()
        self.port = os.ttyname(self._ends[1])
        self.key = folder / "key.pem"
        keys.save(keys.generate(), self.key)
        script = folder / "switch.py"
        script.write_text(SWITCH)
        words = [sys.executable, str(script), str(self.notes)]
        self.power = PowerSwitch(on=(*words, "on", "0"), off=(*words, "off", str(off_takes_s)))

    def keys(self, boot_within_s: float) -> str:
        lines = (
            'name = "mcu"', 'kind = "serial-mcu"', 'profile = "cortex-m4"', f'port = "{self.port}"',
            f'signing_key = "{self.key}"', f"boot_within_s = {boot_within_s}", "[boards.power]",
            f"on = {list(self.power.on)!r}", f"off = {list(self.power.off)!r}",
        )  # fmt: skip
        return "\n".join(lines)

    @property
    def said(self) -> list[str]:
        return self.notes.read_text().splitlines() if self.notes.exists() else []

    def wait(self, word: str) -> None:
        wait_for(lambda: word in self.said, f"the switch was not told: {word}")

    def check_off_then_free(self) -> None:
        with Reservation(f"serial {self.port}", wait_s=60):
            assert self.said[-1] == "off"
            before = self.said
            time.sleep(0.3)
            assert self.said == before

    def forget(self) -> None:
        """Take what was sent from the line: one that is full keeps its writers waiting."""
        termios.tcflush(self._ends[0], termios.TCIOFLUSH)

    def close(self) -> None:
        for end in self._ends:
            os.close(end)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


@pytest.fixture
def bundle(tmp_path: Path, arm_compiler: None) -> Path:
    return mcu_bundle(tmp_path / "b").directory


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.boards)])
def test_an_interrupt_while_the_power_is_taken_lets_it_be_taken(
    tmp_path: Path, bench: Bench, bundle: Path, number: signal.Signals
) -> None:
    """The board did not boot, so the run switches it off at its end; that is when the first interrupt comes."""
    with running(tmp_path, bench.keys(boot_within_s=0.5), bundle) as process:
        bench.wait("begins off")
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode != 0
    bench.check_off_then_free()


def test_a_run_that_is_killed_loses_the_board_its_power_before_another_run_gets_it(
    tmp_path: Path, bench: Bench, bundle: Path
) -> None:
    with running(tmp_path, bench.keys(boot_within_s=600), bundle) as process:
        bench.wait("on")
        process.kill()
        process.wait(30)
        with contextlib.suppress(EdgeopsError):
            # Busy while it is switched off; free only after that.
            Reservation(f"serial {bench.port}").release()
            assert bench.said[-1] == "off"
    bench.check_off_then_free()


@pytest.mark.boards
def test_a_daemons_run_that_is_told_twice_to_end_has_its_power_taken_all_the_same(
    tmp_path: Path, bench: Bench, bundle: Path
) -> None:
    """A command expires, so the daemon gives its run up; then somebody stops the daemon."""
    rig, job = tmp_path / "bench.toml", tmp_path / "job.json"
    rig.write_text(f'name = "bench"\ntitle = "b"\n[[boards]]\n{bench.keys(boot_within_s=600)}\n')
    asked = Job(
        rig=str(rig), version="1.0.0", bundles={"cortex-m4": str(bundle)}, effort=Effort(), handovers=(), wait_s=0.0,
        outcome=str(tmp_path / "outcome"), parent_pid=os.getpid(),
    )  # fmt: skip
    job.write_bytes(encode(asked))
    process = subprocess.Popen(
        [sys.executable, "-m", "hil.standing.run", str(job)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    bench.wait("on")
    process.send_signal(signal.SIGINT)
    bench.wait("begins off")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (INTERRUPTED, b"")
    assert bench.said == ["begins on", "on", "begins off", "off"]
    assert not (tmp_path / "outcome").exists()
    bench.check_off_then_free()


@pytest.mark.boards
def test_control_a_switch_that_is_interrupted_leaves_the_board_on(tmp_path: Path, bench: Bench, bundle: Path) -> None:
    mutant = f"import contextlib\nfrom hil.boards import mcu\nmcu.held = contextlib.nullcontext\n{NO_GUARDIAN}"
    with running(tmp_path, bench.keys(boot_within_s=0.5), bundle, mutant=mutant) as process:
        bench.wait("begins off")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert bench.said[-1] == "begins off"


@pytest.mark.boards
def test_control_without_the_guardian_a_killed_run_leaves_the_board_on(
    tmp_path: Path, bench: Bench, bundle: Path
) -> None:
    with running(tmp_path, bench.keys(boot_within_s=600), bundle, mutant=NO_GUARDIAN) as process:
        bench.wait("on")
        process.kill()
        process.wait(30)
    with Reservation(f"serial {bench.port}", wait_s=60):
        assert bench.said[-1] == "on"


def test_a_switch_that_fails_is_tried_again_and_the_board_is_nobodys_meanwhile(tmp_path: Path) -> None:
    """The guardian goes on where the run could not: its third try counts."""
    tries = tmp_path / "tries"
    fails = (
        f"import sys; f = open({str(tries)!r}, 'a+'); f.write('x'); f.flush(); f.seek(0); sys.exit(len(f.read()) < 3)"
    )
    switch = Switch("b", PowerSwitch(on=("true",), off=(sys.executable, "-c", fails)))
    resource = f"serial /dev/none-{os.getpid()}"
    with Reservation(resource):
        switch.on()
        with pytest.raises(EdgeopsError, match="power switch"):
            switch.close()
    with Reservation(resource, wait_s=60):
        assert tries.read_text() == "xxx"


@pytest.mark.parametrize(
    "mutant",
    ["", pytest.param("runner._sees_to_power = lambda _process: False", marks=pytest.mark.boards)],
    ids=["it does", "control: it does not"],
)
def test_a_daemon_that_ends_what_a_killed_run_left_lets_the_power_be_taken_first(
    tmp_path: Path, bench: Bench, mutant: str
) -> None:
    rig = tmp_path / "bench.toml"
    rig.write_text(f'name = "bench"\ntitle = "b"\n[[boards]]\n{bench.keys(boot_within_s=600)}\n')
    subprocess.run([sys.executable, "-c", DAEMON.format(mutant=mutant), str(rig), str(bench.notes)], check=True)
    # The mutant kills what was about to take the power, and does not wait for it.
    assert ("off" in bench.said) == (not mutant)


def test_a_power_cut_that_an_interrupt_called_off_never_comes() -> None:
    """It would come upon a board that is somebody else's by then."""
    cuts: list[str] = []

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_during(interrupted, lambda: cuts.append("cut"), 0.3)
    assert not [one for one in threading.enumerate() if one.name == "power cut"]
    time.sleep(0.5)
    assert cuts == []


def test_a_power_cut_that_has_begun_is_waited_for() -> None:
    began, cuts = threading.Event(), list[str]()

    def cut() -> None:
        began.set()
        time.sleep(0.3)
        cuts.append("cut")

    def interrupted() -> None:
        began.wait(30)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_during(interrupted, cut, 0.0)
    assert cuts == ["cut"]


def test_a_cut_that_could_not_be_made_is_none_that_was_survived() -> None:
    def stuck() -> None:
        raise broken("b", "power switch: status 1")

    def lost() -> None:
        raise EdgeopsError("E-HIL-CHECK", "as anything may, in a power cut")

    with pytest.raises(EdgeopsError, match="power switch: status 1"):
        cut_during(lost, stuck, 0.0)
    cut_during(lost, lambda: None, 0.0)


class At:
    """Interrupts this process, as a person does, before the n-th line of the rig's own code that is run."""

    def __init__(self, number: int) -> None:
        self.number, self.lines = number, 0

    def __call__(self, frame: FrameType, event: str, _: object) -> At | None:
        if event == "line" and frame.f_code.co_filename not in _NEVER:
            self.lines += 1
            if self.lines == self.number:
                signal.raise_signal(signal.SIGINT)
        return self if "/hil/" in frame.f_code.co_filename or event == "line" else None

    def __enter__(self) -> At:
        sys.settrace(self)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)


# Not a person, but the test itself.
_NEVER = {__file__}


def interrupted_at(number: int, rig: Rig, request: Request) -> At:
    at = At(number)
    with contextlib.suppress(KeyboardInterrupt), one_interrupt(lambda _line: None), at:
        run_rig(rig, request)
    return at


@pytest.mark.boards
@pytest.mark.timeout(1500)
def test_an_interrupt_before_any_line_of_a_run_leaves_the_board_off_and_free(
    tmp_path: Path, bundle: Path, proof: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every line, not random moments: from the reservation to the last one, with a switch that is on in between."""
    monkeypatch.setenv("EDGEOPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mcu, "_POLL_S", 0.02)
    bench = Bench(tmp_path)
    notes = shlex.quote(str(bench.notes))
    power = PowerSwitch(on=("sh", "-c", f"echo on >> {notes}"), off=("sh", "-c", f"echo off >> {notes}"))
    spec = SerialMcuSpec(
        name="mcu", profile="cortex-m4", port=bench.port, signing_key=str(bench.key), boot_within_s=0.01, power=power
    )
    rig, request = Rig(name="bench", title="b", boards=(spec,)), Request({"cortex-m4": Subject(bundle)})
    lines, tried, was_on = interrupted_at(0, rig, request).lines, 0, 0
    assert bench.said == ["on", "off"]
    for number in range(1, lines + 1):
        bench.notes.unlink(missing_ok=True)
        bench.forget()
        # A process each, as a command is: what it has is given back by the kernel at the latest.
        run = multiprocessing.get_context("fork").Process(target=interrupted_at, args=(number, rig, request))
        run.start()
        run.join(60)
        assert run.exitcode == 0
        with Reservation(f"serial {bench.port}", wait_s=60):
            assert not bench.said or bench.said[-1] == "off", f"line {number}"
        tried, was_on = tried + 1, was_on + ("on" in bench.said)
    bench.close()
    assert was_on > 10
    proof(f"{tried} lines, {was_on} of them with the power switched on: off and free after each")
