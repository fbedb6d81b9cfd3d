"""Gates: each can fail a candidate, what cannot be evaluated fails, and only binding ones decide."""

from __future__ import annotations

import math

import msgspec
import pytest

from edgeops.compiler.gates import Measured, describe, distance, judge, passed, settings_to_pass, tightest
from edgeops.contracts.evidence import Latency, Metric, OutputError
from edgeops.contracts.handover import Gates
from edgeops.contracts.profile import Budgets, Precision

GOOD = OutputError(output="y", cosine=0.999, sqnr_db=25.0, max_abs=0.1, agreement=0.99, samples=300)
METRIC = Metric(
    name="accuracy", source=0.9, artifact=0.9, drop=0.0, drop_low=-0.01, drop_high=0.01, confidence=0.95, samples=300
)
FLOAT = Latency(p50_ms=2.0, p95_ms=3.0, runs=50)
BUDGETS = Budgets(latency_p95_ms=5.0, size_mib=1.0, peak_memory_mib=100.0)


def measured(**changes) -> Measured:
    whole = Measured(
        precision=Precision.INT8,
        outputs=(GOOD,),
        metric=METRIC,
        latency=Latency(p50_ms=1.0, p95_ms=1.5, runs=50),
        float_latency=FLOAT,
        size_bytes=1000,
        peak_memory_mib=50.0,
    )
    return whole._replace(**changes)


def failing(candidate: Measured, *, own_arch: bool = True, gates: Gates = Gates()) -> list[str]:  # noqa: B008
    results = judge(candidate, gates, BUDGETS, own_arch=own_arch)
    failed = [result.gate for result in results if result.binding and not result.passed]
    assert passed(results) == (not failed)
    return failed


def error(**changes) -> tuple[OutputError, ...]:
    return (msgspec.structs.replace(GOOD, **changes),)


def test_good_candidate_passes_every_gate():
    assert failing(measured()) == []


@pytest.mark.parametrize(
    ("changes", "gate"),
    [
        ({"outputs": error(cosine=0.98)}, "cosine:y"),
        ({"outputs": error(cosine=math.nan)}, "cosine:y"),
        ({"outputs": error(sqnr_db=14.9)}, "sqnr-db:y"),
        ({"outputs": error(agreement=0.96)}, "agreement:y"),
        ({"metric": msgspec.structs.replace(METRIC, drop_high=0.021)}, "metric-drop"),
        ({"latency": Latency(p50_ms=2.2, p95_ms=2.4, runs=50)}, "latency-ratio"),
        ({"latency": Latency(p50_ms=1.0, p95_ms=5.1, runs=50)}, "latency-p95-ms"),
        ({"size_bytes": 2 << 20}, "size-mib"),
        ({"peak_memory_mib": 101.0}, "peak-memory-mib"),
        ({"peak_memory_mib": None}, "peak-memory-mib"),
    ],
)
def test_each_gate_can_stop_a_candidate(changes, gate: str):
    assert failing(measured(**changes)) == [gate]


def test_latency_binds_on_the_profiles_own_architecture_only():
    slow = measured(latency=Latency(p50_ms=9.0, p95_ms=9.5, runs=50))
    assert failing(slow) == ["latency-ratio", "latency-p95-ms"]
    assert failing(slow, own_arch=False) == []
    shown = {result.gate: result for result in judge(slow, Gates(), BUDGETS, own_arch=False)}
    assert not shown["latency-ratio"].passed


def test_float_is_held_to_the_source_more_tightly_and_not_to_the_metric():
    worse = msgspec.structs.replace(METRIC, drop_high=0.5)
    assert failing(measured(precision=Precision.FLOAT32, metric=worse, outputs=error(cosine=1.0, sqnr_db=90.0))) == []
    assert failing(measured(precision=Precision.FLOAT32)) == ["cosine:y", "sqnr-db:y"]


