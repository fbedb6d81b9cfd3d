"""What a rollout does next, as a table and as properties over any counts."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.sketches import QuantileSketch
from edgeops.control.rollout.decide import Action, Counts, Decision, GroupView, RolloutView, decide
from edgeops.control.rollout.policy import Gates, Policy, check_policy, group_sizes, policy_text, read_policy
from edgeops.control.rollout.regression import TELEMETRY_GATES, Arms, Requests

NOW = 10_000.0
A, C = Action, Counts


def view(
    *profiles_of_first: Counts,
    gates: Gates | None = None,
    started: float | None = NOW - 10,
    groups: int = 2,
    **more: object,
) -> RolloutView:
    """A rollout whose first group is under way with these profiles p0, p1, …, before further groups that wait."""
    first = GroupView("1", started, False, {f"p{i}": counts for i, counts in enumerate(profiles_of_first)})
    waiting = [GroupView(str(i + 2), None, False, {"p0": Counts(silent=5)}) for i in range(groups - 1)]
    policy = policy_text(Policy(groups=("50%", "100%"), gates=gates or Gates(timeout_s=100)))
    return RolloutView(policy, [first, *waiting], **more)  # type: ignore[arg-type]


LOOSE = Gates(success_min=0.9, failure_max=0.1, min_count=5, timeout_s=100)


@pytest.mark.parametrize(
    ("case", "given_view", "now_s", "action"),
    [
        ("a first group that waits is started", view(started=None), NOW, A.START_GROUP),
        ("all confirmed goes on", view(C(confirmed=3)), NOW, A.START_GROUP),
        ("all confirmed in the last group finishes", view(C(confirmed=3), groups=1), NOW, A.FINISH),
        ("some on their way waits", view(C(confirmed=2, running=1)), NOW, A.WAIT),
        ("nobody has reported waits", view(C(silent=3)), NOW, A.WAIT),
        ("one failure under a strict gate stops", view(C(confirmed=2, failed=1)), NOW, A.STOP),
        ("one rejection stops", view(C(confirmed=2, rejected=1)), NOW, A.STOP),
        ("on its way at the end times out", view(C(confirmed=2, running=1)), NOW + 90, A.TIME_OUT),
        ("timed out counts as failed", view(C(confirmed=2, timed_out=1)), NOW + 90, A.STOP),
        ("a silent device is not counted at the end", view(C(confirmed=2, silent=1)), NOW + 90, A.START_GROUP),
        ("a held device is not counted at the end", view(C(confirmed=2, held=1)), NOW + 90, A.START_GROUP),
        ("nobody reported and time is over pauses", view(C(silent=3)), NOW + 90, A.PAUSE),
        ("too few reported at the end pauses", view(C(confirmed=4, silent=6), gates=LOOSE), NOW + 90, A.PAUSE),
        ("too few failures to judge wait", view(C(failed=1, running=19), gates=LOOSE), NOW, A.WAIT),
        ("enough above the limit stops at once", view(C(failed=2, confirmed=3, running=95), gates=LOOSE), NOW, A.STOP),
        ("failures within the limit go on", view(C(failed=1, confirmed=19), gates=LOOSE), NOW, A.START_GROUP),
        ("a certain pass goes on", view(C(confirmed=95, running=5), gates=LOOSE), NOW, A.START_GROUP),
        ("a certain failure stops", view(C(failed=2, running=8), gates=LOOSE), NOW, A.STOP),
        (
            "a profile that nobody heard of pauses, though the others pass",
            view(C(confirmed=30), C(silent=1), gates=LOOSE),
            NOW + 90,
            A.PAUSE,
        ),
        ("an unstarted group of no devices passes", view(gates=LOOSE), NOW, A.START_GROUP),
    ],
)  # fmt: skip
def test_decision_table(case: str, given_view: RolloutView, now_s: float, action: Action) -> None:
    decision = decide(given_view, now_s)
    assert decision.action is action, (case, decision)
    assert decision.reason


def test_stop_names_gate_figures_and_failure_codes() -> None:
    stopped = decide(view(Counts(confirmed=1, failed=2, codes={"E-SELFTEST-GOLDEN": 2})), NOW)
    assert stopped.action is Action.STOP
    for part in ("failure_max", "0.6667 > 0 over 3 reports", "E-SELFTEST-GOLDEN ×2"):
        assert part in stopped.reason


def test_one_bad_profile_stops_alone_while_the_group_is_within_its_gates() -> None:
    good, bad = Counts(confirmed=95), Counts(failed=5, codes={"E-TRIAL": 5})
    decision = decide(view(good, bad, gates=LOOSE), NOW)
    assert decision.action is Action.START_GROUP
    assert list(decision.stop_profiles) == ["p1"]
    assert "E-TRIAL ×5" in decision.stop_profiles["p1"]
    # Negative control: without the bad profile nothing is stopped.
    assert decide(view(good, gates=LOOSE), NOW).stop_profiles == {}


def test_a_bad_profile_stops_alone_even_where_its_failures_would_be_too_many_for_the_group() -> None:
    good, bad = Counts(confirmed=20), Counts(failed=20, codes={"E-TRIAL": 20})
    decision = decide(view(good, bad, gates=LOOSE), NOW)
    assert (decision.action, list(decision.stop_profiles)) == (Action.START_GROUP, ["p1"])
    assert decide(view(bad, bad, gates=LOOSE), NOW).action is Action.STOP
    # Failures that are thin in each profile, but too many over all that are left, stop everything.
    thin = Counts(confirmed=3, failed=1)
    spread = Gates(success_min=0.0, failure_max=0.2, min_count=5, timeout_s=100)
    assert decide(view(thin, thin, thin, gates=spread), NOW - 5).action is Action.STOP


def test_a_stopped_profile_is_not_waited_for_and_the_end_says_so() -> None:
    group = GroupView("1", NOW - 10, False, {"p0": Counts(confirmed=20), "p1": Counts(silent=4)})
    policy = policy_text(Policy(groups=("100%",), gates=LOOSE))
    decision = decide(RolloutView(policy, [group], frozenset({"p1"})), NOW)
    assert decision.action is Action.STOP
    assert "without profiles p1" in decision.reason
    assert decision.finish_group == 0
    # Negative control: the same counts without the stop are waited for.
    assert decide(RolloutView(policy, [group]), NOW).action is Action.WAIT


@pytest.mark.parametrize(
    "policy",
    [
        b"",
        b"null",
        b"{}",
        b"\xff\xfe",
        b'{"groups": ["100%"], "gates": {"failure_max": "ten percent"}}',
        b'{"groups": ["100%"], "gates": {"failure_max": 1e999}}',
        b'{"groups": ["100%"], "gates": {"failure_max": -0.1}}',
        b'{"groups": ["100%"], "gates": {"success_min": 2}}',
        b'{"groups": ["100%"], "gates": {"min_count": 0}}',
        b'{"groups": ["100%"], "gates": {"timeout_s": 0}}',
        b'{"groups": ["100%"], "gates": {"failure_maximum": 0.1}}',
        b'{"groups": ["100%"], "schedule": {"not_before_s": 1e300}}',
        b'{"groups": []}',
        b'{"groups": ["100%"], "gates": {"success_min": 0, "failure_max": 1}}',
    ],
)
def test_gates_that_cannot_be_read_stop(policy: bytes) -> None:
    """hawkBit's flaw is the reverse: a malformed threshold is logged and the rollout goes on."""
    good = view(Counts(confirmed=3))
    decision = decide(good._replace(policy=policy), NOW)
    assert decision.action is Action.STOP
    assert "cannot be evaluated" in decision.reason
    assert decide(good, NOW).action is Action.START_GROUP  # negative control


