"""The agent as a systemd service: an unprivileged user, a watchdog, and nothing of the system that it can change."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError

UNIT_NAME = "edgeops-agent.service"
_UNIT, _USERS = Path("etc/systemd/system") / UNIT_NAME, Path("etc/sysusers.d/edgeops-agent.conf")
_WANTED_BY = "multi-user.target"
_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
_BOOTED = Path("/run/systemd/system")
_COMMAND_WITHIN_S = 60.0
_HINT = "See systemd.unit(5) for what a unit file may hold."

_TEMPLATE = """\
# Written by `edgeops agent install-service`; put changes into a drop-in (systemctl edit {name}).
[Unit]
Description=edgeops agent
After=network.target
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=all
ExecStart={command}
User={user}
Group={user}
Restart=always
RestartSec=2
WatchdogSec=60
TimeoutStartSec=300
TimeoutStopSec=30
OOMScoreAdjust=-200
# The kernel ends a worker that takes too much, and the agent starts the next one: no reason to end the service.
OOMPolicy=continue
# The agent divides its control group: each worker has one of its own. So it must be able to write there.
Delegate=memory pids
MemoryMax=95%
TasksMax=1024
UMask=0077
# A core dump would hold the device's key.
LimitCORE=0
RuntimeDirectory=edgeops
RuntimeDirectoryMode=0755
Environment=PYTHONDONTWRITEBYTECODE=1
{storage}
CapabilityBoundingSet=
NoNewPrivileges=yes
LockPersonality=yes
{devices}
PrivateTmp=yes
ProtectSystem=strict
ProtectHome={home}
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RemoveIPC=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
# Runtimes set their own limits and affinity (@resources); those that compile code need memory that is written and run.
SystemCallFilter=@system-service
SystemCallFilter=~@privileged

