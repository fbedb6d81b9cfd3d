"""A board over SSH: commands, files that go on where they stopped, and a host key that is always verified."""

from __future__ import annotations

import asyncio
import secrets
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from edgeops.contracts.errors import EdgeopsError

CONNECT_WITHIN_S = 20.0
COMMAND_WITHIN_S = 600.0
MAX_OUTPUT = 1 << 20
_BLOCK = 128 << 10
_KEEPALIVE_S = 10
_PART = ".part"
# Who sends, writes several times a second. Two that go on with one file both see that it is none, and begin anew.
_IDLE_S = 20
_GO_ON_WITH = """
[ ! -e "$2" ] || exit 0
if [ -e "$1" ]; then mv -f -- "$1" "$2"; exit 0; fi
for old in "$1".*.part; do
  [ -e "$old" ] && [ $(($(date +%s) - $(stat -c %Y "$old"))) -gt "$3" ] && mv -f -- "$old" "$2" && exit 0
done
"""
_KEY_KINDS = (
    ["ssh-ed25519"], ["ecdsa-sha2-nistp256"], ["ecdsa-sha2-nistp384"], ["ecdsa-sha2-nistp521"],
    ["rsa-sha2-512", "rsa-sha2-256"],
)  # fmt: skip


class Login(NamedTuple):
    """How to log in.

    Args:
        host: Address or name.
        port: Of its sshd.
        user: Who.
        key_file: Private key; None: those that ssh finds, and its agent.
        password: If there is one; None: keys only.
        known_hosts: File with host keys; None: the user's own.
        fingerprint: `SHA256:…` of the host key, instead of a file.
    """

    host: str
    port: int = 22
    user: str = "root"
    key_file: Path | None = None
    password: str | None = None
    known_hosts: Path | None = None
    fingerprint: str | None = None


class Done(NamedTuple):
    """A command that ended."""

    status: int
    out: str
    err: str


