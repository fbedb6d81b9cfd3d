"""What a worker counts: what was answered, whole or by the share that the bundle states, exact however it is merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from adder_bundles import small_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeops.agent.telemetry import Windows, merge
from edgeops.agent.worker import meter as meters
from edgeops.agent.worker.meter import Meter
from edgeops.contracts.bundle import BundleManifest, DriftReference, Histogram, OutputInfo
from edgeops.contracts.sketches import QuantileSketch
from edgeops.contracts.telemetry import ModelWindow
from edgeops.contracts.tensors import TensorSpec
from edgeops.contracts.wire import decode, encode
from edgeops.control.ingest.rollups import traffic_of

EDGES = (-1.0, 0.0, 1.0)
CLASSES = 3


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> BundleManifest:
    return small_bundle(tmp_path_factory.mktemp("bundles") / "b").manifest


def manifest(plain: BundleManifest, inputs: int = 4, *, share: float = 1.0, most: int = 256) -> BundleManifest:
    bins = Histogram(edges=EDGES, counts=(1, 1, 1, 1))
    inside = TensorSpec(name="x", dtype="float32", shape=(1, inputs))
    outside = TensorSpec(name="y", dtype="float32", shape=(1, CLASSES))
    return msgspec.structs.replace(
        plain,
        inputs=(inside,),
        outputs=(OutputInfo(tensor=outside, kind="probabilities"),),
        drift=DriftReference(
            samples=4, elements_per_sample=most, inputs={"x": bins}, outputs={"y": bins}, confidence=bins,
            class_mix=(1,) * CLASSES, request_share=share,
        ),
    )  # fmt: skip


def served(made: BundleManifest, latencies: list[float], x: NDArray[Any], y: NDArray[Any], errors: int) -> ModelWindow:
    meter = Meter(made, "1.0.0", "sha256:0")
    for latency, feed, answer in zip(latencies, x, y, strict=True):
        meter.answered(latency, {"x": feed[None]}, {"y": answer[None]})
    for _ in range(errors):
        meter.failed("E-RUNTIME-RUN")
    return meter.take()


def histogram(values: NDArray[Any], edges: tuple[float, ...] = EDGES) -> tuple[int, ...]:
    """NumPy's own counting."""
    counts, _ = np.histogram(values.astype(np.float64), [-np.inf, *edges, np.inf])
    return tuple(counts.tolist())


def test_a_window_is_what_numpy_counts(plain: BundleManifest, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(1000, 4)).astype(np.float32), rng.dirichlet([1] * CLASSES, 1000).astype(np.float32)
    latencies = [0.0, *rng.lognormal(size=999).tolist()]
    for batch in (1, 7, 256, 4096):
        monkeypatch.setattr(meters, "_BATCH", batch)
        window = served(manifest(plain), latencies, x, y, errors=2)
        assert (window.requests, window.sampled, window.errors) == (1000, 1000, {"E-RUNTIME-RUN": 2})
        assert window.inputs["x"] == histogram(x)
        assert window.outputs["y"] == histogram(y)
        assert window.confidence == histogram(y.max(axis=1))
        assert window.class_mix == tuple(np.bincount(y.argmax(axis=1), minlength=CLASSES).tolist())
        expected = QuantileSketch.of(latencies)
        assert (window.latency_ms.bins, window.latency_ms.zeros) == (expected.bins, expected.zeros)
        assert window.latency_ms.maximum == expected.maximum
        assert window.latency_ms.total == pytest.approx(expected.total)


def test_of_large_tensors_the_same_elements_are_counted_always(plain: BundleManifest) -> None:
    x = np.zeros((5, 1000), np.float32)
    x[:, ::2] = 2.0
    window = served(manifest(plain, 1000, most=10), [1.0] * 5, x, np.ones((5, CLASSES), np.float32), 0)
    places = np.unique(np.linspace(0, 999, 10).round().astype(int))
    assert window.inputs["x"] == histogram(x[:, places])
    assert sum(window.inputs["x"]) == 50


def test_a_share_of_the_requests_is_counted_and_its_number_is_told(plain: BundleManifest) -> None:
    count, share = 20_000, 0.2
    x = np.arange(count, dtype=np.float32)[:, None].repeat(4, axis=1)
    window = served(manifest(plain, share=share), [1.0] * count, x, np.ones((count, CLASSES), np.float32), 0)
    assert window.requests == window.latency_ms.count == count
    assert window.sampled is not None
    # Six standard deviations of a binomial count.
    assert abs(window.sampled - share * count) < 6 * (count * share * (1 - share)) ** 0.5
    assert sum(window.class_mix) == window.counted == window.sampled
    assert sum(window.inputs["x"]) == 4 * window.sampled
    assert traffic_of(window).sampled == window.sampled


