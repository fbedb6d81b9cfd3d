"""What a rollout was told to do: its groups and its gates, as a person declares them and as they rest in a row."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.names import check_name
from edgeops.contracts.rig_runs import MAX_VALID_S
from edgeops.contracts.wire import Declared, decode
from edgeops.control.rollout.schedule import Schedule, check_schedule

MAX_GROUPS = 64
MAX_MINUTES = 1440
MAX_PER_MINUTE = 1_000_000
MAX_RETRIES = 10
MAX_RIGS = 16
MINUTE_S = 60.0
# Gates against the old release.
COMPARING = ("error_rate_increase_max", "latency_p95_ratio_max")
_TELEMETRY_LIMITS = (
    ("error_rate_max", 0.0, 1.0),
    ("latency_p95_ms_max", 0.0, 86_400_000.0),
    ("latency_p95_ratio_max", 0.0, 1000.0),
    ("drift_max", 0.0, 1.0),
    ("temperature_c_max", -90.0, 250.0),
    ("false_alarm", 0.0, 0.5),
)
_SHARE = re.compile(r"(\d{1,3}(?:\.\d{1,4})?)%")


class Gates(Declared, frozen=True, kw_only=True):
    """What must hold in each group, and in each profile of it, over the devices that reported.

    Args:
        success_min: Smallest share of confirmed devices to go on, in [0, 1].
        failure_max: Largest share of failed, rejected and timed-out devices, in [0, 1].
        rejected_max: Largest share of devices that refused it before trying, in [0, 1]; None: not asked.
        timed_out_max: Largest share of devices that were not through in time, in [0, 1].
        held_max: Largest share of devices that are still held back when the time is over, of those and the reported,
            in [0, 1].
        min_count: How many devices must have reported before a share means anything; a group or profile that is
            smaller is judged when all of it has reported.
        timeout_s: How long a group has, in seconds. Then who was heard of and is not through has timed out.
        error_rate_max: Largest share of requests that fail, in (0, 1]; None: not asked.
        error_rate_increase_max: By how much that share may be above the old release's at the same time, in [0, 1].
        latency_p95_ms_max: Largest 95th percentile of latency, in milliseconds.
        latency_p95_ratio_max: Largest ratio of it to the old release's at the same time.
        drift_max: Largest distance of what inputs, outputs, confidence and classes look like from what the bundle was
            compiled with: total variation, in (0, 1].
        temperature_c_max: No device may say that it is hotter, in °C, while it serves the release.
        agreement_min: Smallest share of requests on which the release, as a shadow, agrees with what served, in (0, 1).
        false_alarm: Probability that any of the gates on telemetry but that on temperature is tripped over the whole
            rollout though it holds, in (0, 0.5].
    """

    success_min: float = 1.0
    failure_max: float = 0.0
    rejected_max: float | None = None
    timed_out_max: float | None = None
    held_max: float | None = None
    min_count: int = 1
    timeout_s: float = 3600.0
    error_rate_max: float | None = None
    error_rate_increase_max: float | None = None
    latency_p95_ms_max: float | None = None
    latency_p95_ratio_max: float | None = None
    drift_max: float | None = None
    temperature_c_max: float | None = None
    agreement_min: float | None = None
    false_alarm: float = 0.01


class Rate(Declared, frozen=True, kw_only=True):
    """A ramp instead of groups: so many devices a minute, growing after each minute that passed the gates.

    Args:
        per_minute: Devices of the first minute.
        factor: Each minute's devices over those of the minute before, at least 1.
    """

    per_minute: int
    factor: float = 1.0


class Shadow(Declared, frozen=True, kw_only=True):
    """A group first runs the release beside what serves; it is to serve once the gate on agreement holds.

    Args:
        share: Share of the live requests that it sees, in (0, 1].
        cpu: How much of one processor it may take for them on a device, in (0, 1].
    """

    share: float = 0.1
    cpu: float = 0.25


class Policy(Declared, frozen=True, kw_only=True):
    """A rollout's groups, in order, and its gates.

    Args:
        groups: Each `30%` (that share of all devices has it when the group is through), `5` (so many more devices)
            or `rest`. The last one must reach all devices. Empty with `rate`.
        gates: The gates of every group.
        approval: It starts only after a second person has approved it.
        rate: A ramp instead of groups.
        bake_s: How long a group serves, in seconds, before it can pass: regressions show only under requests.
        schedule: When groups may start.
        retries: How often a device that failed gets the release again before it counts as failed.
        on_failure: What a tripped gate does: `stop`, `pause`, or `revert` the devices that have the release.
        control: The control arm of the first group, `5%` or `20`: so many further devices, drawn as that group's are,
            keep what they have until it is through; meanwhile the gates that compare compare these two. Empty: they
            compare with all devices that still run another release.
        override_holds: Devices do not wait for maintenance window, application, temperature and the like.
        shadow: Each group runs it as a shadow first; None: it serves at once.
        rigs: Group 0: no device gets the release before each of these rigs has passed it. Empty: there is none.
        rig_timeout_s: How long a rig has from being asked to its verdict, in seconds.
        rig_gone_s: How long a rig that is asked may be away, in seconds, before nobody waits for it any more.
    """

    groups: tuple[str, ...] = ()
    gates: Gates = Gates()
    approval: bool = False
    rate: Rate | None = None
    bake_s: float = 0.0
    schedule: Schedule = Schedule()
    retries: int = 0
    on_failure: Literal["stop", "pause", "revert"] = "stop"
    control: str = ""
    override_holds: bool = False
    shadow: Shadow | None = None
    rigs: tuple[str, ...] = ()
    rig_timeout_s: float = 3600.0
    rig_gone_s: float = 300.0

    @property
    def serves_s(self) -> float:
        """How long a group serves before it can pass: a ramp's is a minute at least."""
        return max(self.bake_s, MINUTE_S) if self.rate is not None else self.bake_s


