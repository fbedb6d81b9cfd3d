"""Drift on real data: calibrated limits hold on clean windows of every size, and real drift goes beyond them.

Windows are counted by what counts them on a device, and judged by what judges them in the control plane.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from adder_bundles import small_bundle
from numpy.typing import NDArray
from river.drift import ADWIN
from sklearn.datasets import load_digits

from benchmarks.models import basic_motions
from edgeops.agent.worker.meter import Meter
from edgeops.cli.demo.text_lines import text_lines
from edgeops.compiler import calibration, executor, golden, package
from edgeops.compiler.store import Product, Stored
from edgeops.contracts.bundle import BundleManifest, DriftReference, OutputInfo
from edgeops.contracts.drift import Shift, histograms_of, psi, shifts
from edgeops.contracts.tensors import TensorSpec
from edgeops.contracts.wire import decode, encode

Array = NDArray[Any]
Predict = Callable[[Array], Array]
SPLITS, WINDOWS = 5, 16


class Data(NamedTuple):
    """Samples, classes, and what makes drift of them. `fit` returns a model of samples and classes."""

    name: str
    x: Array
    labels: Array
    drifts: dict[str, Callable[[Array, Array], Array]]


def digits() -> Data:
    """8 by 8 pixels of handwriting."""
    found = load_digits()
    return Data(
        "digits",
        found.data.astype(np.float32),
        found.target,
        {
            "inverted": lambda x, y: 16 - x,
            "turned": lambda x, y: x.reshape(-1, 8, 8).transpose(0, 2, 1).reshape(-1, 64)[:, ::-1],
            "dim": lambda x, y: x * np.float32(0.6),
            "only threes and eights": lambda x, y: x[(y == 3) | (y == 8)],
        },
    )


def lines() -> Data:
    """Crops of scanned lines of text."""
    found = text_lines(windows_per_line=3)
    return Data(
        "text lines",
        np.concatenate([found.calibration.images, found.evaluation.images]),
        np.concatenate([found.calibration.labels, found.evaluation.labels]),
        {
            "dark": lambda x, y: (x * 0.7).astype(np.uint8),
            "noisy": lambda x, y: np.clip(
                x + np.random.default_rng(5).normal(0, 40, x.shape), 0, 255
            ).astype(np.uint8),
            "only turned ones": lambda x, y: np.ascontiguousarray(255 - x[y == 1]),
        },
    )  # fmt: skip


def motions() -> Data:
    """Acceleration and turning of a wrist, in windows."""
    x, labels = basic_motions.windows(basic_motions.TRAIN)
    return Data(
        "motions",
        x,
        labels,
        {
            "walking only": lambda x, y: x[y == 2],
            "another unit": lambda x, y: x * np.float32(1.5),
            "a sensor that stands still": lambda x, y: np.where(np.arange(6)[:, None] < 3, x, np.float32(0)),
        },
    )


DATA = [digits, lines, motions]


def predictor(x: Array, labels: Array) -> Predict:
    """Return a small classifier's probabilities: the nearer a class's mean, the likelier."""

    def features(rows: Array) -> Array:
        flat = np.asarray(rows, np.float32).reshape(len(rows), -1)
        return flat[:, :: 1 + flat.shape[1] // 100]

    means = np.stack([features(x[labels == label]).mean(axis=0) for label in np.unique(labels)])
    scale = float(features(x).var(axis=0).sum()) / 10

    def predict(rows: Array) -> Array:
        distances = ((features(rows)[:, None] - means) ** 2).sum(axis=-1) / scale
        powers = np.exp(distances.min(axis=1, keepdims=True) - distances)
        return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)

    return predict


class Field(NamedTuple):
    """A bundle's reference, and a device that sees samples."""

    reference: DriftReference
    manifest: BundleManifest
    predict: Predict

    def judged(self, x: Array, requests: int) -> list[Shift]:
        """Serve samples, and hold the window against the reference."""
        meter = Meter(self.manifest, "1.0.0", "sha256:0")
        for row, answer in zip(x, self.predict(x), strict=True):
            meter.answered(1.0, {"x": row[None]}, {"y": answer[None]})
        window = meter.take()
        assert window.counted == window.requests == requests
        reference = dict(histograms_of(self.reference))
        return shifts(
            reference, self.reference.samples, dict(histograms_of(window)), requests, self.reference.calibration
        )

    def alarms(self, x: Array) -> bool:
        return any(shift.alarms for shift in self.judged(x, len(x)))


