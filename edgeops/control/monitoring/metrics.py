"""The fleet as Prometheus metrics, read from the registry at each scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from edgeops.contracts.rollouts import ENDED_STATES
from edgeops.contracts.telemetry import DeviceWindow
from edgeops.contracts.topics import SELF_UNIT
from edgeops.control.database import Database
from edgeops.control.groups.facts import facts_of
from edgeops.control.groups.query import HEALTH
from edgeops.control.ingest import rollups
from edgeops.control.models import Device, Rollout, RolloutMember
from edgeops.control.renewal import certificate_until_s
from edgeops.control.units import enrolled

_DEVICE_WINDOW = msgspec.json.Decoder(DeviceWindow)
QUANTILES = (0.5, 0.95, 0.99)


class FleetCollector(Collector):
    """Reads the registry when Prometheus asks.

    Args:
        database: The registry.
        counts: Returns the messages that were accepted and refused since the control plane began.
        connected: Says whether the control plane has the broker.
        clock: The control plane's clock, in seconds since 1970.
    """

    def __init__(
        self,
        database: Database,
        counts: Callable[[], tuple[int, int]],
        connected: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self._database, self._counts, self._connected, self._clock = database, counts, connected, clock

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics as they are now."""
        now_s = self._clock()
        with self._database.read() as session:
            yield from _devices(session, now_s)
            yield from _rollouts(session)
            yield from _requests(session)
        accepted, refused = self._counts()
        yield CounterMetricFamily("edgeops_messages_accepted", "Messages of devices that were taken in.", accepted)
        yield CounterMetricFamily("edgeops_messages_refused", "Messages that were refused.", refused)
        yield GaugeMetricFamily("edgeops_broker_connected", "1 while the broker is connected.", self._connected())


def exposition(collector: FleetCollector) -> bytes:
    """Return the text that Prometheus reads."""
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry)


def _devices(session: Session, now_s: float) -> Iterator[Metric]:
    subjects = enrolled(session)
    devices = [one.device for one in subjects if one.unit.unit == SELF_UNIT]
    facts = facts_of(subjects, now_s)
    online = GaugeMetricFamily("edgeops_devices", "Devices by profile and connection.", labels=["profile", "online"])
    for (profile, connected), count in sorted(Counter((d.profile, d.online) for d in devices).items()):
        online.add_metric([profile, "yes" if connected else "no"], count)
    yield online
    units = GaugeMetricFamily("edgeops_units", "Devices and units behind them by profile.", labels=["profile"])
    for profile, count in sorted(Counter(one.profile for one in subjects).items()):
        units.add_metric([profile], count)
    yield units
    health = GaugeMetricFamily("edgeops_devices_health", "Devices and units by health.", labels=["health"])
    counted = Counter(fact.health for fact in facts.values())
    for word in HEALTH:
        health.add_metric([word], counted[word])
    yield health
    rejected = sum(device.rejected_messages for device in devices)
    yield CounterMetricFamily("edgeops_device_messages_rejected", "Messages of enrolled devices refused.", rejected)
    yield from _figures(devices)
    ends = [until_s for one in devices if (until_s := certificate_until_s(one.certificate_pem)) is not None]
    if ends:
        yield GaugeMetricFamily(
            "edgeops_certificate_expiry_min_seconds", "Time until a device's certificate ends first.", min(ends) - now_s
        )


def _figures(devices: Sequence[Device]) -> Iterator[Metric]:
    """Yield what devices said of themselves last, by profile: a line for each would be too much for a fleet."""
    said = [(d.profile, _DEVICE_WINDOW.decode(d.figures)) for d in devices if d.figures is not None]
    hottest = GaugeMetricFamily(
        "edgeops_device_temperature_max_celsius", "Hottest that a device was in its last window.", labels=["profile"]
    )
    held_back = GaugeMetricFamily(
        "edgeops_devices_throttled", "Devices that something held back in their last window.", labels=["profile"]
    )
    for profile in sorted({profile for profile, _ in said}):
        mine = [figures for name, figures in said if name == profile]
        held_back.add_metric([profile], sum(bool(figures.throttled) for figures in mine))
        heat = [figures.temperature_c for figures in mine if figures.temperature_c is not None]
        if heat:
            hottest.add_metric([profile], max(heat))
    yield hottest
    yield held_back
    dropped = sum(device.dropped_windows for device in devices)
    yield CounterMetricFamily("edgeops_device_windows_dropped", "Telemetry windows that devices gave up.", dropped)


def _rollouts(session: Session) -> Iterator[Metric]:
    states = GaugeMetricFamily("edgeops_rollouts", "Rollouts by state.", labels=["state"])
    for state, count in session.execute(select(Rollout.state, func.count()).group_by(Rollout.state)):
        states.add_metric([state], count)
    yield states
    members = GaugeMetricFamily(
        "edgeops_rollout_devices",
        "Devices of rollouts that have not ended, by state.",
        labels=["rollout", "model", "version", "state"],
    )
    rows = session.execute(
        select(Rollout.id, Rollout.model, Rollout.version, RolloutMember.state, func.count())
        .join(RolloutMember, RolloutMember.rollout_id == Rollout.id)
        .where(Rollout.state.not_in(ENDED_STATES))
        .group_by(Rollout.id, Rollout.model, Rollout.version, RolloutMember.state)
    )
    for number, model, version, state, count in rows:
        members.add_metric([str(number), model, version, state], count)
    yield members


def _requests(session: Session) -> Iterator[Metric]:
    labels = ["model", "release", "profile"]
    answered = CounterMetricFamily("edgeops_requests", "Requests that were answered.", labels=labels)
    failed = CounterMetricFamily("edgeops_request_errors", "Requests that failed.", labels=[*labels, "code"])
    latency = {
        quantile: GaugeMetricFamily(
            f"edgeops_latency_p{quantile * 100:.0f}_milliseconds", "Latency, all time, within 1%.", labels=labels
        )
        for quantile in QUANTILES
    }
    for (model, release, profile), traffic in sorted(rollups.all_traffic(session).items()):
        key = [model, release, profile]
        answered.add_metric(key, traffic.requests)
        for code, count in sorted(traffic.errors.items()):
            failed.add_metric([*key, code], count)
        for quantile, metric in latency.items():
            value = traffic.latency_ms.quantile(quantile)
            if value is not None:
                metric.add_metric(key, value)
    yield answered
    yield failed
    yield from latency.values()