class PlannedGroup(NamedTuple):
    """One group: its label, and how many devices it adds."""

    label: str
    size: int


def read_policy(data: bytes) -> Policy:
    """Read and check a policy.

    Raises:
        EdgeopsError: E-WIRE-MALFORMED; not a policy. E-ROLLOUT-INVALID; its values are impossible.
    """
    policy = decode(data, Policy, what="rollout policy")
    _check(policy)
    return policy


def _check(policy: Policy) -> None:
    check_gates(policy.gates)
    check_schedule(policy.schedule)
    if policy.rate is None:
        if not 1 <= len(policy.groups) <= MAX_GROUPS:
            raise _invalid(f"{len(policy.groups)} groups", f"Give 1 to {MAX_GROUPS}.")
    elif policy.groups:
        raise _invalid("groups and a rate", "Give one of both.")
    elif not 1 <= policy.rate.per_minute <= MAX_PER_MINUTE or not 1 <= policy.rate.factor <= 100:
        raise _invalid(
            f"{str(policy.rate.per_minute)[:20]} devices a minute, growing by {policy.rate.factor:g}",
            f"Give 1 to {MAX_PER_MINUTE} devices, and a factor of 1 to 100.",
        )
    if not (math.isfinite(policy.bake_s) and policy.bake_s >= 0) or policy.serves_s >= policy.gates.timeout_s:
        raise _invalid(
            f"a group serves {policy.serves_s:g} s and has {policy.gates.timeout_s:g} s",
            "Make timeout_s larger than bake_s (a ramp's minute: 60 s).",
        )
    _check_shadow(policy)
    _check_control(policy)
    _check_rigs(policy)
    if not 0 <= policy.retries <= MAX_RETRIES:
        raise _invalid(f"retries is {policy.retries}", f"Give 0 to {MAX_RETRIES}.")


def _check_shadow(policy: Policy) -> None:
    shadow, least = policy.shadow, policy.gates.agreement_min
    if least is not None and shadow is None:
        raise _invalid("agreement_min without a shadow", "Give how large a share of the requests the shadow sees.")
    if least is not None and not 0 < least < 1:
        raise _invalid(f"agreement_min is {least}", "Give a share between 0 and 1: no sample can show full agreement.")
    if shadow is not None and not (0 < shadow.share <= 1 and 0 < shadow.cpu <= 1):
        raise _invalid(f"a shadow of share {shadow.share}, cpu {shadow.cpu}", "Give shares above 0, up to 1.")


def _check_rigs(policy: Policy) -> None:
    if len(policy.rigs) > MAX_RIGS or len(set(policy.rigs)) != len(policy.rigs):
        raise _invalid(f"rigs {', '.join(policy.rigs)[:200]}", f"Name each once, {MAX_RIGS} at most.")
    for name in policy.rigs:
        check_name(name, "rig")
    for field in ("rig_timeout_s", "rig_gone_s"):
        value = getattr(policy, field)
        if not (math.isfinite(value) and 0 < value <= MAX_VALID_S):
            raise _invalid(f"{field} is {value}", f"Give seconds, up to {MAX_VALID_S:.0f}.")


def _check_control(policy: Policy) -> None:
    if not policy.control:
        return
    if policy.rate is not None or policy.shadow is not None or len(policy.groups) < 2:
        raise _invalid(
            "a control arm with a rate, a shadow or a single group", "Give a small first group and at least one more."
        )
    if not any(getattr(policy.gates, gate) is not None for gate in COMPARING):
        raise _invalid("a control arm that no gate compares with", f"Give {' or '.join(COMPARING)}.")
    if not (_SHARE.fullmatch(policy.control) or policy.control.isdecimal()):
        raise _invalid(f"control {policy.control!r} cannot be read", "Write 5% or 20.")


def control_size(policy: Policy, total: int) -> int:
    """Return how many of `total` devices are the control arm of the first group; 0 without one.

    Raises:
        EdgeopsError: E-ROLLOUT-INVALID; nobody, or more than there are outside the first group.
    """
    if not policy.control:
        return 0
    share = _SHARE.fullmatch(policy.control)
    size = max(1, math.floor(total * float(share[1]) / 100 + 1e-9)) if share else int(policy.control[:8])
    left = total - group_sizes(policy.groups, total)[0]
    if not 1 <= size <= left:
        raise _invalid(
            f"the control arm has {size} devices, outside the first group there are {left}",
            "Make it, or the first group, smaller.",
        )
    return size


