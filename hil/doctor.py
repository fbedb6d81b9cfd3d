"""Whether the boards of a rig can be used on this machine, found out without touching them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from edgeops.compiler.toolchain import LABGRID
from edgeops.contracts.errors import EdgeopsError
from edgeops.profiles import registry
from hil.boards.kinds import KINDS
from hil.reservation import Reservation, resource_of
from hil.rig import BoardSpec, LabgridMcuSpec, LabgridSpec, LocalSpec, Rig, SerialMcuSpec, SshSpec, kind_of


class Finding(NamedTuple):
    """What was found of one board. `missing` is empty where it can be used."""

    board: str
    kind: str
    said: str
    missing: str = ""
    next_step: str = ""


def examine(rig: Rig) -> list[Finding]:
    """Look at each board of a rig."""
    return [_examine(rig, board) for board in rig.boards]


def _examine(rig: Rig, board: BoardSpec) -> Finding:
    kind = kind_of(board)
    known = KINDS[kind]
    for tool in known.tools:
        if tool.path() is None:
            return Finding(board.name, kind, "", f"no {tool.program}", tool.install)
    if (missing := _own(board)) is not None:
        return Finding(board.name, kind, "", *missing)
    try:
        with Reservation(resource_of(rig, board)):
            return Finding(board.name, kind, f"{known.title}, free")
    except EdgeopsError as error:
        return Finding(board.name, kind, f"{known.title}; {error.what}")


def _own(board: BoardSpec) -> tuple[str, str] | None:
    """Return what a kind of board lacks beside programs, and what to do."""
    if kind_of(board).startswith("arm64-") and os.geteuid() != 0:
        return "making an arm64 root folder needs root", "Run it as root."
    if isinstance(board, LocalSpec) and (arch := registry.load(board.profile).cpu.arch) != os.uname().machine:
        return f"this machine is {os.uname().machine}, profile {board.profile} is {arch}", "Choose a fitting profile."
    if isinstance(board, SerialMcuSpec) and "://" not in board.port and not Path(board.port).exists():
        return f"no {board.port}", "Plug the device in."
    if isinstance(board, SerialMcuSpec | LabgridMcuSpec) and not Path(board.signing_key).expanduser().is_file():
        return f"no {board.signing_key}", "Name the key that the firmware was built with."
    if isinstance(board, LabgridSpec | LabgridMcuSpec):
        if not LABGRID.installed:
            return "labgrid's own environment is not installed", f"edgeops toolchain install {LABGRID.name}"
        if not Path(board.environment).expanduser().is_file():
            return f"no {board.environment}", "Name labgrid's environment file."
    if isinstance(board, SshSpec) and board.key_file and not Path(board.key_file).expanduser().is_file():
        return f"no {board.key_file}", "Name the private key to log in with."
    return None
