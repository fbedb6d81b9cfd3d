"""Telemetry windows: counts of workers merged exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from edgeops.contracts.telemetry import ModelWindow, ShadowFigures
from edgeops.contracts.wire import encode


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


def divided(models: Sequence[ModelWindow], most: int, most_bytes: int) -> Iterator[tuple[ModelWindow, ...]]:
    """Give models in parts of at most so many, and of so many bytes; one that is larger by itself is a part of its own,
    and none at all is one empty part.
    """
    part: list[ModelWindow] = []
    length = 0
    for model in models:
        own = len(encode(model))
        if part and (len(part) == most or length + own > most_bytes):
            yield tuple(part)
            part, length = [], 0
        part.append(model)
        length += own
    yield tuple(part)


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


def _merge_bins(first: dict[str, tuple[int, ...]], second: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {name: _add(first.get(name, ()), second.get(name, ())) for name in {**first, **second}}


def _add(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    if len(first) != len(second):
        return first or second
    return tuple(a + b for a, b in zip(first, second, strict=True))
