"""An arm64 Debian under QEMU's user emulation: real aarch64 programs and wheels, on this machine's kernel."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from edgeops.flash.payload import put_code
from hil.boards.arm64_root import CODE, SITE, arm64_root
from hil.boards.processes import ProcessBoard
from hil.rig import Arm64UserSpec
from hil.tools import CHROOT, UNSHARE

# Mounts of the program's own: they go with it.
_ENTER = 'mount --bind /proc "$1/proc" && mount --bind /dev "$1/dev" && exec chroot "$@"'
_ENVIRONMENT = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "PYTHONDONTWRITEBYTECODE=1")


class Arm64UserBoard(ProcessBoard):
    """An arm64 root folder of the cache.

    Args:
        spec: From the rig.
        scratch: A folder for this run's files.

    Raises:
        EdgeopsError: As `arm64_root`.
    """

    def __init__(self, spec: Arm64UserSpec, scratch: Path) -> None:
        super().__init__(spec.name, spec.profile, scratch, spec.boot_within_s, ("aarch64",))
        self._root = arm64_root()
        self._enter = [UNSHARE.find(), "--mount", "--propagation", "private", "/bin/sh", "-c", _ENTER, CHROOT.find()]
        self._is_prepared = False
        self._folder = f"/var/lib/edgeops-hil-{secrets.token_hex(4)}"

    @property
    def folder(self) -> str:
        """A folder for this run's files."""
        return self._folder

    def power_on(self) -> None:
        """Bring this installation's code at the first time, then as any board of processes."""
        if not self._is_prepared:
            shutil.rmtree(self._root / CODE[1:], ignore_errors=True)
            put_code(self._root / CODE[1:])
            self._is_prepared = True
        super().power_on()

    def edgeops(self, *arguments: str) -> tuple[str, ...]:
        """Return the words that run an edgeops command."""
        return ("/usr/bin/python3", "-m", "edgeops", *arguments)

    def _words(self, words: Sequence[str]) -> list[str]:
        environment = [*_ENVIRONMENT, f"PYTHONPATH={CODE}:{SITE}"]
        return [*self._enter, str(self._root), "/usr/bin/env", "-i", *environment, *words]

    def _host_path(self, path: str) -> Path:
        return self._root / path[1:]