class Link:
    """One connection. Use it as an asynchronous context manager.

    Args:
        login: How to log in.
    """

    def __init__(self, login: Login) -> None:
        self.login = login
        self.become: Sequence[str] = ()
        self._mark = secrets.token_hex(4)
        self._connection: Any = None

    async def __aenter__(self) -> Link:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def connect(self) -> None:
        """Connect, or connect again.

        Raises:
            EdgeopsError: E-FLASH-LINK; it cannot be reached. E-FLASH-LOGIN; its host key is not the known one, it
                refuses the login, or our key cannot be used. E-DEPENDENCY; asyncssh is missing.
        """
        ssh = _asyncssh()
        await self.close()
        login = self.login
        options: dict[str, Any] = {
            "port": login.port, "username": login.user, "login_timeout": CONNECT_WITHIN_S,
            "connect_timeout": CONNECT_WITHIN_S, "keepalive_interval": _KEEPALIVE_S,
        }  # fmt: skip
        if login.key_file is not None:
            options["client_keys"] = [str(login.key_file)]
        if login.password is not None:
            options["password"] = login.password
        if login.known_hosts is not None:
            options["known_hosts"] = str(login.known_hosts)
        _check_key(ssh, login)
        try:
            if login.fingerprint is not None:
                options["known_hosts"] = ([await self._checked_key(ssh)], [], [])
            self._connection = await ssh.connect(login.host, **options)
        except ssh.HostKeyNotVerifiable as error:
            raise EdgeopsError(
                "E-FLASH-LOGIN",
                f"{login.host}: its host key is not a known one: {error.reason}",
                "Read it at the board, `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`, and give --host-key.",
            ) from error
        except ssh.PermissionDenied as error:
            raise EdgeopsError(
                "E-FLASH-LOGIN", f"{login.host} refuses {login.user}: {error.reason}", "Check user, key and password."
            ) from error
        except (OSError, ssh.Error, asyncio.TimeoutError, ValueError) as error:
            raise self._lost(error) from error

    async def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    async def run(
        self, *words: str, given: bytes = b"", within_s: float = COMMAND_WITHIN_S, as_root: bool = True
    ) -> Done:
        """Run a command to its end.

        Args:
            words: Program and arguments.
            given: Its standard input.
            within_s: Time limit.
            as_root: Whether to become root, where the login is not.

        Raises:
            EdgeopsError: E-FLASH-LINK; the connection was lost, or no end in time.
        """
        ssh = _asyncssh()
        command = shlex.join([*(self.become if as_root else ()), *words])
        try:
            done = await asyncio.wait_for(
                self._connection.run(command, input=given or None, stdin=None if given else ssh.DEVNULL, encoding=None),
                within_s,
            )
        except (OSError, ssh.Error, asyncio.TimeoutError) as error:
            raise self._lost(error) from error
        if done.exit_status is None:
            raise self._lost(ConnectionResetError("the connection ended with the command"))
        out, err = (bytes(text or b"")[:MAX_OUTPUT].decode(errors="replace") for text in (done.stdout, done.stderr))
        return Done(done.exit_status, out, err)

    async def script(self, text: str, *arguments: str, within_s: float = COMMAND_WITHIN_S, as_root: bool = True) -> str:
        """Run a shell script; return what it printed.

        Raises:
            EdgeopsError: E-FLASH-BOARD; it failed, with what it said. E-FLASH-LINK.
        """
        done = await self.run("/bin/sh", "-ceu", text, "sh", *arguments, within_s=within_s, as_root=as_root)
        if done.status != 0:
            said = (done.err or done.out).strip().splitlines() or ["no word"]
            raise EdgeopsError(
                "E-FLASH-BOARD",
                f"{self.login.host}: status {done.status}: {said[-1][:300]}",
                "See the board's own log.",
            )
        return done.out

    async def put(
        self, file: Path, target: str, sha256: str, on_progress: Callable[[int, int], object] = lambda _done, _all: None
    ) -> None:
        """Bring a file; what is there of it already is not sent again, and what came is held against its hash.

        It is sent under a name of this connection's own: another run that brings the same file at once has another.
        What an earlier run left, and nobody has written to for a while, is gone on with.

        Args:
            file: Of this machine.
            target: Path on the board, in a folder of the login's own.
            sha256: Of the file.
            on_progress: Hears bytes that are there, and all bytes.

        Raises:
            EdgeopsError: E-FLASH-LINK; the connection was lost: another try goes on. E-FLASH-BOARD; it does not read
                back as it was written.
        """
        if await self._hash(target) == sha256:
            return
        part = f"{target}.{self._mark}{_PART}"
        await self.run("/bin/sh", "-c", _GO_ON_WITH, "sh", target, part, str(_IDLE_S), as_root=False)
        for _ in range(2):
            await self._send(file, part, on_progress)
            if await self._hash(part) == sha256:
                await self.run("mv", "-f", "--", part, target, as_root=False)
                return
            # What was there before was not the beginning of this file.
            await self.run("rm", "-f", "--", part, as_root=False)
        raise EdgeopsError(
            "E-FLASH-BOARD", f"{self.login.host}: {target} reads back otherwise than it was written", "Check its card."
        )

    async def _hash(self, path: str) -> str:
        return (await self.run("sha256sum", "--", path, as_root=False)).out.split(" ")[0]

    async def _send(self, file: Path, target: str, on_progress: Callable[[int, int], object]) -> None:
        ssh, size = _asyncssh(), file.stat().st_size
        try:
            async with self._connection.start_sftp_client() as sftp:
                there = await sftp.getsize(target) if await sftp.exists(target) else 0
                if there > size:
                    await sftp.remove(target)
                    there = 0
                async with sftp.open(target, "ab") as remote:
                    with file.open("rb") as local:
                        local.seek(there)
                        while block := local.read(_BLOCK):
                            await remote.write(block)
                            there += len(block)
                            on_progress(there, size)
        except ssh.SFTPFailure as error:
            raise EdgeopsError(
                "E-FLASH-BOARD", f"{self.login.host}: {target}: {error.reason}", "Is there room on the board?"
            ) from error
        except (OSError, ssh.Error) as error:
            raise self._lost(error) from error

    async def _checked_key(self, ssh: Any) -> Any:
        """Return the board's host key of that fingerprint: it has one of each kind."""
        login, lost = self.login, None
        found: list[str] = []
        for kinds in _KEY_KINDS:
            asked = ssh.get_server_host_key(login.host, login.port, server_host_key_algs=kinds)
            try:
                key = await asyncio.wait_for(asked, CONNECT_WITHIN_S)
            except (ssh.Error, OSError) as error:  # it has none of this kind, or is not there
                lost = error
                continue
            if key is not None:
                found.append(key.get_fingerprint())
                if found[-1] == login.fingerprint:
                    return key
        if lost is not None and not found:
            raise lost
        raise EdgeopsError(
            "E-FLASH-LOGIN",
            f"{login.host} has host keys {', '.join(found)}, expected {login.fingerprint}",
            "Is this the right board?",
        )

    def _lost(self, error: BaseException) -> EdgeopsError:
        what = str(error) or type(error).__name__
        return EdgeopsError(
            "E-FLASH-LINK",
            f"{self.login.host}:{self.login.port}: {what}",
            "Check power and network; again, it goes on.",
        )


def _check_key(ssh: Any, login: Login) -> None:
    """Refuse a private key that cannot be used: a board that is asked without it says nothing of that.

    Raises:
        EdgeopsError: E-FLASH-LOGIN.
    """
    if login.key_file is None:
        return
    try:
        ssh.read_private_key(str(login.key_file))
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise EdgeopsError(
            "E-FLASH-LOGIN", f"private key {login.key_file}: {what}",
            "One with a passphrase is given to ssh-agent (ssh-add), and --key left out.",
        ) from error  # fmt: skip


def _asyncssh() -> Any:
    try:
        import asyncssh
    except ImportError as error:
        raise EdgeopsError("E-DEPENDENCY", f"asyncssh: {error}", "pip install 'edgeops[flash]'") from error
    return asyncssh