def test_each_request_has_the_same_chance(plain: BundleManifest) -> None:
    """Also the first, and also on traffic that comes in turns."""
    made, seen = manifest(plain, share=0.25), np.zeros(4, int)
    for _ in range(4000):
        meter, before = Meter(made, "1.0.0", "sha256:0"), 0
        for place in range(4):
            meter.answered(1.0, {"x": np.full((1, 4), np.float32(0))}, {"y": np.eye(4, CLASSES, dtype=np.float32)[:1]})
            now = meter._drift._sampled + len(meter._drift._waiting)  # type: ignore[union-attr]
            seen[place] += now - before
            before = now
    assert np.all(np.abs(seen - 1000) < 6 * (4000 * 0.25 * 0.75) ** 0.5), seen


rows = st.lists(
    st.tuples(st.floats(0, 1e4), st.floats(-4, 4, width=32), st.integers(0, CLASSES - 1)), min_size=0, max_size=30
)


@given(st.lists(rows, min_size=1, max_size=5), st.integers(0, 3))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_merged_windows_are_those_of_the_pooled_requests(
    plain: BundleManifest, parts: list[list[tuple[float, float, int]]], errors: int
) -> None:
    """On the device and in the control plane, in any order, and over the wire."""
    made = manifest(plain)

    def window(part: list[tuple[float, float, int]]) -> ModelWindow:
        x = np.array([[value] * 4 for _, value, _ in part], np.float32).reshape(-1, 4)
        y = np.eye(CLASSES, dtype=np.float32)[[cls for _, _, cls in part]].reshape(-1, CLASSES)
        made_window = served(made, [latency for latency, _, _ in part], x, y, errors)
        return decode(encode(made_window), ModelWindow, what="window")

    def known(found: ModelWindow) -> dict[str, Any]:
        """All but the sum of latencies, whose last bits depend on the order."""
        plain_fields = msgspec.to_builtins(found)
        plain_fields["latency_ms"].pop("total")
        return plain_fields  # type: ignore[no-any-return]

    windows = [window(part) for part in parts]
    pooled = window([row for part in parts for row in part])
    pooled = msgspec.structs.replace(pooled, errors={code: count * len(parts) for code, count in pooled.errors.items()})
    for order in (windows, windows[::-1]):
        sums = Windows()
        for one in order:
            sums.add(one)
        (merged,) = sums.take()
        assert known(merged) == known(pooled)
        assert merged.latency_ms.total == pytest.approx(pooled.latency_ms.total)
    total = traffic_of(windows[0])
    for one in windows[1:]:
        total = total.plus(traffic_of(one))
    expected = traffic_of(pooled)
    assert (total.requests, total.errors, total.histograms, total.sampled) == (
        expected.requests, expected.errors, expected.histograms, expected.sampled,
    )  # fmt: skip


def test_what_older_workers_count_is_of_all_requests() -> None:
    old = ModelWindow(model="m", release="1", digest="d", latency_ms=QuantileSketch(), requests=7, inputs={"x": (7,)})
    new = msgspec.structs.replace(old, requests=10, sampled=2, inputs={"x": (2,)})
    assert (old.counted, merge(old, new).counted, merge(old, new).inputs) == (7, 9, {"x": (9,)})


def test_large_answers_do_not_pile_up(plain: BundleManifest) -> None:
    big = TensorSpec(name="y", dtype="float32", shape=(1, 1 << 17))
    made = manifest(plain)
    assert made.drift is not None
    made = msgspec.structs.replace(
        made,
        outputs=(OutputInfo(tensor=big, kind="values"),),
        drift=msgspec.structs.replace(made.drift, confidence=None, class_mix=()),
    )
    meter = Meter(made, "1.0.0", "sha256:0")
    for _ in range(10):
        meter.answered(1.0, {"x": np.zeros((1, 4), np.float32)}, {"y": np.zeros((1, 1 << 17), np.float32)})
        assert len(meter._drift._waiting) <= 2  # type: ignore[union-attr]
    assert meter.take().sampled == 10


def test_files_without_a_share_count_all(tmp_path: Path) -> None:
    old = b'{"samples":1,"elements_per_sample":4,"inputs":{},"outputs":{}}'
    found = decode(old, DriftReference, what="reference")
    assert (found.request_share, found.calibration) == (1.0, None)