def field(x: Array, predict: Predict, folder: Path) -> Field:
    """Make the reference as the compiler does."""
    y = predict(x)
    reference = golden.drift_reference({"x": x}, {"y": y}, {"y": "probabilities"})
    # As a device reads it, and counting every request.
    reference = msgspec.structs.replace(decode(encode(reference), DriftReference, what="reference"), request_share=1.0)
    inside = TensorSpec(name="x", dtype=x.dtype.name, shape=(1, *x.shape[1:]))
    outside = TensorSpec(name="y", dtype="float32", shape=(1, y.shape[1]))
    manifest = msgspec.structs.replace(
        small_bundle(folder).manifest,
        inputs=(inside,),
        outputs=(OutputInfo(tensor=outside, kind="probabilities"),),
        drift=reference,
    )
    return Field(reference, manifest, predict)


@pytest.fixture(params=DATA, ids=lambda make: make.__name__)
def data(request: pytest.FixtureRequest) -> Data:
    made: Data = request.param()
    return made


def parts(data: Data, seed: int, folder: Path) -> tuple[Field, Array]:
    """Return a bundle's field, and which samples neither its model nor its reference has seen."""
    order = np.random.default_rng(seed).permutation(len(data.x))
    taught, known, fresh = np.split(order, [len(order) // 5, len(order) * 3 // 5])
    return field(data.x[known], predictor(data.x[taught], data.labels[taught]), folder / str(seed)), fresh


def streams(made: Field, x: Array) -> list[Array]:
    """Return what a detector over single numbers may look at, request by request."""
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    return [flat.mean(axis=1), flat.std(axis=1), made.predict(x).max(axis=1)]


def adwin_sees(made: Field, before: Array, after: Array) -> bool:
    """Say whether river's ADWIN finds a change in what comes after."""
    for known, later in zip(streams(made, before), streams(made, after), strict=True):
        detector, changes = ADWIN(), []
        for value in np.concatenate([known, later]).tolist():
            detector.update(value)
            changes.append(detector.drift_detected)
        if any(changes[len(known) :]):
            return True
    return False


def test_clean_windows_alarm_as_seldom_as_stated_and_every_real_drift_alarms(data: Data, tmp_path: Path) -> None:
    """Clean ones are of samples that the reference never saw; the control is PSI above 0.1, as is the custom."""
    false, controls, count, seen_by_adwin = 0, 0, 0, 0
    for seed in range(SPLITS):
        made, fresh = parts(data, seed, tmp_path)
        assert made.reference.calibration is not None
        assert made.reference.calibration.false_alarm == calibration.FALSE_ALARM
        chance = np.random.default_rng(seed)
        for number in range(WINDOWS):
            requests = (30, 60, 100, 150)[number % 4]
            found = made.judged(data.x[chance.choice(fresh, requests, replace=False)], requests)
            false += any(shift.alarms for shift in found)
            controls += any(shift.psi > 0.1 for shift in found)
            count += 1
        for name, drift in data.drifts.items():
            drifted = drift(data.x[fresh], data.labels[fresh])[:150]
            assert made.alarms(drifted), f"{data.name}: {name} does not alarm"
            seen_by_adwin += seed == 0 and adwin_sees(made, data.x[fresh], drifted)
        if seed == 0:
            first, second = np.array_split(fresh, 2)
            assert not adwin_sees(made, data.x[first], data.x[second])
    # 1% is stated; more than 4 of 80 would come by chance once in a thousand times.
    assert false <= 4, f"{false} of {count}"
    assert controls / count > 0.25, f"only {controls} of {count} in the negative control"
    # Another judge, which knows neither bins nor limits: the clean samples are clean, and some of these drifts it sees.
    assert seen_by_adwin >= 1


def test_one_limit_for_all_sizes_would_alarm_on_clean_windows(tmp_path: Path) -> None:
    """Negative control: the limits of many requests, on few."""
    data = digits()
    made, fresh = parts(data, 0, tmp_path)
    levels = made.reference.calibration.levels  # type: ignore[union-attr]
    widest = levels[-1]
    chance = np.random.default_rng(0)
    beyond = sum(
        any(shift.psi > widest.psi[shift.name] for shift in made.judged(data.x[chance.choice(fresh, 30)], 30))
        for _ in range(40)
    )
    assert beyond > 20
    assert [level.requests for level in levels] == list(calibration.LEVELS)
    for name in widest.psi:
        limits = [level.psi[name] for level in levels]
        assert limits == sorted(limits, reverse=True)


def test_limits_of_tensors_one_by_one_would_alarm_more_often_with_many(tmp_path: Path) -> None:
    """Of 20 tensors the joint limits alarm in 1% of clean windows, limits of each by itself in far more."""
    rng = np.random.default_rng(1)
    tables = {f"t{i:02d}": (np.eye(8, dtype=np.int64)[rng.integers(0, 8, 300)]) for i in range(20)}
    joint = calibration.calibrate(tables, resamples=400)
    alone = {name: calibration.calibrate({name: table}, resamples=400) for name, table in tables.items()}
    assert joint is not None
    reference = {name: table.sum(axis=0).tolist() for name, table in tables.items()}
    together, apart = 0, 0
    for _ in range(200):
        picked = rng.integers(0, 300, 100)
        seen = {name: table[picked].sum(axis=0).tolist() for name, table in tables.items()}
        together += any(shift.alarms for shift in shifts(reference, 300, seen, 125, joint))
        apart += any(
            any(shift.alarms for shift in shifts({name: reference[name]}, 300, {name: seen[name]}, 125, one))
            for name, one in alone.items()
        )
    assert together <= 9
    assert apart > 3 * max(1, together)


def test_too_few_samples_or_requests_say_nothing() -> None:
    assert calibration.calibrate({}) is None
    assert calibration.calibrate({"x": np.ones((calibration.MIN_SAMPLES - 1, 4), np.int64)}) is None
    found = calibration.calibrate({"x": np.tile(np.eye(4, dtype=np.int64), (20, 1))}, resamples=200)
    (few,) = shifts({"x": [20] * 4}, 80, {"x": [0, 0, 0, 29]}, 29, found)
    (enough,) = shifts({"x": [20] * 4}, 80, {"x": [0, 0, 0, 30]}, 30, found)
    assert (few.psi_limit, few.alarms, enough.alarms) == (None, False, True)


def test_a_tensor_that_never_varies_has_limits_of_zero_and_never_alarms() -> None:
    found = calibration.calibrate({"x": np.tile([0, 3, 0], (200, 1))}, resamples=200)
    for requests in (30, 199, 200, 201, 5000, 100_000):
        (shift,) = shifts({"x": [0, 600, 0]}, 200, {"x": [0, 3 * requests, 0]}, requests, found)
        assert (shift.psi, shift.js, shift.alarms) == (0.0, 0.0, False)


def test_bins_that_nobody_is_in_are_counted_though_they_are_left_out() -> None:
    """As a device counts them: half a value more in each. Negative control: bins that are not told of."""
    chance = np.random.default_rng(0)
    known, seen = (chance.multinomial(200, [0.1, 0.2, 0.7]) for _ in range(2))
    whole = psi([*known, *[0] * 500], [*seen, *[0] * 500], 150)
    rows = known[None].astype(np.float64), seen[None].astype(np.float64)
    assert calibration._psi(*rows, 150, 503)[0] == pytest.approx(whole, rel=1e-12)
    assert calibration._psi(*rows, 150, 3)[0] != pytest.approx(whole, rel=0.1)


def test_limits_are_found_once_for_the_same_counts(tmp_path: Path, own_cache: Path) -> None:
    table = np.random.default_rng(0).multinomial(5, [0.2] * 5, size=100)
    with executor.machine(1) as machine:
        ground: Any = SimpleNamespace(machine=machine, samples=Stored(tmp_path, Product(facts=("samples",))))

        def products(tables: dict[str, NDArray[np.int64]]) -> int:
            """Return how many products finding limits adds to the cache."""
            before = machine.store.usage().products
            package._limits(ground, tables)
            return machine.store.usage().products - before

        assert products({"x": table}) == 3, "counts, draws and limits"
        assert package._limits(ground, {"x": table}) == calibration.calibrate({"x": table})
        assert products({"x": table}) == 0
        assert products({"x": table[::-1]}) == products({"y": table}) == 2, "the draws are those of before"
        assert package._limits(ground, {"x": table[:10]}) is None


def test_the_same_data_give_the_same_limits() -> None:
    table = {"x": np.random.default_rng(0).multinomial(5, [0.2] * 5, size=100)}
    first, second = (calibration.calibrate(table, resamples=300) for _ in range(2))
    assert first is not None
    assert second is not None
    assert encode(first) == encode(second)


def test_the_share_of_requests_falls_with_what_is_counted_and_rises_with_what_an_inference_is_given() -> None:
    assert golden.request_share(4, 1) == 0.55
    assert golden.request_share(84, 64) == 0.2
    assert golden.request_share(276, 27_648) == 0.42
    assert golden.request_share(276, 270_000) == 1.0
    assert golden.request_share(100_000, 1) == 0.01