def check_gates(gates: Gates) -> None:
    """Refuse gates that no rollout could be judged by.

    Raises:
        EdgeopsError: E-ROLLOUT-INVALID; names the field and its value.
    """
    for field in ("success_min", "failure_max", "rejected_max", "timed_out_max", "held_max"):
        value = getattr(gates, field)
        if value is not None and not (math.isfinite(value) and 0 <= value <= 1):
            raise _invalid(f"{field} is {value}", "Give a share between 0 and 1.")
    if gates.success_min == 0 and gates.failure_max == 1:
        raise _invalid("the gates let everything pass", "Raise success_min or lower failure_max.")
    for field, low, high in _TELEMETRY_LIMITS:
        value = getattr(gates, field)
        if value is not None and not (math.isfinite(value) and low < value <= high):
            raise _invalid(f"{field} is {value}", f"Give more than {low:g}, up to {high:g}.")
    increase = gates.error_rate_increase_max
    if increase is not None and not 0 <= increase <= 1:
        raise _invalid(f"error_rate_increase_max is {increase}", "Give a difference of shares between 0 and 1.")
    if gates.min_count < 1:
        raise _invalid(f"min_count is {gates.min_count}", "At least one device must report.")
    if not (math.isfinite(gates.timeout_s) and 0 < gates.timeout_s <= 366 * 86400):
        raise _invalid(f"timeout_s is {gates.timeout_s}", "Give seconds, up to a year.")


def group_sizes(groups: Sequence[str], total: int) -> list[int]:
    """Return how many devices each group adds, for `total` devices.

    A share is rounded down, but one that grows from the share before adds at least one device.

    Raises:
        EdgeopsError: E-ROLLOUT-INVALID; unreadable, not growing, not reaching all devices, or more groups than devices.
    """
    sizes: list[int] = []
    done, last_share = 0, 0.0
    for text in groups:
        if text == "rest":
            reach = total
        elif match := _SHARE.fullmatch(text):
            share = float(match[1])
            if not 0 < share <= 100:
                raise _invalid(f"group {text!r}", "A share is more than 0% and at most 100%.")
            reach = total if share == 100 else math.floor(total * share / 100 + 1e-9)
            if share > last_share >= 0:
                reach = max(reach, done + 1)
            last_share = share
        elif text.isdecimal() and len(text) < 8 and int(text) > 0:
            reach, last_share = done + int(text), -1.0
        else:
            raise _invalid(f"group {text!r} cannot be read", "Write 30%, 5 or rest.")
        if not done < reach <= total:
            raise _invalid(
                f"group {text!r} adds no device or more than there are ({total} devices, {done} in earlier groups)",
                "Give fewer or smaller groups.",
            )
        sizes.append(reach - done)
        done = reach
    if done != total:
        raise _invalid(f"the groups reach {done} of {total} devices", "End with 100% or rest.")
    return sizes


def check_policy(policy: Policy, total: int) -> list[PlannedGroup]:
    """Check a policy against the devices that it is for; return its groups in order.

    Raises:
        EdgeopsError: E-ROLLOUT-INVALID; says which value is impossible.
    """
    _check(policy)
    if total == 0:
        raise _invalid("no device is selected", "Enrol devices, or select others.")
    if policy.rate is not None:
        return _ramp(policy.rate, total)
    sizes = group_sizes(policy.groups, total)
    control_size(policy, total)
    for text, size in zip(policy.groups, sizes, strict=True):
        if policy.gates.min_count > size:
            raise _invalid(
                f"min_count is {policy.gates.min_count}, but group {text!r} has {size} devices",
                "Lower min_count or make the group larger.",
            )
    return [
        PlannedGroup(f"{number} ({text})", size)
        for number, (text, size) in enumerate(zip(policy.groups, sizes, strict=True), 1)
    ]


def _ramp(rate: Rate, total: int) -> list[PlannedGroup]:
    groups: list[PlannedGroup] = []
    wanted, left = float(rate.per_minute), total
    while left:
        size = min(left, math.floor(wanted + 1e-9))
        groups.append(PlannedGroup(f"minute {len(groups) + 1}", size))
        left -= size
        wanted = min(wanted * rate.factor, float(total))
        if len(groups) > MAX_MINUTES:
            raise _invalid(
                f"{rate.per_minute} a minute for {total} devices takes more than {MAX_MINUTES} minutes",
                "Raise the rate or its factor.",
            )
    return groups


def policy_text(policy: Policy) -> bytes:
    """Return the form in which a policy rests in a row."""
    return msgspec.json.encode(policy, order="sorted")


def _invalid(what: str, next_step: str) -> EdgeopsError:
    return EdgeopsError("E-ROLLOUT-INVALID", what, next_step)
