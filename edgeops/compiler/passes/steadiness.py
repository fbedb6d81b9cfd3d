"""How much an artifact's own answers move when only the arithmetic's order or kernels change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops.compiler.passes import Outcome, Work, refuse
from edgeops.compiler.passes.running import runtime_modules
from edgeops.compiler.passes.samples import read_samples
from edgeops.contracts.bundle import BundleManifest
from edgeops.contracts.errors import EdgeopsError
from edgeops.runtimes.bundle_session import open_session

# No more than the smallest boards have: threads that wait for a processor take long and show nothing new.
_THREADS = (1, 2)


class Steadiness:
    """Run an artifact with other thread counts and other kernels: what differs is no damage.

    Another processor picks other kernels too, so this is a stand-in for it that can be measured here.
    """

    tools = ("numpy", "onnxruntime", "openvino", "ai-edge-litert", "tflite-micro")
    requires: frozenset[str] = frozenset({"baked"})
    ensures = frozenset({"steadiness"})

    def preload(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what its worker begins with."""
        return runtime_modules(parameters["manifest"]["runtime"])

    def run(self, work: Work) -> Outcome:
        """Parameters: `manifest`, as `judge` bound it; `indices` of the judged samples. Inputs: `samples`, `judged`.

        Notes: `deviation`, output → largest absolute difference to the artifact's plain answers.
        """
        manifest = msgspec.convert(work.parameters["manifest"], BundleManifest)
        samples = read_samples(work.inputs["samples"], "judged")
        plain = read_samples(work.inputs["judged"], "outputs")
        indices = list(work.parameters["indices"])
        deviation = dict.fromkeys(plain, 0.0)
        tried = 0
        for options, threads in _variants(manifest):
            try:
                answers = _answers(work.source, manifest, options, threads, samples, indices)
            except EdgeopsError:
                # A kernel set that cannot run this artifact says nothing about those that can.
                continue
            tried += 1
            for name, values in answers.items():
                difference = np.abs(values.astype(np.float64) - np.asarray(plain[name])[indices]).max(initial=0.0)
                deviation[name] = max(deviation[name], float(difference))
        if not tried:
            raise refuse("the artifact runs in no variant")
        return Outcome(frozenset({"steadiness"}), {"deviation": deviation, "variants": tried})


def _variants(manifest: BundleManifest) -> list[tuple[dict[str, str], int]]:
    own = dict(manifest.options)
    variants = [(own, threads) for threads in _THREADS]
    if manifest.runtime == "onnxruntime":
        variants.append(({**own, "graph_optimization": "off"}, 1))
    if manifest.runtime == "litert":
        variants.append(({**own, "xnnpack": "off"}, 1))
    return variants


def _answers(
    folder: Path,
    manifest: BundleManifest,
    options: dict[str, str],
    threads: int,
    samples: dict[str, NDArray[Any]],
    indices: list[int],
) -> dict[str, NDArray[Any]]:
    varied = msgspec.structs.replace(manifest, options=options)
    with open_session(folder, varied, threads=threads) as session:
        rows = [session.run({name: np.asarray(array[index]) for name, array in samples.items()}) for index in indices]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
