"""What a card's boot partition gets, so that a board becomes a device at its first boot by itself. Pure."""

from __future__ import annotations

import json
import re
from typing import Literal, NamedTuple

from edgeops.contracts.errors import EdgeopsError
from edgeops.flash import steps
from edgeops.flash.steps import Where

Format = Literal["cloud-init", "firstrun"]

FOLDER = "edgeops"
PAYLOAD, RELEASE, TOKEN, SCRIPT = "payload.tar.gz", "release.edgeops", "token", "install.sh"
IDENTITY = "identity.tar.gz"
BOOT = "/boot/firmware"
_HOST = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
_COUNTRY = re.compile(r"[A-Z]{2}")
_KEY = re.compile(r"(ssh-(ed25519|rsa)|ecdsa-sha2-nistp(256|384|521)|sk-[a-z0-9@.-]+) [A-Za-z0-9+/=]+( [^\n]*)?")
_RUN_ONCE = "systemd.run={path} systemd.run_success_action=reboot systemd.unit=kernel-command-line.target"


class Network(NamedTuple):
    """A wireless network; `password` None: an open one."""

    ssid: str
    password: str | None
    country: str


class FirstBoot(NamedTuple):
    """What a board shall be after its first boot.

    Args:
        hostname: Its name in the network.
        user: Who may log in by SSH; None: nobody is made.
        ssh_keys: Public keys of that user.
        network: A wireless network; None: a cable.
        profile: Device profile.
        name: Its name in the fleet; None: the fleet gives one.
        version: Of the payload: the folder's name.
        sha256: Of the payload.
        has_identity: Whether an identity lies beside it, made where the card was; otherwise a token does.
        has_release: Whether a release lies beside it.
        python: The Python that the payload is for.
        boot: Where the board's system mounts the boot partition.
        where: Paths on the board.
    """

    hostname: str
    user: str | None
    ssh_keys: tuple[str, ...]
    network: Network | None
    profile: str
    name: str | None
    version: str
    sha256: str
    has_identity: bool
    has_release: bool
    python: tuple[int, int] = (3, 11)
    boot: str = BOOT
    where: Where = Where()


def check(wish: FirstBoot) -> None:
    """Refuse what a board could not be.

    Raises:
        EdgeopsError: E-CONFIG.
    """
    if not _HOST.fullmatch(wish.hostname):
        raise EdgeopsError("E-CONFIG", f"{wish.hostname!r} is no host name", "Small letters, digits and hyphens.")
    if wish.user is not None and not _USER.fullmatch(wish.user):
        raise EdgeopsError("E-CONFIG", f"{wish.user!r} is no user's name")
    for key in wish.ssh_keys:
        if not _KEY.fullmatch(key):
            raise EdgeopsError("E-CONFIG", f"no public SSH key: {key[:60]!r}", "Give the .pub file.")
    if wish.network is not None:
        ssid, password, country = wish.network
        if not 1 <= len(ssid.encode()) <= 32 or (password is not None and not 8 <= len(password) <= 63):
            raise EdgeopsError("E-CONFIG", f"wireless network {ssid!r}: names have 1 to 32 bytes, passwords 8 to 63")
        if not _COUNTRY.fullmatch(country):
            raise EdgeopsError("E-CONFIG", f"{country!r} is no country code", "Two capital letters, such as DE.")


def install_script(wish: FirstBoot) -> str:
    """Return the script that the first boot runs, again and again until it has succeeded once."""
    where = wish.where
    python = f"python{wish.python[0]}.{wish.python[1]}"
    service = [
        where.python, "-m", "edgeops", "agent", "install-service", "--state", where.state, "--user", steps.USER,
        "--python", where.python, "--profile", wish.profile, "--token-file", where.token,
        *(("--name", wish.name) if wish.name else ()),
    ]  # fmt: skip
    lines = [
        "#!/bin/sh",
        "# Written by `edgeops flash image`: makes this board a device of its fleet, then removes what was secret.",
        "set -eu",
        'here=$(dirname "$0")',
        f'echo {_quoted(wish.sha256)}"  $here/{PAYLOAD}" | sha256sum -c - > /dev/null',
        f"python=$(command -v {python}) || {{",
        f'  echo "edgeops: this card is for a system with {python}; write one for this system" >&2',
        "  exit 1",
        "}",
        _call(steps.UNPACK, where.prefix, wish.version, "$python", f"$here/{PAYLOAD}", ""),
        _call(steps.SWITCH, where.prefix, wish.version),
    ]
    enrolled = f"{_quoted(where.state)}/identity/enrolment.json"
    if wish.has_identity:
        # Removed only once it has come to its place; after a cut between the two it is there already.
        secret = f'"$here/{IDENTITY}"'
        lines.append(f"[ -e {enrolled} ] || {_call(steps.BE, steps.USER, where.state)} < {secret}")
    else:
        secret = f'"$here/{TOKEN}"'
        lines.append(f"[ -e {enrolled} ] || {_call(steps.GIVE, steps.USER, where.state, where.token)} < {secret}")
    lines += [
        " ".join(_quoted(word) for word in service),
        f"until [ -e {enrolled} ]; do sleep 2; done",
        # A card that is taken out tells nobody a secret that has served its turn.
        f"rm -f {secret} {_quoted(where.token)}",
        "sync",
    ]
    if wish.has_release:
        lines.append(_call(steps.INSTALL, steps.USER, where.state, where.python, f"$here/{RELEASE}"))
    return "\n".join(lines) + "\n"


