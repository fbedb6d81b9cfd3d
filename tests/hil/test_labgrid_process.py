"""Our end of labgrid, against processes that do not answer as labgrid's end does. None of labgrid is needed."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import psutil
import pytest

from edgeops.contracts.errors import EdgeopsError
from hil.boards import labgrid, labgrid_process
from hil.boards.labgrid import LabgridBoard
from hil.boards.labgrid_process import Bench, Connected, LabgridProcess, Nothing
from hil.doctor import examine
from hil.rig import LabgridSpec, Rig

OPENED = '{"protocol": 1, "power": "P", "places": [], "line": ""}'
# Answers each request by what the rules say for it, and notes it; `hang` never answers, `die` ends.
PEER = """
import json, os, subprocess, sys, time
rules, notes = json.loads(sys.argv[1]), sys.argv[2]
life = 1 + (open(notes).read().count("start") if os.path.exists(notes) else 0)
def note(text):
    with open(notes, "a") as file:
        file.write(f"{life} {text}\\n")
child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
note(f"start {child.pid}")
for line in sys.stdin:
    asked = json.loads(line)
    note(asked["do"])
    rule = rules.get(f"{life} {asked['do']}", rules.get(asked["do"], "{}"))
    if rule == "hang":
        time.sleep(600)
    if rule == "endless":
        print("x" * 2_000_000, flush=True)
    if rule == "die":
        print("the lab is on fire", file=sys.stderr)
        sys.exit(1)
    if rule.startswith("raw "):
        print(rule[4:], flush=True)
    else:
        print('{"id": %d, "ok": %s}' % (asked["id"], rule), flush=True)
note("end of input")
"""


class Peer:
    def __init__(self, folder: Path, rules: dict[str, str]) -> None:
        self.folder, self.notes = folder, folder / "notes"
        rules = {"open": OPENED, **rules}
        self.command = [sys.executable, "-c", PEER, json.dumps(rules), str(self.notes)]

    def open(self) -> LabgridProcess:
        return LabgridProcess(Bench("b", self.folder / "env.yaml", "main"), self.folder, command=self.command)

    @property
    def heard(self) -> list[str]:
        return [line for line in self.notes.read_text().splitlines() if " start " not in line]

    @property
    def children(self) -> list[int]:
        if not self.notes.exists():
            return []
        return [int(line.split()[2]) for line in self.notes.read_text().splitlines() if " start " in line]


def gone(pid: int) -> bool:
    deadline_s = time.monotonic() + 60
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("raw no json", "answers wrongly"),
        ('raw {"id": 7, "ok": {}}', "answers request 7, asked was 1"),
        ('{"protocol": 2, "power": "", "places": [], "line": ""}', "answers wrongly"),
        ('{"protocol": 1, "power": "", "places": [], "line": "/etc/passwd"}', "answers wrongly"),
        ('raw {"id": 1, "error": {"kind": "fun", "what": "x"}}', "answers wrongly"),
        ("endless", "more than"),
        ("die", "ended; its console ends: 'the lab is on fire'"),
        ("hang", "no answer in time"),
    ],
    ids=["no JSON", "another request's", "another protocol", "no terminal", "unknown error", "endless", "dead", "mute"],
)
def test_an_answer_that_is_none_breaks_the_board_and_leaves_nothing_running(
    tmp_path: Path, answer: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if answer == "hang":
        monkeypatch.setattr(labgrid_process, "_OPEN_WITHIN_S", 1.0)
    monkeypatch.setattr(labgrid_process, "_END_WITHIN_S", 0.1)
    peer = Peer(tmp_path, {"open": answer})
    with pytest.raises(EdgeopsError) as caught:
        peer.open()
    assert caught.value.code == "E-HIL-BOARD"
    assert said in caught.value.what
    assert all(gone(child) for child in peer.children)


@pytest.mark.parametrize(("kind", "code"), [("busy", "E-HIL-BUSY"), ("environment", "E-HIL-RIG")])
def test_a_refusal_keeps_its_kind(tmp_path: Path, kind: str, code: str) -> None:
    peer = Peer(tmp_path, {"open": f'raw {{"id": 1, "error": {{"kind": "{kind}", "what": "held by x"}}}}'})
    with pytest.raises(EdgeopsError, match="held by x") as caught:
        peer.open()
    assert caught.value.code == code


@pytest.mark.parametrize("trouble", ["hang", "die"])
def test_where_the_process_cannot_switch_off_another_one_does(
    tmp_path: Path, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one hangs or dies at `off`: it is killed with its emulator, and a second one switches off."""
    monkeypatch.setattr(labgrid_process, "_OFF_WITHIN_S", 1.0)
    replace = LabgridProcess._replace

    def patiently(self: LabgridProcess) -> None:
        replace(self)
        monkeypatch.setattr(labgrid_process, "_OFF_WITHIN_S", 60.0)

    monkeypatch.setattr(LabgridProcess, "_replace", patiently)
    peer = Peer(tmp_path, {"1 off": trouble})
    process = peer.open()
    process.switch_off()
    process.close()
    assert peer.heard == ["1 open", "1 off", "2 open", "2 off", "2 close", "2 end of input"]
    assert gone(peer.children[0])


def test_where_the_process_cannot_close_another_one_does(tmp_path: Path) -> None:
    peer = Peer(tmp_path, {"1 close": "die"})
    peer.open().close()
    assert peer.heard == ["1 open", "1 close", "2 open", "2 close", "2 end of input"]


def test_an_interrupt_in_mid_request_leaves_the_next_ones_their_own_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = Peer(tmp_path, {"connect": '{"control": "/c", "host": "h", "port": 22, "user": "u"}'})
    process = peer.open()

    def interrupted(*_: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(process, "_line", interrupted)
        with pytest.raises(KeyboardInterrupt):
            process.call("on", Nothing, 10)
    assert process.call("connect", Connected, 10).host == "h"
    process.close()
    assert peer.heard[-3:] == ["1 connect", "1 close", "1 end of input"]


def test_a_connection_that_is_not_this_runs_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Peer(tmp_path, {"connect": '{"control": "/tmp/strangers", "host": "h", "port": 22, "user": "u"}'})
    monkeypatch.setattr(labgrid_process, "worker_command", lambda: peer.command)
    monkeypatch.setattr(labgrid, "_OFF_FOR_S", 0.0)
    spec = LabgridSpec(name="b", profile="generic-x86-64", environment="env.yaml", boot_within_s=0.1)
    with LabgridBoard(spec, tmp_path) as board, pytest.raises(EdgeopsError, match="not this run's"):
        board.power_on()
    assert [line for line in peer.heard if line in ("1 on", "1 off", "1 close")] == ["1 on", "1 off", "1 close"]


def test_without_its_environment_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEOPS_CACHE", str(tmp_path / "empty"))
    spec = LabgridSpec(name="b", profile="generic-x86-64", environment="env.yaml")
    with pytest.raises(EdgeopsError) as caught:
        LabgridBoard(spec, tmp_path)
    assert (caught.value.code, caught.value.next_step) == ("E-DEPENDENCY", "edgeops toolchain install labgrid")
    (finding,) = examine(Rig(name="bench", title="b", boards=(spec,)))
    assert finding.missing == "labgrid's own environment is not installed"
    assert finding.next_step == "edgeops toolchain install labgrid"
