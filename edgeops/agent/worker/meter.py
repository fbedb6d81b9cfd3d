"""What a worker counts while it serves: latency, errors, and drift on the bundle's reference bins."""

from __future__ import annotations

import math
import random
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.contracts.bundle import BundleManifest, DriftReference, Histogram, OutputInfo
from edgeops.contracts.sketches import LOG_GAMMA, QuantileSketch
from edgeops.contracts.telemetry import ModelWindow

# Values are counted so many requests at a time, so that what a batch costs is shared; fewer where tensors are large.
_BATCH = 256
_MAX_WAITING_ELEMENTS = 1 << 18
# Inputs up to this size wait whole; of larger ones the elements are picked at once.
_KEEP_ELEMENTS = 64
_CLASS_KINDS = ("probabilities", "logits")


class Meter:
    """Counts of one bundle since the last `take`. What is measured is gathered, and counted in batches.

    Args:
        manifest: The bundle's manifest.
        release: Its version.
        digest: Its digest.
    """

    def __init__(self, manifest: BundleManifest, release: str, digest: str) -> None:
        self._model, self._release, self._digest = manifest.model, release, digest
        self._drift = _Drift(manifest, manifest.drift) if manifest.drift is not None else None
        self._share = manifest.drift.request_share if manifest.drift is not None else 0.0
        self._errors: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._skip = self._next_skip()
        self._clear()

    def _clear(self) -> None:
        self._waiting_ms: list[float] = []
        self._bins: Counter[int] = Counter()
        self._zeros = 0
        self._total_ms = self._max_ms = 0.0
        self._requests = 0

    def _next_skip(self) -> int:
        """Return how many requests pass by before the next one is counted: each has the same chance."""
        if not 0 < self._share < 1:
            return 0
        return int(math.log(1.0 - random.random()) / math.log1p(-self._share))  # noqa: S311  it hides nothing

    @property
    def empty(self) -> bool:
        """Whether nothing happened since the last `take`."""
        return not self._waiting_ms and not self._requests and not self._errors

    def answered(
        self, latency_ms: float, feeds: Mapping[str, NDArray[Any]], answer: Mapping[str, NDArray[Any]]
    ) -> None:
        """Count an inference that was answered. The answer must not be changed afterwards; the inputs may be."""
        waiting = self._waiting_ms
        waiting.append(latency_ms)
        if self._skip:
            self._skip -= 1
        elif self._drift is not None:
            self._drift.add(feeds, answer)
            if self._share < 1:
                self._skip = self._next_skip()
        if len(waiting) >= _BATCH:
            self._count_latencies()

    def _count_latencies(self) -> None:
        waiting, self._waiting_ms = self._waiting_ms, []
        self._requests += len(waiting)
        self._total_ms += math.fsum(waiting)
        self._max_ms = max(self._max_ms, *waiting) if waiting else self._max_ms
        values = np.asarray(waiting, np.float64)
        positive = values[values > 0]
        self._zeros += len(values) - len(positive)
        self._bins.update(np.ceil(np.log(positive) / LOG_GAMMA).astype(np.int64).tolist())

    def failed(self, code: str) -> None:
        """Count an error. May be called from any thread."""
        with self._lock:
            self._errors[code] += 1

    def take(self) -> ModelWindow:
        """Return what was counted, and begin anew."""
        self._count_latencies()
        drift = self._drift.take() if self._drift is not None else {}
        with self._lock:
            errors, self._errors = self._errors, Counter()
        window = ModelWindow(
            model=self._model,
            release=self._release,
            digest=self._digest,
            latency_ms=QuantileSketch(
                bins={str(index): count for index, count in self._bins.items()},
                zeros=self._zeros,
                total=self._total_ms,
                maximum=self._max_ms,
            ),
            requests=self._requests,
            errors=dict(errors),
            **drift,
        )
        self._clear()
        return window


