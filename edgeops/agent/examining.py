"""What may be wrong with a device, looked for from its state directory, its clock, its disk and its network."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from edgeops.agent.config import read_config
from edgeops.agent.enrolment import CLOCK_FILE, Enrolment, read_enrolment
from edgeops.agent.freezing import read_freeze
from edgeops.agent.settings import Settings
from edgeops.agent.status import read_status, stale_s
from edgeops.agent.store import is_locked
from edgeops.contracts.errors import EdgeopsError
from edgeops.trust import certificates
from edgeops.trust.device import DeviceIdentity
from edgeops.trust.time import Clock

_REACH_WITHIN_S = 3.0
_RUNTIMES_WITHIN_S = 60.0
_CLOCK_BEHIND_S = 600.0
_DAY_S = 86400.0


class Finding(NamedTuple):
    """One thing that was looked at.

    Args:
        subject: What.
        good: Whether it is as it should be.
        found: What was found.
        next_step: What to do where it is not.
    """

    subject: str
    good: bool
    found: str
    next_step: str = ""


def examine(root: Path) -> list[Finding]:
    """Look at everything that keeps a device from serving or from being updated. Nothing is changed.

    Raises:
        EdgeopsError: E-CONFIG; there is no state directory.
    """
    if not (root / "lock").exists():
        raise EdgeopsError("E-CONFIG", f"{root} is no agent's state directory", "Name the one that the agent uses.")
    found = [_owner(root), _agent(root), _disk(root), _configuration(root), _frozen(root), _clock(root)]
    try:
        enrolment = read_enrolment(root / "identity")
    except EdgeopsError as error:
        found.append(Finding("enrolment", False, error.what, error.next_step))
        return found
    if enrolment is None:
        found.append(Finding("enrolment", False, "not enrolled", "edgeops agent run --token-file, or agent enroll."))
        return found
    found.append(Finding("enrolment", True, f"{enrolment.connection} in {enrolment.fleet}"))
    found += [_certificate(root), _metadata(root), *_network(enrolment), _runtimes(), *_components(root)]
    return found


def _owner(root: Path) -> Finding:
    status = root.stat()
    private = not status.st_mode & 0o077
    mine = status.st_uid == os.geteuid()
    said = f"user {status.st_uid}, mode {status.st_mode & 0o777:o}"
    return Finding("state directory", private and mine, said, "Run this as its user; chmod 700.")


def _agent(root: Path) -> Finding:
    return Finding(
        "agent", is_locked(root), "runs" if is_locked(root) else "is stopped", "Start it: edgeops agent run."
    )


def _disk(root: Path) -> Finding:
    free_mib, least = shutil.disk_usage(root).free / 2**20, 2 * Settings().reserve_mib
    return Finding("disk", free_mib > least, f"{free_mib:.0f} MiB free", f"Free at least {least} MiB.")


def _configuration(root: Path) -> Finding:
    try:
        read_config(root)
    except EdgeopsError as error:
        return Finding("agent.toml", False, error.what, error.next_step)
    return Finding("agent.toml", True, "readable, or the defaults")


def _frozen(root: Path) -> Finding:
    hold = read_freeze(root)
    return Finding("changes", hold is None, "allowed" if hold is None else hold.reason, "edgeops agent freeze --off")


def _clock(root: Path) -> Finding:
    floor_s = Clock(root / "trust" / CLOCK_FILE).now()
    behind_s = floor_s - time.time()
    said = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    good = behind_s < _CLOCK_BEHIND_S
    return Finding("clock", good, said if good else f"{said}, {behind_s / 3600:.0f} h behind what was seen", "Set it.")


def _certificate(root: Path) -> Finding:
    try:
        end_s = certificates.validity(DeviceIdentity.load(root / "identity").certificate_pem).not_after_s
    except EdgeopsError as error:
        return Finding("certificate", False, error.what, error.next_step)
    days = (end_s - time.time()) / _DAY_S
    said = f"holds for {days:.0f} days" if days > 0 else f"ran out {-days:.0f} days ago"
    return Finding("certificate", days > 0, said, "The agent renews it once it reaches the control plane.")


def _metadata(root: Path) -> Finding:
    since_s = stale_s(root)
    said = "fresh" if since_s is None else f"stale: nothing fresh for {since_s / 3600:.0f} h, so nothing changes"
    return Finding("metadata", since_s is None, said, "Look at clock, artifacts and control plane; serving goes on.")


def _network(enrolment: Enrolment) -> list[Finding]:
    places = [("broker", enrolment.broker.host, enrolment.broker.port)]
    for subject, url in (("artifacts", enrolment.artifacts_url), ("control plane", enrolment.server)):
        parts = urlsplit(url)
        places.append((subject, parts.hostname or "", parts.port or 443))
    return [_reachable(*place) for place in places]


def _reachable(subject: str, host: str, port: int) -> Finding:
    try:
        with socket.create_connection((host, port), timeout=_REACH_WITHIN_S):
            return Finding(subject, True, f"{host}:{port} is reached")
    except OSError as error:
        return Finding(subject, False, f"{host}:{port}: {error}", "Check route, name and firewall; serving goes on.")


def _runtimes() -> Finding:
    """Ask a process of its own, as the agent does: looking imports them."""
    command = [sys.executable, "-m", "edgeops.agent.worker", "capabilities"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_RUNTIMES_WITHIN_S, check=True)
        found = {str(name): str(version) for name, version in json.loads(done.stdout).items()}
    except (subprocess.SubprocessError, ValueError, OSError) as error:
        return Finding("runtimes", False, str(error), "Install one: pip install 'edgeops[onnxruntime]'.")
    said = ", ".join(f"{name} {version}" for name, version in sorted(found.items()))
    return Finding("runtimes", bool(found), said or "none", "Install one: pip install 'edgeops[onnxruntime]'.")


def _components(root: Path) -> list[Finding]:
    try:
        status = read_status(root)
    except EdgeopsError as error:
        return [Finding("models", False, error.what, error.next_step)]
    found = []
    for component in status["components"]:
        failure = component["failure"]
        serves = f"serves {component['active']}" if component["active"] else "serves nothing"
        said = f"{serves}, {component['state']}"
        if failure:
            said += f"; {failure['release']} {failure['code']}: {failure['what']}"
        good = bool(component["active"]) and not failure
        found.append(Finding(f"model {component['name']}", good, said, "edgeops agent logs"))
    return found
