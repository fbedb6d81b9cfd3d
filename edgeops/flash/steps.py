"""What is done on a board, one step at a time: each may be cut off at any place and done again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from edgeops.contracts.errors import EdgeopsError
from edgeops.flash import facts
from edgeops.flash.facts import Board
from edgeops.flash.fit import Choice
from edgeops.flash.link import Link
from edgeops.flash.payload import Payload

PREFIX = "/opt/edgeops"
STATE = "/var/lib/edgeops"
USER = "edgeops"
TOKEN = "/etc/edgeops/token"  # noqa: S105  a path

Say = Callable[[str], object]

_INCOMING = """
d=/var/tmp/edgeops-flash-$(id -u)
mkdir -m 700 "$d" 2>/dev/null || { [ -d "$d" ] && [ ! -L "$d" ] && [ -O "$d" ] && chmod 700 "$d"; } || exit 1
echo "$d"
"""
# Scripts for the board's shell; `firstboot` writes them on cards, too.
# A script outlives the connection that began it: the next one of its kind, or somebody else's, waits for its end.
_ALONE = """
mkdir -p "$prefix"
exec 9>> "$prefix/.lock"
if command -v flock > /dev/null && ! flock -w 540 9; then
  echo "another flash is at work on this board" >&2
  exit 1
fi
"""
# Unpacked beside, made whole, then renamed: a version that is there is whole.
UNPACK = (
    "\nprefix=$1 version=$2 python=$3 file=$4 system=$5"
    + _ALONE
    + """\
