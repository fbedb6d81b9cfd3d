"""Telemetry windows: counts of workers merged exactly, kept on the disk until the broker has them."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.telemetry import ModelWindow, ShadowFigures, Telemetry
from edgeops.contracts.wire import decode, encode

log = logging.getLogger(__name__)


class Windows:
    """What workers told since the last window, merged per model and bundle."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, str], ModelWindow] = {}

    def add(self, window: ModelWindow) -> None:
        """Take in what a worker served."""
        key = (window.model, window.digest)
        other = self._models.get(key)
        self._models[key] = window if other is None else merge(other, window)

    def take(self) -> tuple[ModelWindow, ...]:
        """Return all, and begin anew."""
        models = tuple(self._models.values())
        self._models = {}
        return models


def merge(first: ModelWindow, second: ModelWindow) -> ModelWindow:
    """Return what two windows of one bundle hold together; exact."""
    return msgspec.structs.replace(
        first,
        latency_ms=first.latency_ms.merge(second.latency_ms),
        requests=first.requests + second.requests,
        sampled=first.counted + second.counted,
        errors={
            code: first.errors.get(code, 0) + second.errors.get(code, 0) for code in {**first.errors, **second.errors}
        },
        inputs=_merge_bins(first.inputs, second.inputs),
        outputs=_merge_bins(first.outputs, second.outputs),
        confidence=_add(first.confidence, second.confidence),
        class_mix=_add(first.class_mix, second.class_mix),
        shadow=_merge_shadows(first.shadow, second.shadow),
    )


def _merge_shadows(first: ShadowFigures | None, second: ShadowFigures | None) -> ShadowFigures | None:
    return first.merge(second) if first is not None and second is not None else first or second


class TelemetryQueue:
    """Windows that the broker does not have yet: one file each, at most `limit`; the oldest give way, and are counted.

    Args:
        directory: Where they lie; made if it is not there.
        limit: How many are kept.

    Raises:
        EdgeopsError: E-DISK-WRITE.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        durable.make_private_dir(directory)
        self._directory, self._limit = directory, limit
        self._numbers = sorted(int(path.stem) for path in directory.glob("*.json") if path.stem.isdigit())

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def is_full(self) -> bool:
        """Whether the next window has the oldest dropped."""
        return len(self) >= self._limit

    def put(self, window: Telemetry) -> None:
        """Keep a window. Where there is no room, the oldest is dropped and counted in this one.

        Raises:
            EdgeopsError: E-DISK-FULL or E-DISK-WRITE; it is not kept.
        """
        dropped = window.dropped_windows
        while len(self._numbers) >= self._limit:
            oldest = self.read(self._numbers[0])
            dropped += 1 + (oldest.dropped_windows if oldest is not None else 0)
            self.remove(self._numbers[0])
        number = self._numbers[-1] + 1 if self._numbers else 1
        durable.write_file(self._path(number), encode(msgspec.structs.replace(window, dropped_windows=dropped)))
        self._numbers.append(number)

    def waiting(self, most: int) -> list[int]:
        """Return the numbers of the oldest windows."""
        return self._numbers[:most]

    def read(self, number: int) -> Telemetry | None:
        """Return a window; None if its file is damaged."""
        path = self._path(number)
        try:
            return decode(path.read_bytes(), Telemetry, what=str(path))
        except (OSError, EdgeopsError) as error:
            log.error("E-STATE-CORRUPT: %s: %s", path, error)
            return None

    def remove(self, number: int) -> None:
        """Forget a window: the broker has it. If the disk refuses, a restart sends it once more; each counts once."""
        self._numbers.remove(number)
        try:
            durable.remove_tree(self._path(number))
        except EdgeopsError as error:
            log.error("a telemetry window could not be removed: %s", error)

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:012d}.json"


def _merge_bins(first: dict[str, tuple[int, ...]], second: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {name: _add(first.get(name, ()), second.get(name, ())) for name in {**first, **second}}


def _add(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    if len(first) != len(second):
        return first or second
    return tuple(a + b for a, b in zip(first, second, strict=True))
