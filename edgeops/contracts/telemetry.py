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
    errors: dict[str, int] = {}
    inputs: dict[str, tuple[int, ...]] = {}
    outputs: dict[str, tuple[int, ...]] = {}
    confidence: tuple[int, ...] = ()
    class_mix: tuple[int, ...] = ()
    shadow: ShadowFigures | None = None


class DeviceWindow(Wire, frozen=True, kw_only=True):
    """The device's own figures at the end of a window; None: not to be had on this board."""

    uptime_s: float
    load_1m: float | None = None
    memory_available_mib: float | None = None
    disk_free_mib: float | None = None
    temperature_c: float | None = None


class Telemetry(Wire, frozen=True, kw_only=True):
    """One window of one unit. (connection, boot_id, seq) is unique: a repeated message is dropped.

    `dropped_windows` counts windows that the bounded queue had to give up before this one.
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
    schema_version: int = msgspec.field(default=1, name="schema")


# Windows that one signature covers, and the bytes of them: a device that was away for a day tells it in a few messages.
MAX_WINDOWS_PER_BATCH = 16
MAX_BATCH_BYTES = 256 << 10


class TelemetryBatch(Wire, frozen=True, kw_only=True):
    """Several windows of one unit under one signature. Each counts for itself: it may come again in another message."""

    fleet: str
    connection: str
    unit: str
    windows: tuple[Telemetry, ...]
    schema_version: int = msgspec.field(default=1, name="schema")