class _Drift:
    """Histograms of inputs, outputs and confidence, and the mix of classes."""

    def __init__(self, manifest: BundleManifest, reference: DriftReference) -> None:
        per_sample = reference.elements_per_sample
        sizes = {spec.name: spec.elements for spec in manifest.inputs}
        sizes |= {info.tensor.name: info.tensor.elements for info in manifest.outputs}
        self._places = {name: _spread(size, per_sample) for name, size in sizes.items()}
        self._varying = frozenset(spec.name for spec in manifest.inputs if spec.varies)
        self._per_sample = per_sample
        self._inputs = {name: _Bins(part) for name, part in reference.inputs.items() if name in sizes}
        self._outputs = {name: _Bins(part) for name, part in reference.outputs.items() if name in sizes}
        self._confidence = _Bins(reference.confidence) if reference.confidence is not None else None
        self._classed = classed_output(manifest.outputs)
        self._classes = len(reference.class_mix)
        self._mix = np.zeros(self._classes, np.int64)
        self._waiting: list[tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]]] = []
        self._sampled = 0
        # Of what is small the whole tensor waits, of what is large its elements.
        self._whole = not self._varying and all(sizes[name] <= min(per_sample, _KEEP_ELEMENTS) for name in self._inputs)
        kept = sum(min(sizes[name], per_sample) for name in self._inputs)
        kept += sum(info.tensor.elements for info in manifest.outputs)
        self._small = frozenset(
            info.tensor.name
            for info in manifest.outputs
            if info.tensor.elements <= per_sample and not info.tensor.varies
        )
        self._batch = max(1, min(_BATCH, _MAX_WAITING_ELEMENTS // max(1, kept)))

    def add(self, feeds: Mapping[str, NDArray[Any]], answer: Mapping[str, NDArray[Any]]) -> None:
        # Copies either way: over a socket the next request comes into the same buffer.
        if self._whole:
            feeds = {name: feeds[name].copy() for name in self._inputs}
        else:
            feeds = {name: feeds[name].reshape(-1)[self._spread(name, feeds[name].size)] for name in self._inputs}
        self._waiting.append((feeds, answer))
        if len(self._waiting) >= self._batch:
            self._count()

    def _spread(self, name: str, size: int) -> NDArray[np.intp]:
        return _spread(size, self._per_sample) if name in self._varying else self._places[name]

    def take(self) -> dict[str, Any]:
        self._count()
        mix, self._mix = self._mix, np.zeros(self._classes, np.int64)
        sampled, self._sampled = self._sampled, 0
        return {
            "sampled": sampled,
            "inputs": {name: bins.take() for name, bins in self._inputs.items()},
            "outputs": {name: bins.take() for name, bins in self._outputs.items()},
            "confidence": self._confidence.take() if self._confidence is not None else (),
            "class_mix": tuple(mix.tolist()),
        }

    def _count(self) -> None:
        if not self._waiting:
            return
        self._sampled += len(self._waiting)
        for name, bins in self._inputs.items():
            bins.add(np.concatenate([feeds[name] for feeds, _ in self._waiting], axis=None))
        gathered = {name: self._gathered(name) for name in self._outputs}
        for name, bins in self._outputs.items():
            bins.add(gathered[name])
        if self._classed is not None and self._classes:
            name = self._classed.tensor.name
            whole = gathered.get(name) if name in self._small else None
            if whole is None:
                whole = np.concatenate([answer[name] for _, answer in self._waiting], axis=None)
            self._count_classes(self._classed, whole.reshape(-1, self._classes))
        self._waiting.clear()

    def _gathered(self, name: str) -> NDArray[Any]:
        """Return the elements of an output that are counted, of all that wait."""
        if name in self._small:
            return np.concatenate([answer[name] for _, answer in self._waiting], axis=None)
        return np.concatenate([answer[name].reshape(-1)[self._places[name]] for _, answer in self._waiting])

    def _count_classes(self, info: OutputInfo, rows: NDArray[Any]) -> None:
        rows = rows[np.isfinite(rows).all(axis=1)].astype(np.float64)
        if not len(rows):
            return
        self._mix += np.bincount(rows.argmax(axis=1), minlength=self._classes)
        if self._confidence is not None:
            if info.kind == "logits":
                rows = np.exp(rows - rows.max(axis=1, keepdims=True))
                rows /= rows.sum(axis=1, keepdims=True)
            self._confidence.add(rows.max(axis=1))


def _spread(size: int, most: int) -> NDArray[np.intp]:
    """Return at most `most` places of `size`, evenly spread, always the same ones."""
    return np.unique(np.linspace(0, size - 1, min(size, most)).round().astype(np.intp))


class _Bins:
    def __init__(self, reference: Histogram) -> None:
        self._edges = np.asarray(reference.edges, np.float64)
        self._counts = np.zeros(self._edges.size + 1, np.int64)

    def add(self, values: NDArray[Any]) -> None:
        if values.dtype.kind == "f":
            values = values[np.isfinite(values)]
        self._counts += np.bincount(np.searchsorted(self._edges, values, side="right"), minlength=self._counts.size)

    def take(self) -> tuple[int, ...]:
        counts = tuple(self._counts.tolist())
        self._counts[:] = 0
        return counts


def classed_output(outputs: tuple[OutputInfo, ...]) -> OutputInfo | None:
    """Return the first output that gives every class a value; None: there is none."""
    for info in outputs:
        if info.kind in _CLASS_KINDS and info.tensor.shape:
            return info
    return None
