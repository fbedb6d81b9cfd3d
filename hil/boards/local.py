"""This machine as a board."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from edgeops.profiles import registry
from hil.boards.processes import ProcessBoard
from hil.rig import LocalSpec


class LocalBoard(ProcessBoard):
    """This machine: the agent runs from this very installation.

    Args:
        spec: From the rig.
        scratch: A folder for this run's files.
    """

    def __init__(self, spec: LocalSpec, scratch: Path) -> None:
        arch = registry.load(spec.profile).cpu.arch
        super().__init__(spec.name, spec.profile, scratch, spec.boot_within_s, (arch,))
        self._folder = scratch / f"{spec.name}-files"

    @property
    def folder(self) -> str:
        """A folder for this run's files."""
        return str(self._folder)

    def edgeops(self, *arguments: str) -> tuple[str, ...]:
        """Return the words that run an edgeops command."""
        return (sys.executable, "-m", "edgeops", *arguments)

    def _words(self, words: Sequence[str]) -> list[str]:
        return list(words)

    def _host_path(self, path: str) -> Path:
        return Path(path)
