"""What every runtime looks like to the rest of the house: one `Backend`, its `Session`s, plain tensors by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.profile import Precision
from edgeops.contracts.tensors import TensorSpec

Tensors = Mapping[str, NDArray[Any]]


class Availability(NamedTuple):
    """Whether a runtime can be used here: its version, or why not; `providers` for onnxruntime."""

    version: str | None
    reason: str = ""
    providers: tuple[str, ...] = ()


class LoadOptions(NamedTuple):
    """How to load an artifact.

    Args:
        threads: Inference threads.
        providers: Execution providers in order of preference; onnxruntime only.
        options: The bundle's runtime settings.
        cache_dir: Where the runtime may keep engines that it builds; None: nowhere.
        precision: Number format of the artifact: TensorRT uses int8 and fp16 only where it is told to.
    """

    threads: int = 1
    providers: tuple[str, ...] = ()
    options: Mapping[str, str] = {}
    cache_dir: Path | None = None
    precision: Precision = Precision.FLOAT32


class Session(Protocol):
    """A loaded artifact. Not safe for use by two threads at once."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The artifact's own inputs; a size that the artifact leaves open is -1."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The artifact's own outputs; a size that the artifact leaves open is -1."""

    @property
    def provider(self) -> str:
        """What really runs it, with the reason where it is not the first choice."""

    @property
    def arena_bytes(self) -> int | None:
        """The memory that the runtime has planned for the artifact; None: it does not say."""

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Run one inference on the artifact's own tensors.

        Raises:
            EdgeopsError: E-RUNTIME-INPUT; a tensor has a wrong name, type or shape. E-RUNTIME-RUN; the runtime failed,
                or the session is closed.
        """

    def close(self) -> None:
        """Free the artifact's memory."""


class Backend(Protocol):
    """One runtime. Constructing it imports nothing heavy."""

    @property
    def name(self) -> str:
        """Name in profiles and manifests."""

    def available(self) -> Availability:
        """Say whether this runtime can be used here. Never raises."""

    def load(self, artifact: Path, options: LoadOptions) -> Session:
        """Load an artifact.

        Raises:
            EdgeopsError: E-RUNTIME-MISSING; not installed. E-RUNTIME-LOAD; it refuses the artifact.
        """


class FeedCheck:
    """Checks tensors against a signature, before each inference: the right way through is short.

    Args:
        inputs: The names, and each one's dtype and shape; -1 in a shape: any size.
    """

    def __init__(self, inputs: tuple[TensorSpec, ...]) -> None:
        self._wanted = tuple((spec.name, np.dtype(spec.dtype), spec.shape) for spec in inputs)
        self._names = {spec.name for spec in inputs}

    def __call__(self, feeds: Tensors) -> None:
        """Check tensors.

        Raises:
            EdgeopsError: E-RUNTIME-INPUT; other names, or a tensor of another dtype or shape.
        """
        if feeds.keys() != self._names:
            raise EdgeopsError("E-RUNTIME-INPUT", f"expected inputs {sorted(self._names)}, got {sorted(feeds)}")
        for name, dtype, shape in self._wanted:
            got = feeds[name]
            if got.dtype != dtype or (got.shape != shape and not _fits(got.shape, shape)):
                raise EdgeopsError(
                    "E-RUNTIME-INPUT",
                    f"input {name!r}: expected {dtype}{list(shape)}, got {got.dtype}{list(got.shape)}",
                )


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(want in (-1, have) for want, have in zip(wanted, shape, strict=True))
