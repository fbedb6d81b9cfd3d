"""Bundles and evidence by hand, in which every text can be chosen: what a stranger's model or labels could say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from bundle_making import make_bundle

from edgeops.compiler.pictures import png
from edgeops.contracts.bundle import BundleManifest, DriftReference, Histogram
from edgeops.contracts.evidence import (
    CandidateEvidence,
    Evidence,
    GateResult,
    Host,
    Latency,
    Metric,
    OutputError,
    Source,
)
from edgeops.contracts.examination import Confusion, Examination, HandedOver, Why, WorstSample
from edgeops.releases.pieces import Piece

HOSTILE = (
    "\"><script>fetch('//evil.example')</script><img src=x onerror=alert(1)>"
    "</title></style></svg>' onload='x' ![p](http://evil.example/p.png) [l](javascript:x) | `c` \u202ereversed\x00"
)


def plain(text: str) -> str:
    return text


def hostile(text: str) -> str:
    return text + HOSTILE


def piece(
    folder: Path, say: Callable[[str], str] = plain, *, profile: str = "intel-nuc", artifact: bytes = b"weights"
) -> Piece:
    """A piece whose free texts all went through `say`."""
    bundle = make_bundle(folder, profile=profile, artifact=artifact)
    manifest = said_manifest(bundle.manifest, say)
    return Piece(manifest, bundle.digest, said_evidence(bundle.digest, manifest, say))


def said_manifest(manifest: BundleManifest, say: Callable[[str], str]) -> BundleManifest:
    output = msgspec.structs.replace(
        manifest.outputs[0], kind="probabilities", labels=tuple(say(label) for label in ("no", "yes", "perhaps", "?"))
    )
    spread = Histogram(edges=(0.0, 1.0), counts=(1, 5, 2))
    return msgspec.structs.replace(
        manifest,
        runtime=say("onnxruntime"),
        runtime_min=say("1.18"),
        scheme=say("float"),
        arch=say("x86_64"),
        inputs=(msgspec.structs.replace(manifest.inputs[0], name=say("x")),),
        outputs=(output,),
        files={say(name): entry for name, entry in manifest.files.items()} | manifest.files,
        drift=DriftReference(
            samples=8, elements_per_sample=4, inputs={say("x"): spread}, outputs={say("x"): spread}, confidence=spread
        ),
    )


def said_evidence(digest: str, manifest: BundleManifest, say: Callable[[str], str]) -> Evidence:
    error = OutputError(output=say("x"), cosine=0.999, sqnr_db=30.0, max_abs=0.1, agreement=0.9, samples=10)
    metric = Metric(
        name=say("accuracy"), source=0.95, artifact=0.9, drop=0.05, drop_low=0.0, drop_high=0.1, confidence=0.95,
        samples=10, source_interval=(0.9, 1.0), artifact_interval=(0.8, 0.95),
    )  # fmt: skip
    gate = GateResult(gate=say("cosine:x"), measured=0.999, limit=0.99, passed=True, binding=True, detail=say("n=10"))
    missed = msgspec.structs.replace(gate, measured=0.5, passed=False)
    chosen = CandidateEvidence(
        scheme=manifest.scheme, runtime=manifest.runtime, precision=say("int8"), size_bytes=2048, conversion=(),
        quantization=(error,), end_to_end=(error,), metric=metric, latency=Latency(p50_ms=1.5, p95_ms=2.0, runs=50),
        float_latency=Latency(p50_ms=3.0, p95_ms=4.0, runs=50), peak_memory_mib=60.0, gates=(gate,), passed=True,
        chosen=True, pareto=True, reason=say("fastest"), source=Source.MEASURED_DEVICE, measured_on=say("pi-1"),
    )  # fmt: skip
    base = msgspec.structs.replace(
        chosen, scheme=say("fp32"), precision="fp32", size_bytes=8192, conversion=(error,), quantization=(),
        chosen=False, passed=False, gates=(missed,), latency=Latency(p50_ms=3.0, p95_ms=4.0, runs=50), pareto=False,
        source=Source.MEASURED_HOST, measured_on="", reason=say("misses cosine"),
    )  # fmt: skip
    picture = png(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    worst = (
        WorstSample(
            index=3, why=Why.CHANGED, truth=0, source=0, artifact=1, confidence=0.7, wrong=1, input=say("x"),
            picture=picture,
        ),
        WorstSample(index=4, why=Why.WRONG, truth=2, source=1, artifact=1, confidence=0.6, trace=((0.0, 1.0, 0.5),)),
    )  # fmt: skip
    table = Confusion(support=(4, 3, 3, 0), decided=(4, 4, 2, 0), right=(3, 3, 2, 0), pairs=((0, 1, 1), (2, 0, 1)))
    return Evidence(
        bundle=digest, model="adder", profile=manifest.profile,
        host=Host(
            arch=say("x86_64"), cpu=say("a cpu"), cores=2, python=say("3.11"), tools={say("onnx"): say("1.18")},
        ),
        candidates=(base, chosen), calibration_samples=4, evaluation_samples=10, created_at_s=1.8e9,
        arch=say("aarch64"),
        handed_over=HandedOver(
            digest=say("sha256:aa"), file=say("model.onnx"), description=say("adds"),
            files={say("model.onnx"): "ab" * 32},
            opsets={say("ai.onnx"): 17}, operators={say("Add"): 2}, weights_bytes=4096,
        ),
        examination=Examination(
            output=manifest.outputs[0].tensor.name, kind="probabilities", metric="accuracy", data="evaluation",
            samples=10, source=table, artifact=table, worst=worst,
        ),
    )  # fmt: skip
