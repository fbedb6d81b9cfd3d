"""Programs that boards need, and how each is installed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import NamedTuple

from edgeops.contracts.errors import EdgeopsError


class Tool(NamedTuple):
    """A program of this machine.

    Args:
        program: Its name.
        package: The Debian package that has it.
    """

    program: str
    package: str

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"apt-get install --yes --no-install-recommends {self.package}"

    def path(self) -> str | None:
        """Return where it is; None: it is not installed. Programs for root are looked for, too."""
        return shutil.which(self.program) or shutil.which(self.program, path="/usr/sbin:/sbin")

    def find(self) -> str:
        """Return where it is.

        Raises:
            EdgeopsError: E-DEPENDENCY; it is not installed.
        """
        path = self.path()
        if path is None:
            raise EdgeopsError("E-DEPENDENCY", f"no {self.program} on this machine", self.install)
        return path


QEMU_ARM = Tool("qemu-system-arm", "qemu-system-arm")
QEMU_AARCH64 = Tool("qemu-system-aarch64", "qemu-system-arm")
QEMU_USER = Tool("qemu-aarch64-static", "qemu-user-static")
ARM_GCC = Tool("arm-none-eabi-gcc", "gcc-arm-none-eabi libnewlib-arm-none-eabi")
DEBOOTSTRAP = Tool("debootstrap", "debootstrap")
CHROOT = Tool("chroot", "coreutils")
SSH = Tool("ssh", "openssh-client")
SCP = Tool("scp", "openssh-client")
SSH_KEYGEN = Tool("ssh-keygen", "openssh-client")
MKE2FS = Tool("mke2fs", "e2fsprogs")
QEMU_IMG = Tool("qemu-img", "qemu-utils")
MOUNT = Tool("mount", "mount")
UNSHARE = Tool("unshare", "util-linux")
APT_GET = Tool("apt-get", "apt")
SETPRIV = Tool("setpriv", "util-linux")


def ending_with_us(words: Sequence[str]) -> list[str]:
    """Return words that run a program which the kernel kills when the thread that starts it ends, however that ends.

    Where this machine has no setpriv, the program outlives a run that is killed.
    """
    setpriv = SETPRIV.path()
    return [setpriv, "--pdeathsig", "KILL", "--", *words] if setpriv else list(words)
