"""What QEMU says of a machine: a real one, and peers that are no QEMU."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeops.contracts.errors import EdgeopsError
from firmware_bridge import qmp
from firmware_bridge.emulated import QemuBoard
from firmware_bridge.link import SmpLink
from firmware_bridge.ports import SerialPort
from firmware_bridge.qmp import Qmp, read_state
from hil.boards.mcu import emulated_key

REGISTERS = """
CPU#0
R00=20000040 R01=02000000 R02=00000000 R03=40004000
R12=200fff70 R13=200fffe8 R14=00000155 R15=0000505c
XPSR=41000000 -Z-- T priv-thread
"""


def test_a_state_is_read_and_what_is_none_costs_nothing() -> None:
    assert read_state("running", REGISTERS) == "QEMU: running, pc 0x0000505c, lr 0x00000155, sp 0x200fffe8, priv-thread"
    fault = REGISTERS.replace("XPSR=41000000 -Z-- T priv-thread", "XPSR=41000003 -Z-- T handler")
    assert read_state("running", fault).endswith("in the handler of exception 3")
    assert read_state("paused", "R15=zz \x1b") == "QEMU: paused"


@pytest.mark.usefixtures("arm_compiler", "emulator")
def test_a_real_emulator_tells_where_its_processor_is_while_the_board_answers(tmp_path: Path) -> None:
    key = emulated_key().public_key().public_bytes_raw()
    with QemuBoard("mps2-an386", tmp_path / "flash", [key]) as board:
        with SmpLink(SerialPort(board.url)) as link:
            assert link.echo("x") == "x"
            first, second = board.describe(), board.describe()
            assert link.echo("y") == "y"
        for said in (first, second):
            assert said.startswith("QEMU: running, pc 0x")
        # Its power is cut, and comes back: the monitor goes and comes with it.
        board.power_off()
        assert board.describe() == ""
        board.power_on()
        assert board.describe().startswith("QEMU: running, pc 0x")


@contextlib.contextmanager
def peer(*says: bytes, closes: bool = True) -> Iterator[Qmp]:
    """A monitor that says just this, whatever it is asked."""
    ours, theirs = socket.socketpair()
    theirs.sendall(b"".join(says))
    if closes:
        theirs.shutdown(socket.SHUT_WR)
    monitor = Qmp(ours)
    try:
        yield monitor
    finally:
        monitor.close()
        theirs.close()


GREETING, DONE = b'{"QMP": {}}\n', b'{"return": {}}\n'


@pytest.mark.parametrize(
    ("says", "code"),
    [
        ((), "E-MCU-SILENT"),
        ((b"garbage\n",), "E-MCU-ANSWER"),
        ((b"[1]\n",), "E-MCU-ANSWER"),
        ((b'{"hello": 1}\n',), "E-MCU-ANSWER"),
        ((GREETING,), "E-MCU-SILENT"),
        ((GREETING, DONE, b'{"error": {"class": "GenericError", "desc": "no"}}\n'), "E-MCU-ANSWER"),
        ((GREETING, DONE, b'{"event": "RESET"}\n'), "E-MCU-SILENT"),
        ((GREETING, DONE, b"\xff\xfe\n"), "E-MCU-ANSWER"),
    ],
)
def test_a_peer_that_is_no_monitor_is_named(says: tuple[bytes, ...], code: str) -> None:
    with peer(*says) as monitor, pytest.raises(EdgeopsError) as caught:
        monitor.ask("query-status")
    assert caught.value.code == code


def test_events_between_are_passed_over_and_a_silent_peer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    event = json.dumps({"event": "RESET", "data": {}}).encode() + b"\n"
    with peer(GREETING, event, DONE, event, event, b'{"return": {"status": "running"}}\n') as monitor:
        assert monitor.ask("query-status") == {"status": "running"}
    monkeypatch.setattr(qmp, "_ANSWER_WITHIN_S", 0.3)
    with peer(GREETING, DONE, closes=False) as monitor, pytest.raises(EdgeopsError) as caught:
        monitor.ask("query-status")
    assert caught.value.code == "E-MCU-SILENT"


def test_a_monitor_that_speaks_without_an_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp, "_MAX_BYTES", 1 << 10)
    with peer(GREETING, DONE, b"x" * (1 << 17), closes=False) as monitor, pytest.raises(EdgeopsError, match="no end"):
        monitor.ask("query-status")