def files(wish: FirstBoot, form: Format, cmdline: str | None = None) -> dict[str, str]:
    """Return the text files of the boot partition by name; payload, token and release come beside.

    Args:
        wish: What the board shall be.
        form: `cloud-init` for Ubuntu, Debian and Raspberry Pi OS since trixie; `firstrun` for older Raspberry Pi OS.
        cmdline: What cmdline.txt holds, for `firstrun`.

    Raises:
        EdgeopsError: E-CONFIG; a value is impossible. E-FLASH-CARD; the image has no cmdline.txt.
    """
    check(wish)
    if form == "cloud-init":
        return {
            f"{FOLDER}/{SCRIPT}": install_script(wish),
            "meta-data": f"instance-id: edgeops-{wish.sha256[:16]}-{wish.hostname}\n",
            "user-data": _user_data(wish),
            # A cable is set up by cloud-init itself, whatever the system calls it.
            **({} if wish.network is None else {"network-config": _network_config(wish.network)}),
        }
    if cmdline is None:
        raise EdgeopsError("E-FLASH-CARD", "this image has no cmdline.txt", "Is it Raspberry Pi OS? Try cloud-init.")
    kept = " ".join(word for word in cmdline.split() if not word.startswith("systemd.run"))
    return {
        f"{FOLDER}/{SCRIPT}": install_script(wish),
        "custom.toml": _custom_toml(wish),
        "firstrun.sh": _firstrun(wish),
        "cmdline.txt": f"{kept} {_RUN_ONCE.format(path=f'{wish.boot}/firstrun.sh')}\n",
    }


def _user_data(wish: FirstBoot) -> str:
    """Return cloud-init's configuration. JSON is YAML, and quotes what needs it."""
    # cloud-init does not wait: the service is done when the board has met its fleet, which may take days.
    runcmd = [
        ["systemctl", "daemon-reload"], ["systemctl", "enable", "--now", "--no-block", "edgeops-firstboot.service"],
    ]  # fmt: skip
    config: dict[str, object] = {
        "hostname": wish.hostname,
        # sudo asks for the machine's own name, and would wait for a name server that may not be there.
        "manage_etc_hosts": "localhost",
        "ssh_pwauth": False,
        "write_files": [{"path": "/etc/systemd/system/edgeops-firstboot.service", "content": _unit(wish)}],
        "runcmd": runcmd,
    }
    if wish.user is not None:
        config["users"] = [
            {
                "name": wish.user, "shell": "/bin/bash", "lock_passwd": True, "groups": ["sudo"],
                "sudo": "ALL=(ALL) NOPASSWD:ALL", "ssh_authorized_keys": list(wish.ssh_keys),
            }
        ]  # fmt: skip
        config["runcmd"] = [["systemctl", "enable", "--now", "--no-block", "ssh.service"], *runcmd]
    return "#cloud-config\n" + json.dumps(config, indent=1) + "\n"


def _network_config(network: Network) -> str:
    """Return netplan's configuration, which nothing but netplan turns into a wireless network.

    The board counts as online by that network, and does not wait for a cable: systemd would, for two minutes.
    """
    access = {} if network.password is None else {"password": network.password}
    config = {
        "version": 2,
        "ethernets": {"cable": {"match": {"name": "e*"}, "dhcp4": True, "optional": True}},
        "wifis": {
            "wlan0": {
                "dhcp4": True, "regulatory-domain": network.country,
                "access-points": {network.ssid: access},
            }
        },
    }  # fmt: skip
    return json.dumps(config, indent=1) + "\n"


def _custom_toml(wish: FirstBoot) -> str:
    """Return Raspberry Pi OS's custom.toml (bookworm)."""
    lines = ["config_version = 1", "", "[system]", f"hostname = {_toml(wish.hostname)}", ""]
    if wish.user is not None:
        lines += ["[user]", f"name = {_toml(wish.user)}", ""]
        keys = ", ".join(_toml(key) for key in wish.ssh_keys)
        lines += ["[ssh]", "enabled = true", "password_authentication = false", f"authorized_keys = [{keys}]", ""]
    if wish.network is not None:
        lines += ["[wlan]", f"ssid = {_toml(wish.network.ssid)}"]
        if wish.network.password is not None:
            lines += [f"password = {_toml(wish.network.password)}", "password_encrypted = false"]
        lines += [f"country = {_toml(wish.network.country)}", ""]
    return "\n".join(lines)


def _firstrun(wish: FirstBoot) -> str:
    """Return the script that the kernel's command line names: it leaves a service, and itself behind."""
    return (
        "#!/bin/sh\nset -eu\n"
        f"cat > /etc/systemd/system/edgeops-firstboot.service <<'END'\n{_unit(wish)}END\n"
        "systemctl enable edgeops-firstboot.service\n"
        f"sed -i 's| systemd.run.*||' {wish.boot}/cmdline.txt\n"
        f"rm -f {wish.boot}/firstrun.sh\n"
        "sync\n"
    )


_UNIT = """\
[Unit]
Description=edgeops: make this board a device of its fleet
{after}
ConditionPathExists=!/var/lib/edgeops/.made

[Service]
Type=oneshot
ExecStart=/bin/sh {folder}/edgeops/install.sh
ExecStartPost=/usr/bin/touch /var/lib/edgeops/.made
Restart=on-failure
RestartSec=20

[Install]
WantedBy=multi-user.target
"""


def _unit(wish: FirstBoot) -> str:
    """Return the service; a board that is enrolled already needs no network, so it does not wait for one."""
    online = "After=network-online.target\nWants=network-online.target"
    return _UNIT.format(folder=wish.boot, after="After=network.target" if wish.has_identity else online)


def _call(script: str, *arguments: str) -> str:
    """Return a command that runs one of the steps' scripts; arguments that begin with $ are expanded."""
    words = [f'"{word}"' if word.startswith("$") else _quoted(word) for word in arguments]
    return f"/bin/sh -ceu {_quoted(script)} sh {' '.join(words)}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
