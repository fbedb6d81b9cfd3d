"""Golden vectors: replayed on the compile host, in rigs and on every device; they catch damage and lost quality."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeops.contracts.bundle import BundleManifest
from edgeops.contracts.errors import EdgeopsError
from edgeops.runtimes.bundle_session import BundleSession
from edgeops.runtimes.compare import cosine


class GoldenVectors(NamedTuple):
    """Inputs and both references, by tensor name, each [count, *shape]."""

    inputs: dict[str, NDArray[Any]]
    source_outputs: dict[str, NDArray[Any]]
    artifact_outputs: dict[str, NDArray[Any]]


class Replay(NamedTuple):
    """What a replay found: the output that used most of its tolerance, its largest difference, and mean cosine."""

    worst_output: str
    max_abs_diff: float
    min_cosine: float
    vectors: int


def load(directory: Path, manifest: BundleManifest) -> GoldenVectors:
    """Read a checked bundle's golden vectors.

    Raises:
        EdgeopsError: E-BUNDLE-INVALID; a file is no array, or not of the manifest's shape and type.
    """
    golden = manifest.golden
    inputs = {spec.name: (spec.dtype, spec.shape) for spec in manifest.inputs}
    outputs = {info.tensor.name: (info.tensor.dtype, info.tensor.shape) for info in manifest.outputs}
    parts = []
    for files, specs in ((golden.inputs, inputs), (golden.source_outputs, outputs), (golden.artifact_outputs, outputs)):
        parts.append({name: _read(directory / file, golden.count, *specs[name]) for name, file in files.items()})
    return GoldenVectors(*parts)


def replay(session: BundleSession, manifest: BundleManifest, vectors: GoldenVectors) -> Replay:
    """Run all golden vectors and hold the outputs against both references.

    Raises:
        EdgeopsError: E-SELFTEST-GOLDEN; an output is not finite where its reference is, is farther from the
            artifact's own output than its tolerance, or less like the float source than its tolerance.
    """
    answers = [
        session.run({name: array[index] for name, array in vectors.inputs.items()})
        for index in range(manifest.golden.count)
    ]
    found: list[tuple[float, str, float, float]] = []
    for name, reference in vectors.artifact_outputs.items():
        tolerance = manifest.golden.tolerances[name]
        got = np.stack([answer[name] for answer in answers])
        with np.errstate(invalid="ignore"):
            differences = np.abs(got.astype(np.float64) - reference.astype(np.float64))
        # The same infinity on both sides is the right answer, though its difference is not a number.
        differences[got == reference] = 0.0
        difference = float(differences.max(initial=0.0))
        if not difference <= tolerance.artifact_max_abs:
            raise EdgeopsError(
                "E-SELFTEST-GOLDEN",
                f"output {name!r} is {difference:.4g} from its golden vector, allowed is "
                f"{tolerance.artifact_max_abs:.4g} ({tolerance.reason})",
                "The artifact or its runtime is damaged: compile it again.",
            )
        source = vectors.source_outputs.get(name)
        similar = cosine(source, got) if source is not None else 1.0
        if not similar >= tolerance.source_min_cosine:
            raise EdgeopsError(
                "E-SELFTEST-GOLDEN",
                f"output {name!r} has cosine {similar:.5f} to the float source, at least "
                f"{tolerance.source_min_cosine:.5f} is needed",
                "The artifact lost its quality on this device: compile it again.",
            )
        used = difference / tolerance.artifact_max_abs if tolerance.artifact_max_abs else 0.0
        found.append((used, name, difference, similar))
    _, worst, difference, _ = max(found)
    return Replay(worst, difference, min(item[3] for item in found), manifest.golden.count)


def _read(path: Path, count: int, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise EdgeopsError("E-BUNDLE-INVALID", f"{path} is no array: {error}", "Compile the bundle again.") from error
    fits = array.ndim == len(shape) + 1 and all(
        want in (-1, have) for want, have in zip((count, *shape), array.shape, strict=True)
    )
    if array.dtype != np.dtype(dtype) or not fits:
        raise EdgeopsError(
            "E-BUNDLE-INVALID",
            f"{path} is {array.dtype}{list(array.shape)}, the manifest says {dtype}{[count, *shape]}",
            "Compile the bundle again.",
        )
    return array