@pytest.mark.parametrize("now_s", [math.nan, math.inf])
def test_no_clock_stops(now_s: float) -> None:
    assert decide(view(Counts(confirmed=3)), now_s).action is Action.STOP


def test_no_groups_or_impossible_counts_stop() -> None:
    assert decide(view(Counts(confirmed=3))._replace(groups=[]), NOW).action is Action.STOP
    assert decide(view(Counts(confirmed=3, failed=-1)), NOW).action is Action.STOP


counts = st.builds(
    Counts,
    *[st.integers(0, 12)] * 7,
)
shares = st.floats(0, 1, allow_nan=False)
gates_st = st.builds(
    Gates, success_min=shares, failure_max=shares, min_count=st.integers(1, 8), timeout_s=st.just(100.0)
).filter(lambda g: not (g.success_min == 0 and g.failure_max == 1))


any_view = (st.lists(counts, min_size=1, max_size=3), gates_st, st.floats(NOW - 20, NOW + 200))


@given(*any_view)
@settings(max_examples=300, deadline=None)
def test_never_goes_on_over_a_failed_gate(profiles: list[Counts], gates: Gates, now_s: float) -> None:
    """Whatever the counts: who goes on holds both gates with enough reports, for the group and each profile left."""
    check_never_over_a_failed_gate(profiles, gates, now_s)


@pytest.mark.full
@given(*any_view)
@settings(max_examples=6_000, deadline=None)
def test_never_goes_on_over_a_failed_gate_at_length(profiles: list[Counts], gates: Gates, now_s: float) -> None:
    check_never_over_a_failed_gate(profiles, gates, now_s)