[ -e "$prefix/versions/$version/.complete" ] && exit 0
mkdir -p "$prefix/versions"
rm -rf "$prefix/versions/.new" "$prefix/versions/$version"
"$python" -m venv --without-pip $system "$prefix/versions/.new"
site=$("$prefix/versions/.new/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
tar -xzf "$file" --no-same-owner -C "$site"
command="$prefix/versions/.new/bin/edgeops"
printf '#!%s/current/bin/python\\nfrom edgeops.cli import main\\nmain()\\n' "$prefix" > "$command"
chmod 755 "$command"
chmod -R a+rX "$prefix"
"$prefix/versions/.new/bin/python" -m edgeops --version
touch "$prefix/versions/.new/.complete"
sync
mv -T "$prefix/versions/.new" "$prefix/versions/$version"
sync
"""
)
SWITCH = (
    "\nprefix=$1 version=$2"
    + _ALONE
    + """\
now=$(readlink "$prefix/current" || true)
[ "$now" = "versions/$version" ] && exit 0
[ -n "$now" ] && { ln -sfn "$now" "$prefix/.previous" && mv -T "$prefix/.previous" "$prefix/previous"; }
ln -sfn "versions/$version" "$prefix/.current"
mv -T "$prefix/.current" "$prefix/current"
sync
"""
)
GIVE = """
user=$1 state=$2 token=$3 bytes=${4:-}
getent passwd "$user" > /dev/null || useradd --system --home-dir "$state" --shell /usr/sbin/nologin "$user"
[ -e "$state/identity/enrolment.json" ] && exit 0
mkdir -p "$(dirname "$token")"
umask 077
cat > "$token.new"
# What a lost connection cut short is no token, and does not take the place of one.
[ -z "$bytes" ] || [ "$(wc -c < "$token.new")" -eq "$bytes" ]
chown "$user" "$token.new"
mv "$token.new" "$token"
"""
# An identity counts when its folder is there, so that comes last.
BE = """
user=$1 state=$2
getent passwd "$user" > /dev/null || useradd --system --home-dir "$state" --shell /usr/sbin/nologin "$user"
umask 077
mkdir -p "$state"
rm -rf "$state/.flash" "$state/trust" "$state/identity"
mkdir "$state/.flash"
tar -xzf - --no-same-owner -C "$state/.flash"
chown -R "$user" "$state"
sync
mv "$state/.flash/trust" "$state/trust"
mv "$state/.flash/identity" "$state/identity"
rmdir "$state/.flash"
sync
"""
_TAKE_OVER = """
if [ -e /etc/systemd/system/edgeops-firstboot.service ]; then
  systemctl disable --now edgeops-firstboot.service
fi
if [ -d /run/systemd/system ] && [ -e /etc/systemd/system/edgeops-agent.service ]; then
  systemctl stop edgeops-agent.service
fi
"""
_UNDO = (
    "\nprefix=$1 state=$2 token=$3 purge=$4"
    + _ALONE
    + """\
previous=$(readlink "$prefix/previous" || true)
if [ -n "$previous" ] && [ -e "$prefix/$previous/.complete" ] && [ "$purge" != yes ]; then
  ln -sfn "$previous" "$prefix/.current"
  mv -T "$prefix/.current" "$prefix/current"
  rm "$prefix/previous"
  [ -d /run/systemd/system ] && systemctl restart edgeops-agent.service
  echo "back to ${previous#versions/}"
  exit 0
fi
if [ -x "$prefix/current/bin/python" ] && [ -e /etc/systemd/system/edgeops-agent.service ]; then
  "$prefix/current/bin/python" -m edgeops agent install-service --state "$state" --remove > /dev/null
fi
rm -rf "$prefix" "$token"
if [ "$purge" = yes ]; then rm -rf "$state"; echo "removed, with its state"; else echo "removed; its state stays"; fi
"""
)
# The agent's user reads it: what lies in the login's own folder it cannot see.
INSTALL = """
user=$1 state=$2 python=$3 file=$4
find "$state" -maxdepth 1 -name '.flash-*' -mmin +1440 -exec rm -rf {} +
copy=$(mktemp -d "$state/.flash-XXXXXX")
trap 'rm -rf "$copy"' EXIT
chown "$user" "$copy"
install -o "$user" -m 600 "$file" "$copy/release.edgeops"
runuser -u "$user" -- "$python" -m edgeops agent install --state "$state" "$copy/release.edgeops"
"""
_TROUBLE = re.compile(r"not enrolled: (E-[A-Z-]{1,40}): (.{0,600})", re.DOTALL)
_VERSIONS = """
printf 'versions=%s\\n' "$(ls "$1/versions" 2>/dev/null | tr '\\n' ' ')"
printf 'current=%s\\n' "$(readlink "$1/current" 2>/dev/null)"
"""
# Of others only what nobody goes on with: another run may be bringing it.
_CLEAN = """
rm -f -- "$1/$2"
find "$1" -type f -mmin +1440 -delete
rmdir -- "$1" 2> /dev/null || true
"""


class Where(NamedTuple):
    """Paths on a board."""

    prefix: str = PREFIX
    state: str = STATE
    token: str = TOKEN

    @property
    def python(self) -> str:
        """The interpreter of the version in use."""
        return f"{self.prefix}/current/bin/python"


class Trouble(NamedTuple):
    """A failed enrolment, as the board's own log has it: when by its clock, the error's code, and what happened."""

    at_s: float
    code: str
    what: str


async def probe(link: Link, where: Where) -> Board:
    """Ask what the board is, and learn how to be root there. Nothing is changed.

    Raises:
        EdgeopsError: E-FLASH-BOARD or E-FLASH-LINK.
    """
    parent = where.prefix.rpartition("/")[0] or "/"
    said = await link.run("/bin/sh", "-c", facts.SCRIPT, "sh", parent, as_root=False, within_s=120)
    there = await link.run("/bin/sh", "-c", _VERSIONS, "sh", where.prefix, as_root=False, within_s=60)
    board = facts.read((said.out + there.out).encode())
    link.become = () if board.root == "yes" else ("sudo", "-n", "--")
    return board


async def incoming(link: Link) -> str:
    """Return the folder of the login's own for files on their way; made if it is not there.

    Raises:
        EdgeopsError: E-FLASH-BOARD; it is somebody else's. E-FLASH-LINK.
    """
    return (await link.script(_INCOMING, as_root=False)).strip()


async def bring(link: Link, payload: Payload, say: Say) -> str:
    """Bring a payload to the board; return where it lies. Goes on where an earlier try ended.

    Raises:
        EdgeopsError: As `Link.put`.
    """
    target = f"{await incoming(link)}/{_name_of(payload)}"
    last = [-1]

    def on_progress(done: int, whole: int) -> None:
        percent = 100 * done // whole
        if percent // 10 != last[0] // 10:
            last[0] = percent
            say(f"sending {percent}% of {whole >> 20} MiB")

    await link.put(payload.file, target, payload.sha256, on_progress)
    return target


def _name_of(payload: Payload) -> str:
    return f"{payload.sha256}.tar.gz"


async def unpack(link: Link, where: Where, payload: Payload, choice: Choice, file: str) -> None:
    """Make a version of the payload beside those that are there; try it before it counts.

    Raises:
        EdgeopsError: E-FLASH-BOARD; it cannot be made, or does not start. E-FLASH-LINK.
    """
    system = "--system-site-packages" if choice.system_packages else ""
    await link.script(UNPACK, where.prefix, payload.version, choice.python.path, file, system)


async def switch(link: Link, where: Where, version: str) -> None:
    """Let a version be the one in use, at once; the one before is kept for `undo`.

    Raises:
        EdgeopsError: E-FLASH-BOARD or E-FLASH-LINK.
    """
    await link.script(SWITCH, where.prefix, version)


async def give_token(link: Link, where: Where, token: str) -> None:
    """Put an enrolment token where the agent reads it once, unless the board is enrolled.

    A first boot from a card that has not come to its end is ended: it would put the card's token back. An agent that
    still tries an older token is stopped, so that its refusal is not taken for one of this token.

    Raises:
        EdgeopsError: E-FLASH-BOARD or E-FLASH-LINK.
    """
    await link.script(_TAKE_OVER)
    given = token.encode()
    words = ("sh", USER, where.state, where.token, str(len(given)))
    done = await link.run("/bin/sh", "-ceu", GIVE, *words, given=given)
    if done.status != 0:
        raise EdgeopsError("E-FLASH-BOARD", f"the token cannot be put: {done.err.strip()[-300:]}")


async def is_enrolled(link: Link, where: Where) -> str | None:
    """Return the name of an enrolled board; None: it is not.

    Raises:
        EdgeopsError: E-FLASH-LINK.
    """
    done = await link.run(where.python, "-m", "edgeops", "agent", "status", "--state", where.state, "--json")
    if done.status != 0:
        return None
    try:
        return str(json.loads(done.out)["connection"] or "") or None
    except (ValueError, KeyError, TypeError):
        return None


async def trouble(link: Link, where: Where) -> Trouble | None:
    """Return why the board could not enrol when it tried last; None: it has not failed.

    Raises:
        EdgeopsError: E-FLASH-LINK.
    """
    done = await link.run(where.python, "-m", "edgeops", "agent", "logs", "--state", where.state, "-n", "200", "--json")
    for line in reversed(done.out.splitlines()):
        try:
            said = json.loads(line)
            found = _TROUBLE.fullmatch(str(said["text"]))
            if found:
                return Trouble(float(said["at_s"]), found[1], found[2])
        except (ValueError, KeyError, TypeError):
            continue
    return None


async def install_service(link: Link, where: Where, board: Board, profile: str, name: str | None) -> str:
    """Have systemd run the agent; return what was done.

    Raises:
        EdgeopsError: E-FLASH-BOARD or E-FLASH-LINK.
    """
    words = [
        where.python, "-m", "edgeops", "agent", "install-service", "--state", where.state, "--user", USER,
        "--python", where.python, "--token-file", where.token, "--profile", profile,
        *(("--name", name) if name else ()),
        *[word for device in board.accelerators for word in ("--device", device)],
    ]  # fmt: skip
    done = await link.run(*words)
    if done.status != 0:
        raise EdgeopsError("E-FLASH-BOARD", f"{link.login.host}: {done.err.strip()[-400:]}", "Does it have systemd?")
    return done.out.strip()


async def install_release(link: Link, where: Where, stick: Path, sha256: str) -> str:
    """Bring an exported release and have the agent install it; return what it says.

    Raises:
        EdgeopsError: E-FLASH-BOARD; the device refuses it. E-FLASH-LINK.
    """
    target = f"{await incoming(link)}/{sha256}.edgeops"
    await link.put(stick, target, sha256)
    said = await link.script(INSTALL, USER, where.state, where.python, target)
    await link.run("rm", "-f", "--", target, as_root=False)
    return said.strip().splitlines()[-1]


async def clean(link: Link, payload: Payload) -> None:
    """Remove the files that were on their way.

    Raises:
        EdgeopsError: E-FLASH-LINK.
    """
    await link.script(_CLEAN, await incoming(link), _name_of(payload), as_root=False)


async def undo(link: Link, where: Where, *, purge: bool) -> str:
    """Go back to the version before, or remove edgeops where there is none; return what was done.

    Raises:
        EdgeopsError: E-FLASH-BOARD or E-FLASH-LINK.
    """
    said = await link.script(_UNDO, where.prefix, where.state, where.token, "yes" if purge else "no")
    return said.strip().splitlines()[-1]
