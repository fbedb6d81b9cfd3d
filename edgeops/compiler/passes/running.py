"""Runs artifacts through the same backends that devices use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.compiler.passes import refuse
from edgeops.compiler.passes.samples import read_samples, spread
from edgeops.contracts.errors import EdgeopsError
from edgeops.runtimes.protocol import LoadOptions
from edgeops.runtimes.registry import backend

_SEARCH_SAMPLES = 16
# What passes over ONNX files load in any case; and what a runtime's sessions do.
ONNX_MODULES = ("onnx", "onnxruntime")
_RUNTIME_MODULES = {
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "litert": ("ai_edge_litert.interpreter",),
}


def runtime_modules(runtime: str) -> tuple[str, ...]:
    """Return the modules that a runtime's sessions load, and none beside them: their memory is measured."""
    return _RUNTIME_MODULES.get(runtime, ())


def run_artifact(
    runtime: str,
    artifact: Path,
    samples: Mapping[str, NDArray[Any]],
) -> dict[str, NDArray[Any]]:
    """Run an artifact on samples [n, *shape] of its own inputs; returns output → [n, *shape], in its own order.

    Raises:
        EdgeopsError: E-COMPILE-CANDIDATE; the runtime refuses the artifact, or fails.
    """
    try:
        session = backend(runtime).load(artifact, LoadOptions())
        types = {spec.name: spec.dtype for spec in session.inputs}
        try:
            rows = [
                session.run(
                    {name: as_float(np.asarray(array[index]), types.get(name)) for name, array in samples.items()}
                )
                for index in range(len(next(iter(samples.values()))))
            ]
        finally:
            session.close()
    except EdgeopsError as error:
        if error.code == "E-RUNTIME-MISSING":
            raise
        raise refuse(f"{runtime}: {error.code}: {error.what}") from error
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def as_float(values: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """Return values as an input of this type takes them: an artifact may take integers as real numbers."""
    return (
        values.astype(dtype)
        if dtype is not None and np.dtype(dtype).kind == "f" and values.dtype.kind in "iu"
        else values
    )


def few_samples(samples: Path) -> dict[str, NDArray[Any]]:
    """Return the calibration samples that a search runs again and again: few, evenly spread, always the same."""
    found = read_samples(samples, "calibration")
    chosen = spread(len(next(iter(found.values()))), _SEARCH_SAMPLES)
    return {name: np.asarray(array[chosen]) for name, array in found.items()}