def check_never_over_a_failed_gate(profiles: list[Counts], gates: Gates, now_s: float) -> None:
    decision = decide(view(*profiles, gates=gates), now_s)
    if decision.action not in (Action.START_GROUP, Action.FINISH):
        return
    kept = [c for i, c in enumerate(profiles) if f"p{i}" not in decision.stop_profiles and c.total]
    whole = Counts()
    for part in kept:
        whole = whole.plus(part)
    for judged in [whole, *kept]:
        if not judged.total:
            continue
        assert judged.reported >= min(gates.min_count, judged.total)
        assert judged.confirmed / judged.reported >= gates.success_min
        assert judged.bad / judged.reported <= gates.failure_max
        if now_s < NOW - 10 + gates.timeout_s:
            # Before the deadline no report that may still come can undo it.
            assert judged.confirmed / judged.total >= gates.success_min
            assert (judged.bad + judged.open) / judged.total <= gates.failure_max


@given(st.lists(counts, min_size=1, max_size=3), gates_st)
@settings(max_examples=150, deadline=None)
def test_a_group_never_waits_for_ever(profiles: list[Counts], gates: Gates) -> None:
    """Once its time is over, a group goes on, pauses, stops or times its devices out: offline ones stall nothing."""
    late = NOW + 1000
    assert decide(view(*profiles, gates=gates), late).action is not Action.WAIT
    settled = [
        c._replace(timed_out=c.timed_out + c.running + c.retriable + c.shadowing, running=0, retriable=0, shadowing=0)
        for c in profiles
    ]
    assert decide(view(*settled, gates=gates), late).action in (
        Action.START_GROUP,
        Action.FINISH,
        Action.PAUSE,
        Action.STOP,
    )


@given(st.lists(counts, min_size=1, max_size=3), gates_st, st.floats(NOW - 20, NOW + 200))
@settings(max_examples=150, deadline=None)
def test_more_failures_never_turn_a_halt_into_a_go(profiles: list[Counts], gates: Gates, now_s: float) -> None:
    def goes(decision: Decision) -> bool:
        return decision.action in (Action.START_GROUP, Action.FINISH) and not decision.stop_profiles

    worse = [profiles[0]._replace(confirmed=0, failed=profiles[0].failed + profiles[0].confirmed), *profiles[1:]]
    if goes(decide(view(*worse, gates=gates), now_s)):
        assert goes(decide(view(*profiles, gates=gates), now_s))


@pytest.mark.parametrize(
    ("groups", "total", "sizes"),
    [
        (["100%"], 3, [3]),
        (["34%", "100%"], 3, [1, 2]),
        (["67%", "100%"], 3, [2, 1]),
        (["1%", "10%", "100%"], 1000, [10, 90, 900]),
        (["1%", "2%", "rest"], 5, [1, 1, 3]),
        (["5", "rest"], 20, [5, 15]),
        (["2", "50%", "rest"], 10, [2, 3, 5]),
    ],
)
def test_group_sizes(groups: list[str], total: int, sizes: list[int]) -> None:
    assert group_sizes(groups, total) == sizes


@pytest.mark.parametrize(
    ("groups", "total"),
    [
        (["50%"], 10),  # does not reach all
        (["100%", "rest"], 10),  # the second adds nobody
        (["50%", "20%", "rest"], 10),  # does not grow
        (["11", "rest"], 10),
        (["10%", "20%", "30%", "rest"], 3),  # more groups than devices
        (["ten", "rest"], 10),
        (["101%"], 10),
        (["0%", "rest"], 10),
        (["-1", "rest"], 10),
        ([], 10),
    ],
)
def test_impossible_groups_are_refused(groups: list[str], total: int) -> None:
    with pytest.raises(EdgeopsError, match="E-ROLLOUT-INVALID"):
        check_policy(Policy(groups=tuple(groups)), total)


def test_a_minimum_that_no_group_can_reach_is_refused() -> None:
    with pytest.raises(EdgeopsError, match="min_count is 5, but group '34%' has 1"):
        check_policy(Policy(groups=("34%", "100%"), gates=Gates(min_count=5)), 3)
    assert check_policy(Policy(groups=("34%", "100%"), gates=Gates(min_count=1)), 3) == [
        ("1 (34%)", 1),
        ("2 (100%)", 2),
    ]


def test_policy_text_is_read_back() -> None:
    policy = Policy(groups=("5", "rest"), gates=LOOSE)
    assert read_policy(policy_text(policy)) == policy
    assert json.loads(policy_text(policy))["gates"]["min_count"] == 5