def test_too_few_samples_say_how_many_would_do():
    few = msgspec.structs.replace(METRIC, drop_high=0.1, samples=20)
    result = next(
        one for one in judge(measured(metric=few), Gates(), BUDGETS, own_arch=True) if one.gate == "metric-drop"
    )
    assert not result.passed
    assert "189 could" in result.detail


def test_distance_and_words_name_the_figures():
    result = judge(measured(outputs=error(agreement=0.873)), Gates(), BUDGETS, own_arch=True)[2]
    assert distance(result) == pytest.approx(0.1)
    assert describe(result).startswith("agreement:y 0.873, needs 0.97")
    nothing = judge(measured(peak_memory_mib=None), Gates(), BUDGETS, own_arch=True)[-1]
    assert math.isinf(distance(nothing))
    assert "not measured" in describe(nothing)


def test_tightest_takes_the_smaller_limit_of_each():
    both = tightest(Budgets(size_mib=2.0, latency_p95_ms=5.0), Budgets(size_mib=1.0, peak_memory_mib=9.0))
    assert both == Budgets(size_mib=1.0, latency_p95_ms=5.0, peak_memory_mib=9.0)


BAD = measured(
    outputs=(
        *error(cosine=0.98123456, sqnr_db=11.98765, agreement=0.91239),
        *error(output="z", cosine=0.97, sqnr_db=14.0, agreement=0.93),
    ),
    metric=msgspec.structs.replace(METRIC, drop_high=0.0612345),
    latency=Latency(p50_ms=2.5, p95_ms=12.34567, runs=50),
    size_bytes=3 << 20,
    peak_memory_mib=250.1234,
)


def loosen(settings, *, skip: str = "") -> tuple[Gates, Budgets]:
    """Return gates and budgets with all settings, or with all but one."""
    values = {one.setting: one.needed for one in settings if one.setting != skip}
    gates = {name[6:]: value for name, value in values.items() if name.startswith("gates.")}
    budgets = {name[8:]: value for name, value in values.items() if name.startswith("budgets.")}
    return msgspec.structs.replace(Gates(), **gates), msgspec.structs.replace(BUDGETS, **budgets)


def test_settings_to_pass_let_a_candidate_pass_and_each_is_needed():
    """All of them pass; without any one of them it fails; a limit one more step towards the old one fails too."""
    settings = settings_to_pass(judge(BAD, Gates(), BUDGETS, own_arch=True), Precision.INT8)
    assert len(settings) == 8
    assert passed(judge(BAD, *loosen(settings), own_arch=True))
    for index, one in enumerate(settings):
        assert not passed(judge(BAD, *loosen(settings, skip=one.setting), own_arch=True)), one
        tighter = msgspec.structs.replace(one, needed=one.needed + (one.now - one.needed) * 0.01)
        nearly = (*settings[:index], tighter, *settings[index + 1 :])
        assert not passed(judge(BAD, *loosen(nearly), own_arch=True)), one


def test_settings_to_pass_are_none_where_no_setting_would_do():
    """What was not measured, or a float artifact below the compiler's own floor, passes under no setting."""
    unknown = judge(measured(peak_memory_mib=None), Gates(), BUDGETS, own_arch=True)
    assert settings_to_pass(unknown, Precision.INT8) == ()
    wrong = judge(measured(precision=Precision.FLOAT32, outputs=error(cosine=0.5)), Gates(), BUDGETS, own_arch=True)
    assert settings_to_pass(wrong, Precision.FLOAT32) == ()
    near = measured(precision=Precision.FLOAT32, outputs=error(cosine=0.99999, sqnr_db=65.0))
    strict = msgspec.structs.replace(Gates(), cosine_min=1.0, sqnr_min_db=50.0)
    settings = settings_to_pass(judge(near, strict, BUDGETS, own_arch=True), Precision.FLOAT32)
    assert passed(judge(near, *loosen(settings), own_arch=True))
    assert settings_to_pass(judge(measured(), Gates(), BUDGETS, own_arch=True), Precision.INT8) == ()
