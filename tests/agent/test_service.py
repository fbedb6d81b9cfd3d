"""The agent as a systemd service: what systemd says of the unit, and what the agent says to systemd."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_fleet import Agent, FakeFleet

from edgeops.agent import service
from edgeops.agent.notify import ServiceManager
from edgeops.agent.service import UNIT_NAME, ServiceOptions
from edgeops.cli.agent import command
from edgeops.contracts.errors import EdgeopsError

pytestmark = pytest.mark.timeout(600)
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd is not here; `make test-system` installs it"
)
STATE = Path("/var/lib/edgeops")
WATCHDOG_S = 0.6
MOST_EXPOSED = 3.0
OPTIONS = [
    ServiceOptions(STATE),
    ServiceOptions(
        Path("/mnt/data disk/edgeops"), user="line-3", arguments=("--name", 'a "b" $HOME %n; rm'), groups=("render",),
        devices=("/dev/dri/renderD128", "/dev/hailo0"),
    ),
]  # fmt: skip


def exposure(text: str, folder: Path) -> float:
    unit = folder / UNIT_NAME
    unit.write_text(text)
    said = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert found is not None, said
    return float(found[1])


@needs_systemd
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "devices"])
def test_systemd_takes_the_unit_and_finds_it_hardened(options: ServiceOptions, tmp_path: Path) -> None:
    unit = tmp_path / UNIT_NAME
    unit.write_text(service.unit_text(options))
    verified = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    assert exposure(unit.read_text(), tmp_path) <= MOST_EXPOSED


@needs_systemd
def test_a_unit_without_its_hardening_or_with_a_wrong_line_is_noticed(tmp_path: Path) -> None:
    text = service.unit_text(OPTIONS[0])
    soft = "\n".join(line for line in text.splitlines() if not re.match("Protect|Restrict|SystemCall|Capab", line))
    assert exposure(soft, tmp_path) > MOST_EXPOSED
    (tmp_path / UNIT_NAME).write_text(text.replace("Type=notify", "Type=notif"))
    said = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / UNIT_NAME)], capture_output=True, text=True, check=False
    )
    assert "notif" in said.stderr


def test_words_reach_the_agent_as_they_are() -> None:
    text = service.unit_text(OPTIONS[1])
    line = next(line for line in text.splitlines() if line.startswith("ExecStart="))
    assert '"a \\"b\\" $$HOME %%n; rm"' in line
    assert '--state "/mnt/data disk/edgeops"' in line
    assert "OOMPolicy=continue\n" in text, "else systemd ends the agent with a worker that took too much memory"
    assert 'ReadWritePaths="/mnt/data disk/edgeops"' in text
    assert "StateDirectory=edgeops\n" in service.unit_text(OPTIONS[0])


@pytest.mark.parametrize(
    "options",
    [
        ServiceOptions(Path("here")),
        ServiceOptions(STATE, user="root\nUser=root"),
        ServiceOptions(STATE, user="Ä"),
        ServiceOptions(STATE, groups=("a b",)),
        ServiceOptions(STATE, devices=("dri",)),
        ServiceOptions(STATE, arguments=("--name", "a\nExecStartPre=/bin/sh")),
        ServiceOptions(STATE, python="python3"),
    ],
)
def test_what_no_unit_may_hold_is_refused(options: ServiceOptions) -> None:
    with pytest.raises(EdgeopsError) as caught:
        service.unit_text(options)
    assert caught.value.code == "E-CONFIG"


@needs_systemd
def test_an_image_gets_the_service_enabled_and_loses_it_again(tmp_path: Path) -> None:
    base = ["install-service", "--state", str(STATE), "--root", str(tmp_path)]
    for _ in range(2):
        done = CliRunner().invoke(command, [*base, "--profile", "raspberry-pi-4", "--token-file", "/boot/token"])
        assert done.exit_code == 0, done.output
    wanted = tmp_path / "etc/systemd/system/multi-user.target.wants" / UNIT_NAME
    assert wanted.is_symlink()
    unit = (tmp_path / "etc/systemd/system" / UNIT_NAME).read_text()
    assert "--token-file /boot/token --profile raspberry-pi-4" in unit
    users = (tmp_path / "etc/sysusers.d/edgeops-agent.conf").read_text()
    assert users == 'u edgeops - "edgeops agent" /var/lib/edgeops\n'
    subprocess.run(["systemd-sysusers", "--root", str(tmp_path)], check=True, capture_output=True)
    assert "edgeops:" in (tmp_path / "etc/passwd").read_text()
    assert CliRunner().invoke(command, [*base, "--remove"]).exit_code == 0
    assert not wanted.is_symlink()
    again = CliRunner().invoke(command, [*base, "--remove"])
    assert isinstance(again.exception, EdgeopsError)
    assert again.exception.code == "E-CONFIG"


@pytest.fixture
def heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What systemd would hear."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.bind(str(tmp_path / "notify"))
    listening.settimeout(30)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    yield listening
    listening.close()


def drain(listening: socket.socket) -> None:
    with contextlib.suppress(TimeoutError):
        while True:
            listening.recv(500)


def test_agent_says_that_it_is_ready_alive_and_stopping(
    heard: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG_S * 1e6)))
    fleet = FakeFleet(tmp_path / "fleet")
    agent = Agent(fleet, tmp_path / "device").start()
    try:
        assert heard.recv(500).startswith(b"READY=1\nSTATUS=")
        assert agent.process is not None
        said = [(heard.recv(500), time.monotonic()) for _ in range(4)]
        assert {text for text, _ in said} == {b"WATCHDOG=1"}
        # Negative control: one that stands still is silent, and systemd would start it anew.
        agent.process.send_signal(signal.SIGSTOP)
        heard.settimeout(0.1)
        drain(heard)
        heard.settimeout(2 * WATCHDOG_S)
        with pytest.raises(TimeoutError):
            heard.recv(500)
        agent.process.send_signal(signal.SIGCONT)
        heard.settimeout(30)
        agent.process.terminate()
        while heard.recv(500) == b"WATCHDOG=1":
            pass
        assert agent.process.wait(30) == 0
    finally:
        agent.kill()
        fleet.stop()


def test_without_systemd_or_with_one_that_is_gone_nothing_happens(tmp_path: Path) -> None:
    for environment in ({}, {"NOTIFY_SOCKET": str(tmp_path / "nobody")}, {"NOTIFY_SOCKET": "@edgeops-nobody"}):
        manager = ServiceManager(environment)
        manager.ready("x")
        manager.alive()
        manager.stopping()
        assert manager.watchdog_s is None
    for usec, pid, seconds in (("3000000", "", 3.0), ("3000000", "1", None), ("x", "", None), ("0", "", None)):
        assert ServiceManager({"WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}).watchdog_s == seconds
    environment = {"NOTIFY_SOCKET": "@edgeops-nobody", "WATCHDOG_USEC": "3000000", "HOME": "/"}
    ServiceManager(environment)
    assert environment == {"HOME": "/"}, "workers must not inherit it"
    own = ServiceManager({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())})
    assert own.watchdog_s == 3.0


def test_the_printed_unit_is_the_installed_one() -> None:
    done = CliRunner().invoke(command, ["install-service", "--state", str(STATE), "--print"])
    assert done.output == service.unit_text(ServiceOptions(STATE, python=sys.executable))