def arms(new_failed: int, *, new: int = 4_000, old: int = 4_000, new_ms: float = 10.0) -> Arms:
    """Requests to the new release, of which some failed, beside those to the old one, of which 1% failed."""
    values = [new_ms] * (new - new_failed)
    return Arms(
        Requests(new - new_failed, new_failed, QuantileSketch.of(values)),
        Requests(old - old // 100, old // 100, QuantileSketch.of([10.0] * (old - old // 100))),
    )


ASKED = Gates(timeout_s=100, error_rate_max=0.03, latency_p95_ratio_max=1.2)


@pytest.mark.parametrize(
    ("case", "requests", "now_s", "action"),
    [
        ("requests that do well let the group pass", arms(40), NOW, A.START_GROUP),
        ("many failed requests stop", arms(400), NOW, A.STOP),
        ("slow requests stop", arms(40, new_ms=20.0), NOW, A.STOP),
        ("a few requests cannot be judged and wait", arms(0, new=20), NOW, A.WAIT),
        ("a few requests cannot be judged and pause in the end", arms(0, new=20), NOW + 90, A.PAUSE),
        ("no requests at all pause in the end", Arms(), NOW + 90, A.PAUSE),
    ],
)
def test_gates_on_telemetry_table(case: str, requests: Arms, now_s: float, action: Action) -> None:
    decision = decide(view(C(confirmed=3), gates=ASKED, requests={"p0": requests}), now_s)
    assert decision.action is action, (case, decision)
    assert len([figure for figure in decision.figures if figure.gate in TELEMETRY_GATES]) == 2


def test_a_regression_in_one_profile_stops_that_profile_alone() -> None:
    one_bad = {"p0": arms(40), "p1": arms(400)}
    decision = decide(view(C(confirmed=3), C(confirmed=3), gates=ASKED, requests=one_bad), NOW)
    assert decision.action is A.START_GROUP
    assert list(decision.stop_profiles) == ["p1"]
    assert "error_rate_max 0.1 " in decision.stop_profiles["p1"]
    assert "is beyond 0.03, 4000 requests" in decision.stop_profiles["p1"]


KINDS = Gates(success_min=0.5, failure_max=0.5, rejected_max=0.1, timed_out_max=0.2, held_max=0.3, timeout_s=100)


@pytest.mark.parametrize(
    ("case", "counts", "now_s", "action", "gate"),
    [
        ("few of each kind go on", C(confirmed=17, rejected=1, timed_out=2), NOW, A.START_GROUP, None),
        ("many rejected stop", C(confirmed=17, rejected=3), NOW, A.STOP, "rejected_max"),
        ("many timed out stop", C(confirmed=15, timed_out=5), NOW, A.STOP, "timed_out_max"),
        ("as many that failed otherwise do not", C(confirmed=15, failed=5), NOW, A.START_GROUP, None),
        ("held ones may still come", C(confirmed=10, held=10), NOW, A.WAIT, None),
        ("too many held when time is over stop", C(confirmed=10, held=10), NOW + 90, A.STOP, "held_max"),
        ("few held when time is over go on", C(confirmed=15, held=5), NOW + 90, A.START_GROUP, None),
        ("as many silent ones are not held", C(confirmed=10, silent=10), NOW + 90, A.START_GROUP, None),
    ],
)
def test_shares_of_single_kinds_table(
    case: str, counts: Counts, now_s: float, action: Action, gate: str | None
) -> None:
    decision = decide(view(counts, gates=KINDS), now_s)
    assert decision.action is action, (case, decision)
    assert gate is None or gate in decision.reason
    if action is A.STOP:  # the control: without these gates the same counts go on
        plain = Gates(success_min=0.5, failure_max=0.5, timeout_s=100)
        assert decide(view(counts, gates=plain), now_s).action is A.START_GROUP


def test_requests_are_not_asked_about_where_no_gate_does() -> None:
    """The control: without the gate the same requests let the rollout go on."""
    decision = decide(view(C(confirmed=3), requests={"p0": arms(4_000)}), NOW)
    assert decision.action is A.START_GROUP


@pytest.mark.parametrize(
    "gates",
    [
        {"rejected_max": 1.5},
        {"held_max": math.nan},
        {"error_rate_max": 0.0},
        {"error_rate_max": 1.5},
        {"error_rate_increase_max": -0.1},
        {"latency_p95_ms_max": math.inf},
        {"latency_p95_ratio_max": math.nan},
        {"false_alarm": 0.0},
        {"false_alarm": 0.9},
    ],
)
def test_impossible_gates_on_telemetry_are_refused_by_name(gates: dict[str, float]) -> None:
    with pytest.raises(EdgeopsError, match=next(iter(gates))) as refused:
        check_policy(Policy(groups=("100%",), gates=Gates(**gates)), 3)
    assert refused.value.code == "E-ROLLOUT-INVALID"
