"""Telemetry: what a device measured in one window, as sketches that merge exactly."""

from __future__ import annotations

import msgspec

from edgeops.contracts.sketches import QuantileSketch
from edgeops.contracts.wire import Wire


class ShadowFigures(Wire, frozen=True, kw_only=True):
    """How a bundle that ran beside the one that served compares with it.

    Args:
        compared: Requests that it saw.
        agreed: Of those, how often it answered alike: the same classes, or, without classes, nearly the same values.
        skipped: Requests that were drawn for it, but came while it had no processor time left.
        distance: How far its answers were from those that were served: the norm of the difference over the larger of
            both norms, in [0, 2].
        latency_ms: How long its inferences took, in milliseconds.
        errors: Error code → how many of `compared` it could not answer.
    """

    compared: int
    agreed: int
    skipped: int = 0
    distance: QuantileSketch = QuantileSketch()
    latency_ms: QuantileSketch = QuantileSketch()
    errors: dict[str, int] = {}

    def merge(self, other: ShadowFigures) -> ShadowFigures:
        """Return both together; exact."""
        codes = {**self.errors, **other.errors}
        return ShadowFigures(
            compared=self.compared + other.compared,
            agreed=self.agreed + other.agreed,
            skipped=self.skipped + other.skipped,
            distance=self.distance.merge(other.distance),
            latency_ms=self.latency_ms.merge(other.latency_ms),
            errors={code: self.errors.get(code, 0) + other.errors.get(code, 0) for code in codes},
        )


class ModelWindow(Wire, frozen=True, kw_only=True):
    """One model's window.

    Args:
        model: The model's name.
        release: The release that served.
        digest: Its bundle.
        latency_ms: Inference latency in milliseconds, as the client's request was served.
        requests: Requests that were answered.
        errors: Error code → count.
        sampled: Requests whose values the histograms count; None: all, as agents before had it.
        inputs: Input name → counts on the bundle's drift reference bins.
        outputs: Output name → counts on the bundle's drift reference bins.
        confidence: Counts on the bundle's bins.
        class_mix: Count per class.
        shadow: If this bundle ran beside another one that served.
    """

    model: str
    release: str
    digest: str
    latency_ms: QuantileSketch
    requests: int
    sampled: int | None = None
    errors: dict[str, int] = {}
    inputs: dict[str, tuple[int, ...]] = {}
    outputs: dict[str, tuple[int, ...]] = {}
    confidence: tuple[int, ...] = ()
    class_mix: tuple[int, ...] = ()
    shadow: ShadowFigures | None = None

    @property
    def counted(self) -> int:
        """Requests whose values the histograms count."""
        return self.requests if self.sampled is None else self.sampled


class LinkFigures(Wire, frozen=True, kw_only=True):
    """How the device reaches the fleet.

    Args:
        interface: Of the default route.
        signal_dbm: Of a wireless one.
        speed_mbit: What a wired one says.
        connects: Connections to the broker since the agent started.
    """

    interface: str | None = None
    signal_dbm: float | None = None
    speed_mbit: float | None = None
    connects: int = 0


class DeviceWindow(Wire, frozen=True, kw_only=True):
    """The device's own figures of a window; None: not to be had on this board.

    Args:
        uptime_s: Of the agent.
        boot_s: Since the device booted.
        load_1m: At the end of the window.
        cpu_share: Which share of all processors was at work in the window.
        memory_total_mib: All there is.
        memory_available_mib: The least of the window.
        disk_free_mib: Where the state directory lies, at the end.
        disk_total_mib: All there is.
        temperature_c: Hottest zone, at its hottest in the window.
        zones_c: Thermal zone → its hottest in the window.
        throttled: What held the processor back in the window: `under-voltage`, `frequency-capped`, `throttled`,
            `soft-temperature-limit` (Raspberry Pi), or `cooling NAME` of a cooling device that was at work.
        link: How it reaches the fleet.
    """

    uptime_s: float
    boot_s: float | None = None
    load_1m: float | None = None
    cpu_share: float | None = None
    memory_total_mib: float | None = None
    memory_available_mib: float | None = None
    disk_free_mib: float | None = None
    disk_total_mib: float | None = None
    temperature_c: float | None = None
    zones_c: dict[str, float] = {}
    throttled: tuple[str, ...] = ()
    link: LinkFigures | None = None


class Telemetry(Wire, frozen=True, kw_only=True):
    """One window of one unit. (connection, boot_id, seq) is unique: a repeated message is dropped.

    `dropped_windows` counts windows that the bounded queue had to give up before this one. `thinned` says that it has
    given up this window's histograms; its counts and latencies are whole.
    """

    fleet: str
    connection: str
    unit: str
    boot_id: str
    seq: int
    start_s: float
    end_s: float
    models: tuple[ModelWindow, ...]
    device: DeviceWindow | None = None
    dropped_windows: int = 0
    thinned: bool = False
    schema_version: int = msgspec.field(default=1, name="schema")


# Windows that one signature covers, and the bytes of them: a device that was away for a day tells it in a few messages.
MAX_WINDOWS_PER_BATCH = 16
MAX_BATCH_BYTES = 256 << 10
# Models in one window; a device with more tells them in several.
MAX_MODELS = 64


class TelemetryBatch(Wire, frozen=True, kw_only=True):
    """Several windows of one unit under one signature. Each counts for itself: it may come again in another message."""

    fleet: str
    connection: str
    unit: str
    windows: tuple[Telemetry, ...]
    schema_version: int = msgspec.field(default=1, name="schema")
