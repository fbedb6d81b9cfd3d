"""Who is mistaken for whom, which samples are worst, and their pictures: counted anew, and read by another library."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from edgeops.compiler import examine as examining
from edgeops.compiler.examine import Judged, confusion, examine
from edgeops.compiler.pictures import picture, trace
from edgeops.contracts.evidence import Evidence, Host
from edgeops.contracts.examination import MAX_PICTURE_SIDE, MAX_TRACE_POINTS, Why
from edgeops.contracts.wire import encode
from edgeops.releases.catalog import MAX_EVIDENCE_BYTES

RNG = np.random.default_rng(5)


def shares(classes: np.ndarray, sureness: float | np.ndarray, number: int) -> np.ndarray:
    """Probabilities whose class and share are chosen."""
    sure = np.broadcast_to(sureness, classes.shape)
    values = np.repeat(((1 - sure) / (number - 1))[..., None], number, axis=-1)
    np.put_along_axis(values, classes[..., None], sure[..., None], axis=-1)
    return values.astype(np.float32)


def judged(source: np.ndarray, artifact: np.ndarray, labels: np.ndarray | None, **fields: object) -> Judged:
    inputs = {"x": RNG.integers(0, 255, (len(source), 1, 8, 8, 3)).astype(np.uint8)}
    plain = Judged("y", "probabilities", "none" if labels is None else "accuracy", source, artifact, labels, inputs)
    return plain._replace(**fields)  # type: ignore[arg-type]


def test_confusion_counts_every_decision_once():
    truth, said = RNG.integers(0, 7, 900), RNG.integers(0, 7, 900)
    found = confusion(truth, said)
    assert found is not None
    counts = np.zeros((7, 7), int)
    np.add.at(counts, (truth, said), 1)
    again = np.diag(found.right)
    for true, decided, count in found.pairs:
        again[true, decided] = count
    assert np.array_equal(again, counts)
    assert found.support == tuple(counts.sum(axis=1))
    assert found.decided == tuple(counts.sum(axis=0))
    assert [count for _, _, count in found.pairs] == sorted((count for _, _, count in found.pairs), reverse=True)


def test_too_many_classes_or_negative_ones_have_no_confusion():
    assert confusion(np.array([0, examining.MAX_CLASSES]), np.array([0, 0])) is None
    assert confusion(np.array([0, -1]), np.array([0, 0])) is None


def test_worst_are_first_what_the_source_has_right_then_the_surest_mistakes():
    truth = np.zeros(6, np.int64)
    source = np.array([0, 1, 0, 1, 0, 1])
    artifact = np.array([0, 1, 1, 1, 2, 0])
    sure = np.array([0.9, 0.6, 0.55, 0.95, 0.7, 0.8])
    found = examine(judged(shares(source, 0.9, 3), shares(artifact, sure, 3), truth), data="evaluation", pictures=True)
    assert [(one.index, one.why) for one in found.worst] == [
        (4, Why.CHANGED), (2, Why.CHANGED), (3, Why.WRONG), (1, Why.WRONG),
    ]  # fmt: skip
    assert (found.worst[0].truth, found.worst[0].source, found.worst[0].artifact) == (0, 0, 2)
    assert found.worst[0].confidence == pytest.approx(0.7, abs=1e-6)
    assert all(one.picture for one in found.worst)


def test_sequences_of_decisions_are_counted_decision_by_decision():
    truth = np.array([[0, 1, 2], [2, 1, 0]])
    artifact = np.array([[0, 1, 2], [1, 1, 1]])
    found = examine(judged(shares(truth, 0.9, 3), shares(artifact, 0.8, 3), truth), data="evaluation", pictures=False)
    assert (found.samples, found.decisions) == (2, 3)
    assert found.artifact is not None
    assert sum(found.artifact.support) == 6
    assert [(one.index, one.wrong) for one in found.worst] == [(1, 2)]
    assert found.worst[0].picture == b""


def test_without_labels_the_source_is_what_counts():
    source, artifact = np.array([0, 1, 2]), np.array([0, 2, 2])
    found = examine(judged(shares(source, 0.9, 3), shares(artifact, 0.8, 3), None), data="calibration", pictures=True)
    assert (found.source, found.artifact) == (None, None)
    assert [(one.index, one.why, one.truth) for one in found.worst] == [(1, Why.FAR, None)]


def test_values_are_worst_where_they_are_farthest_from_the_truth():
    labels = np.zeros((4, 1), np.float32)
    source, artifact = np.array([[0.0], [1.0], [9.0], [0.0]]), np.array([[0.0], [2.0], [3.0], [0.5]])
    one = judged(source, artifact, labels, kind="values", metric="mae")
    found = examine(one, data="evaluation", pictures=False)
    assert [(item.index, item.error, item.why) for item in found.worst] == [
        (2, 3.0, Why.WRONG), (1, 2.0, Why.CHANGED), (3, 0.5, Why.CHANGED),
    ]  # fmt: skip


def test_evidence_stays_within_its_limit_whatever_the_model():
    """The most classes, all mistaken for others, and the largest pictures that hardly compress."""
    count = 3 * examining.MAX_CLASSES
    truth, said = RNG.integers(0, examining.MAX_CLASSES, count), RNG.integers(0, examining.MAX_CLASSES, count)
    table = confusion(truth, said)
    assert table is not None
    assert sum(count for _, _, count in table.pairs) + table.left_out == int((truth != said).sum())
    noise = RNG.integers(0, 255, (20, 1, 400, 400, 4)).astype(np.uint8)
    classes = np.zeros(20, np.int64)
    one = judged(shares(classes, 0.9, 3), shares(classes + 1, 0.9, 3), classes, inputs={"x": noise})
    seen = examine(one, data="evaluation", pictures=True)
    evidence = Evidence(
        bundle="sha256:" + "0" * 64, model="m", profile="p", candidates=(), calibration_samples=1, evaluation_samples=1,
        host=Host(arch="a", cpu="c", cores=1, python="3"), created_at_s=1.0,
        examination=type(seen)(**{**{name: getattr(seen, name) for name in seen.__struct_fields__}, "artifact": table}),
    )  # fmt: skip
    assert len(seen.worst) == examining.WORST_COUNT
    assert len(encode(evidence)) < MAX_EVIDENCE_BYTES / 4


@pytest.mark.parametrize("shape", [(1, 6, 9, 1), (1, 6, 9, 3), (1, 6, 9, 4), (1, 3, 6, 9), (1, 1, 6, 9)])
def test_a_picture_is_read_by_another_library_as_it_was(shape: tuple[int, ...]):
    values = RNG.integers(0, 255, shape).astype(np.uint8)
    read = np.asarray(Image.open(io.BytesIO(picture(values))))
    image = values[0] if shape[-1] in (1, 3, 4) else values[0].transpose(1, 2, 0)
    assert np.array_equal(read.reshape(image.shape), image)


def test_a_large_picture_is_made_small_and_keeps_its_form():
    ramp = np.broadcast_to(np.linspace(0, 255, 640)[None, None, :, None], (1, 320, 640, 3)).astype(np.float32)
    small = Image.open(io.BytesIO(picture(ramp)))
    assert small.size == (MAX_PICTURE_SIDE, MAX_PICTURE_SIDE // 2)
    row = np.asarray(small)[10, :, 0].astype(int)
    assert (np.diff(row) >= 0).all()
    assert (row[0], row[-1]) == (1, 254)


def test_what_is_no_picture_is_a_line_or_nothing():
    assert picture(np.zeros((1, 16), np.uint8)) == b""
    (line,) = trace(np.arange(1000, dtype=np.float32)[None])
    assert len(line) == MAX_TRACE_POINTS
    assert list(line) == sorted(line)
    assert len(trace(np.zeros((1, 3, 50)))) == len(trace(np.zeros((1, 50, 3)))) == 3
    assert trace(np.zeros((1, 50, 60))) == ()
    assert trace(np.zeros((1, 1))) == ()
    flat = np.asarray(Image.open(io.BytesIO(picture(np.full((1, 8, 8, 1), 3.0)))))
    assert not flat.any()
