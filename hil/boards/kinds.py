"""From a rig file's board to the board itself. Each kind is imported when it is used."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hil import tools
from hil.interrupts import held
from hil.rig import BoardSpec, kind_of
from hil.tools import Tool

if TYPE_CHECKING:
    from hil.boards.protocol import LinuxBoard, McuBoard


class Kind(NamedTuple):
    """A kind of board.

    Args:
        title: For people.
        maker: `module:function`, called with the board of the rig file and a scratch folder.
        tools: Programs of this machine that it needs.
        is_mcu: Whether it is a microcontroller.
        cannot: Runtimes that do not work there, with the reason.
        is_shared: Whether others than this machine's runs may hold it: its maker takes how long to wait, too.
    """

    title: str
    maker: str
    tools: tuple[Tool, ...] = ()
    is_mcu: bool = False
    cannot: Mapping[str, str] = {}
    is_shared: bool = False


KINDS: dict[str, Kind] = {
    "local": Kind("this machine", "hil.boards.local:LocalBoard"),
    "arm64-user": Kind(
        "arm64 Debian under QEMU's user emulation",
        "hil.boards.arm64_user:Arm64UserBoard",
        (tools.QEMU_USER, tools.DEBOOTSTRAP, tools.CHROOT, tools.UNSHARE),
        cannot={"openvino": "OpenVINO hangs under QEMU's user emulation when it compiles a model"},
    ),
    "arm64-vm": Kind(
        "arm64 machine emulated by QEMU",
        "hil.boards.arm64_vm:Arm64VmBoard",
        (
            tools.QEMU_AARCH64,
            tools.QEMU_USER,
            tools.DEBOOTSTRAP,
            tools.QEMU_IMG,
            tools.MKE2FS,
            tools.SSH,
            tools.SCP,
            tools.SSH_KEYGEN,
        ),
    ),
    "qemu-cortex-m": Kind(
        "Cortex-M board emulated by QEMU", "hil.boards.mcu:QemuMcuBoard", (tools.QEMU_ARM, tools.ARM_GCC), is_mcu=True
    ),
    "serial-mcu": Kind("microcontroller on a serial line", "hil.boards.mcu:SerialMcuBoard", is_mcu=True),
    "labgrid": Kind(
        "Linux board behind labgrid", "hil.boards.labgrid:LabgridBoard", (tools.SSH, tools.SCP), is_shared=True
    ),
    "labgrid-mcu": Kind(
        "microcontroller behind labgrid", "hil.boards.labgrid:LabgridMcuBoard", is_mcu=True, is_shared=True
    ),
    "ssh": Kind("Linux board by SSH", "hil.boards.ssh:SshBoard.of", (tools.SSH, tools.SCP)),
}


def open_board(spec: BoardSpec, scratch: Path, wait_s: float = 0.0) -> AbstractContextManager[LinuxBoard | McuBoard]:
    """Make the board of a rig file; it is off until `power_on`.

    Args:
        spec: From the rig.
        scratch: A folder for this run's files.
        wait_s: How long to wait where others than this machine's runs hold it.

    Raises:
        EdgeopsError: E-DEPENDENCY; something that it needs is missing. E-HIL-BUSY, E-HIL-RIG or E-HIL-BOARD.
    """
    kind = KINDS[kind_of(spec)]
    for tool in kind.tools:
        tool.find()
    module, _, path = kind.maker.partition(":")
    maker: Any = importlib.import_module(module)
    for name in path.split("."):
        maker = getattr(maker, name)
    board: AbstractContextManager[LinuxBoard | McuBoard] = (
        maker(spec, scratch, wait_s) if kind.is_shared else maker(spec, scratch)
    )
    return board


@contextmanager
def closed_in_any_case(board: LinuxBoard | McuBoard) -> Iterator[None]:
    """Close a board within its own context, too.

    An interrupt at the very door of one of the two would keep it from closing; it comes once, so the other closes.
    """
    try:
        yield
    finally:
        with held():
            board.close()
