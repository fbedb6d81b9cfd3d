"""Has the layers found at which candidates' errors open, in worker processes, and writes them into their records."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edgeops.compiler.builder import build
from edgeops.compiler.engine import Failed, Step
from edgeops.compiler.gates import FLOAT_COSINE_MIN, FLOAT_SQNR_MIN_DB
from edgeops.compiler.holding import held_by, split_input
from edgeops.compiler.search import Ground, Tried
from edgeops.compiler.store import Stored
from edgeops.contracts.evidence import CandidateEvidence, Opening
from edgeops.contracts.handover import Handover
from edgeops.contracts.profile import Precision

ALL = "all"


def explained(
    ground: Ground,
    handover: Handover,
    ingested: Stored,
    tried: Sequence[Tried],
    records: Sequence[CandidateEvidence],
    scheme: str,
) -> tuple[CandidateEvidence, ...]:
    """Return the records with `opens` or `not_explained` filled.

    Args:
        ground: What the candidates started from.
        handover: Its preprocessing and gates.
        ingested: The model as it was handed over.
        tried: The candidates.
        records: Of each of them.
        scheme: Explain this one only; `ALL`: every one.
    """
    floats = {one.candidate.runtime: one.artifact for one in tried if one.candidate.precision is Precision.FLOAT32}
    return tuple(
        _explain(ground, handover, ingested, floats.get(one.candidate.runtime), one, record)
        if scheme in (ALL, record.scheme)
        else record
        for one, record in zip(tried, records, strict=True)
    )


def _explain(
    ground: Ground,
    handover: Handover,
    ingested: Stored,
    float_artifact: Stored | None,
    one: Tried,
    record: CandidateEvidence,
) -> CandidateEvidence:
    lossless = one.candidate.precision is Precision.FLOAT32
    plain = ingested if lossless else float_artifact
    if one.artifact is None or plain is None:
        return msgspec.structs.replace(record, not_explained="it, or the float artifact, could not be built")
    if ground.traits.ready is not None:
        return msgspec.structs.replace(record, not_explained="it is what was handed over")
    holds = held_by(one.candidate.runtime, ready=False)
    inputs = [split_input(item, holds)[1] for item in handover.inputs]
    roles = {"plain": plain, "samples": ground.fed[one.candidate.runtime]}
    step = Step(
        name="explain",
        parameters={
            "runtime": one.candidate.runtime,
            "plain_runtime": "onnxruntime" if lossless else one.candidate.runtime,
            "cosine_min": FLOAT_COSINE_MIN if lossless else handover.gates.cosine_min,
            "sqnr_min_db": FLOAT_SQNR_MIN_DB if lossless else handover.gates.sqnr_min_db,
            "inputs": msgspec.to_builtins(inputs) if lossless else [],
        },
        inputs=("plain", "samples"),
    )
    built = build(ground.machine, [step], one.artifact, roles)
    if isinstance(built, Failed):
        return msgspec.structs.replace(record, not_explained=built.failure.what)
    return msgspec.structs.replace(record, opens=msgspec.convert(built.notes["opens"], tuple[Opening, ...]))