[Install]
WantedBy={wanted_by}
"""


class ServiceOptions(NamedTuple):
    """What the service is like.

    Args:
        state: The agent's state directory on the device.
        user: Who runs it; made if there is none of this name.
        arguments: Further arguments of `edgeops agent run`.
        devices: Device nodes that runtimes need, such as /dev/dri/renderD128.
        groups: Further groups of the user, such as render.
        python: The interpreter on the device.
    """

    state: Path
    user: str = "edgeops"
    arguments: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    python: str = sys.executable


def unit_text(options: ServiceOptions) -> str:
    """Return the unit file.

    Raises:
        EdgeopsError: E-CONFIG; a path is not absolute, or a name is none that Linux takes.
    """
    for name in (options.user, *options.groups):
        if not _NAME.fullmatch(name):
            raise EdgeopsError("E-CONFIG", f"{name!r} is no name of a user or group")
    for path in (str(options.state), options.python, *options.devices):
        if not path.startswith("/"):
            raise EdgeopsError("E-CONFIG", f"{path} is not absolute", "A service has no directory of its own.")
    command = [options.python, "-m", "edgeops", "agent", "run", "--state", str(options.state), *options.arguments]
    devices = ["PrivateDevices=yes"]
    if options.devices:
        devices = ["DevicePolicy=closed", *(f"DeviceAllow={_quoted(device)} rw" for device in options.devices)]
    if options.groups:
        devices.append(f"SupplementaryGroups={' '.join(options.groups)}")
    return _TEMPLATE.format(
        name=UNIT_NAME,
        command=" ".join(_quoted(word) for word in command),
        user=options.user,
        storage=_storage(options.state),
        devices="\n".join(devices),
        home="read-only" if options.python.startswith(("/home/", "/root/")) else "yes",
        wanted_by=_WANTED_BY,
    )


def install(options: ServiceOptions, *, root: Path = Path("/")) -> list[str]:
    """Write unit and user, enable the service, and start it where systemd runs. Again, it brings them up to date.

    Args:
        options: What the service is like.
        root: The system to install into: `/`, or the mounted image of a device.

    Returns:
        What was done, for people.

    Raises:
        EdgeopsError: E-CONFIG; as `unit_text`, systemd is missing or does not take the unit, or the user cannot run
            the interpreter. E-DISK-FULL or E-DISK-WRITE; perhaps not root.
    """
    text = unit_text(options)
    live = root == Path("/")
    users = f'u {options.user} - "edgeops agent" {options.state}\n'
    for file, content in ((_UNIT, text), (_USERS, users)):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_file(path, content.encode(), mode=0o644)
    done = [f"wrote {root / _UNIT}"]
    if live:
        _run("systemd-sysusers", f"/{_USERS}")
        _check_can_run(options)
    _run("systemctl", *(() if live else (f"--root={root.resolve()}",)), "enable", UNIT_NAME)
    done.append("enabled: it starts at boot")
    if live and _BOOTED.is_dir():
        _run("systemctl", "daemon-reload")
        _run("systemctl", "restart", UNIT_NAME)
        done.append(f"started; see `systemctl status {UNIT_NAME}` and `edgeops agent logs`")
    return done


def remove(*, root: Path = Path("/")) -> list[str]:
    """Stop the service and remove it. State directory and user stay.

    Raises:
        EdgeopsError: E-CONFIG; it is not installed. E-DISK-WRITE; perhaps not root.
    """
    if not (root / _UNIT).exists():
        raise EdgeopsError("E-CONFIG", f"{root / _UNIT} is not there", "Nothing is to be done.")
    live = root == Path("/")
    now = ("--now",) if live and _BOOTED.is_dir() else ()
    _run("systemctl", *(() if live else (f"--root={root.resolve()}",)), "disable", *now, UNIT_NAME)
    durable.remove_tree(root / _UNIT)
    durable.remove_tree(root / _USERS)
    if now:
        _run("systemctl", "daemon-reload")
    return [f"removed {root / _UNIT}; the state directory stays"]


def _storage(state: Path) -> str:
    """Return the lines that make the state directory, the one place the service may write to."""
    try:
        below = state.relative_to("/var/lib")
    except ValueError:
        return f"ReadWritePaths={_quoted(str(state))}"
    return f"StateDirectory={_quoted(str(below))}\nStateDirectoryMode=0700"


def _quoted(word: str) -> str:
    """Return a word as systemd reads it: specifiers and variables are not expanded, blanks do not divide it."""
    if "\n" in word or "\0" in word:
        raise EdgeopsError("E-CONFIG", f"{word!r} has a line break", _HINT)
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{word}"' if re.search(r"[\s'\"\\;]", word) else word


def _check_can_run(options: ServiceOptions) -> None:
    """Find out whether the service's user may run the interpreter and finds edgeops there."""
    runuser = shutil.which("runuser")
    if runuser is None:
        return
    command = [runuser, "-u", options.user, "--", options.python, "-c", "import edgeops"]
    done = subprocess.run(command, cwd="/", capture_output=True, timeout=_COMMAND_WITHIN_S, check=False)
    if done.returncode:
        raise EdgeopsError(
            "E-CONFIG",
            f"user {options.user} cannot run {options.python} -m edgeops: {done.stderr.decode()[-200:].strip()}",
            "Install edgeops where every user may read, such as /opt/edgeops, and call install-service from there.",
        )


def _run(*command: str) -> None:
    try:
        subprocess.run(command, capture_output=True, timeout=_COMMAND_WITHIN_S, check=True)
    except FileNotFoundError as error:
        raise EdgeopsError("E-CONFIG", f"{command[0]} is not here", "This needs systemd (240 or newer).") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()[-300:]
        raise EdgeopsError("E-CONFIG", f"{' '.join(command)}: {said}", "Are you root?") from error
    except subprocess.TimeoutExpired as error:
        raise EdgeopsError("E-CONFIG", f"{' '.join(command)}: no answer in {_COMMAND_WITHIN_S:.0f} s") from error
