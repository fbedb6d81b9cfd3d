"""One pass: what it needs, what it does, what it guarantees. Passes are entry points of the group `edgeops.passes`.

A pass reads one product (a folder with notes) and writes another. It runs in a worker process, so it may load native
code that hangs or crashes. Facts are the words in which passes speak of products: `onnx`, `static-shapes`, `int8`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from edgeops.contracts.errors import EdgeopsError


class Work(NamedTuple):
    """What a pass gets.

    Args:
        source: Folder of the product before it; do not write there.
        notes: Notes of that product.
        facts: Facts of that product.
        target: Empty folder for the new product's files.
        parameters: The step's parameters: plain JSON values.
        inputs: Folders of other products by role, such as `samples` or `baseline`.
        input_notes: Their notes.
    """

    source: Path
    notes: Mapping[str, Any]
    facts: frozenset[str]
    target: Path
    parameters: Mapping[str, Any]
    inputs: Mapping[str, Path]
    input_notes: Mapping[str, Mapping[str, Any]]


class Outcome(NamedTuple):
    """What a pass made: facts of the new product, all of them, and notes for later passes (plain JSON values)."""

    facts: frozenset[str]
    notes: Mapping[str, Any]


class Pass(Protocol):
    """A pass. Its module imports nothing heavy at its top.

    It may have `preload`: parameters → names of modules that its work imports. Its worker is forked with these loaded,
    so that each is loaded once in a compile.
    """

    @property
    def tools(self) -> tuple[str, ...]:
        """Distributions whose versions change the result. Programs of the system that do are in `programs`, if any."""

    @property
    def requires(self) -> frozenset[str]:
        """Facts that the source must have."""

    @property
    def ensures(self) -> frozenset[str]:
        """Facts that the outcome has: checked after every run."""

    def run(self, work: Work) -> Outcome:
        """Make the product.

        Raises:
            EdgeopsError: The source cannot be handled; what says why.
        """


def refuse(what: str, next_step: str = "") -> EdgeopsError:
    """Return the error of a pass that cannot handle its source: the candidate ends, the compile goes on."""
    return EdgeopsError("E-COMPILE-CANDIDATE", what, next_step)
