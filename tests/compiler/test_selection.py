"""Selection: the fastest that passes, ties by the profile's order, and a reason for everyone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from edgeops.compiler.candidates import Candidate
from edgeops.compiler.search import Tried
from edgeops.compiler.selection import missed, select
from edgeops.compiler.store import Product, Stored
from edgeops.contracts.bundle import FileEntry
from edgeops.contracts.evidence import GateResult, Latency, OutputError
from edgeops.contracts.profile import Precision, Runtime

RUNTIME = Runtime(name="onnxruntime", runtime_min="1.18", precisions=(Precision.INT8, Precision.FLOAT32), source="test")


def tried(
    scheme: str,
    rank: int,
    p50: float | None,
    *,
    size: int = 100,
    cosine: float = 0.999,
    miss: float = 0.0,
    precision: Precision = Precision.INT8,
) -> Tried:
    notes: dict[str, Any] = {
        "end_to_end": [
            msgspec.to_builtins(
                OutputError(output="y", cosine=cosine, sqnr_db=30, max_abs=0, agreement=None, samples=9)
            )
        ],
    }
    times: dict[str, Any] = {
        "float_latency": msgspec.to_builtins(Latency(p50_ms=1.0, p95_ms=1.0, runs=9)),
        "yardstick_latency": msgspec.to_builtins(Latency(p50_ms=1.0, p95_ms=1.0, runs=9)),
        "latency": None if p50 is None else msgspec.to_builtins(Latency(p50_ms=p50, p95_ms=p50, runs=9)),
    }
    gate = GateResult(gate="cosine:y", measured=cosine - miss, limit=cosine, passed=miss == 0, binding=True)
    artifact = Stored(Path("/"), Product(files={"model.onnx": FileEntry(sha256="", length=size)}))
    return Tried(
        Candidate(scheme, "onnxruntime", precision, ()),
        RUNTIME,
        (rank, 0, 0, 0),
        artifact=artifact,
        judged=Stored(Path("/"), Product(notes=notes)),
        timed=Stored(Path("/"), Product(notes=times)),
        results=(gate,),
    )


# The baseline of every other; it never wins here.
FLOAT = tried("float", 9, 1.0, miss=0.9, size=900, precision=Precision.FLOAT32)


def test_fastest_wins_where_latency_counts():
    choice = select([tried("a", 0, 2.0), tried("b", 1, 1.0), FLOAT], own_arch=True)
    assert [record.chosen for record in choice.records] == [False, True, False]
    assert "2.00× the latency of b" in choice.records[0].reason


def test_times_of_different_minutes_are_not_compared():
    """The machine was three times slower while the second was measured: against its own baseline it is the faster."""
    slow_minute = tried("b", 1, 1.5)
    notes = dict(slow_minute.timed.notes, float_latency=msgspec.to_builtins(Latency(p50_ms=3.0, p95_ms=3.0, runs=9)))
    slow_minute = slow_minute._replace(timed=Stored(Path("/"), Product(notes=notes)))
    choice = select([tried("a", 0, 0.9), slow_minute, FLOAT], own_arch=True)
    assert choice.best is slow_minute


def test_ties_within_the_noise_go_by_the_profiles_order():
    choice = select([tried("late", 1, 1.00), tried("early", 0, 1.04), FLOAT], own_arch=True)
    assert choice.best is not None
    assert choice.best.candidate.scheme == "early"
    assert "as fast, but later" in choice.records[0].reason


def test_order_decides_on_another_architecture():
    choice = select([tried("fast", 1, 0.1), tried("first", 0, 9.0), FLOAT], own_arch=False)
    assert choice.best is not None
    assert choice.best.candidate.scheme == "first"


def test_what_fails_never_wins_and_says_by_how_much():
    choice = select([tried("fast", 0, 0.1, miss=0.0999), tried("slow", 1, 9.0), FLOAT], own_arch=True)
    assert choice.passed
    assert choice.records[1].chosen
    assert "misses by 10.0%" in choice.records[0].reason


def test_if_nothing_passes_the_nearest_is_kept_and_not_chosen():
    choice = select([tried("far", 0, 1.0, miss=0.5), tried("near", 1, 1.0, miss=0.01), FLOAT], own_arch=True)
    assert not choice.passed
    assert choice.best is not None
    assert choice.best.candidate.scheme == "near"
    assert not any(record.chosen for record in choice.records)
    assert "best of those that fail" in choice.records[1].reason
    assert "cosine:y" in missed(choice.best)


def test_lock_names_the_only_one_that_may_win():
    choice = select([tried("a", 0, 1.0), tried("b", 1, 2.0), FLOAT], own_arch=False, named="b")
    assert choice.best is not None
    assert choice.best.candidate.scheme == "b"
    assert "named by the lock" in choice.records[1].reason
    failed = select([tried("a", 0, 1.0), tried("b", 1, 2.0, miss=0.1), FLOAT], own_arch=False, named="b")
    assert not failed.passed


def test_pareto_front_has_what_no_other_beats_in_everything():
    one = tried("small", 0, 2.0, size=10)
    other = tried("fast", 1, 1.0, size=50)
    worse = tried("neither", 2, 3.0, size=60)
    assert [record.pareto for record in select([one, other, worse, FLOAT], own_arch=True).records] == [
        True,
        True,
        False,
        False,
    ]


def test_candidate_that_could_not_be_built_keeps_its_reason():
    broken = Tried(Candidate("x", "onnxruntime", Precision.INT8, ()), RUNTIME, (0, 0, 0, 0), reason="crashed (SIGSEGV)")
    choice = select([broken, tried("a", 1, 1.0), FLOAT], own_arch=True)
    assert choice.records[0].reason == "crashed (SIGSEGV)"
    assert not choice.records[0].passed
    assert select([broken], own_arch=True).best is None
