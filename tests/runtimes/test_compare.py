"""The figures that gates rest on, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgeops.contracts.evidence import OutputError
from edgeops.contracts.wire import decode, encode
from edgeops.runtimes.compare import SQNR_CAP_DB, cosine, output_error, sqnr_db

REFERENCE = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)


def test_equal_outputs():
    error = output_error("p", "probabilities", REFERENCE, REFERENCE)
    assert (error.cosine, error.sqnr_db, error.max_abs, error.agreement) == (pytest.approx(1), SQNR_CAP_DB, 0, 1.0)


def test_known_difference():
    got = REFERENCE + np.array([[0.1, 0], [0, 0]], np.float32)
    error = output_error("p", "probabilities", REFERENCE, got)
    assert error.max_abs == pytest.approx(0.1)
    assert error.sqnr_db == pytest.approx(10 * math.log10(float(np.square(REFERENCE).sum()) / 0.01), rel=1e-5)


def test_agreement_counts_class_decisions():
    assert output_error("p", "logits", REFERENCE, REFERENCE[:, ::-1]).agreement == 0
    assert output_error("p", "values", REFERENCE, REFERENCE[:, ::-1]).agreement is None


@pytest.mark.parametrize("bad", [np.full_like(REFERENCE, np.nan), np.full_like(REFERENCE, np.inf), REFERENCE[:1]])
def test_outputs_that_cannot_be_compared_are_as_bad_as_can_be(bad: np.ndarray):
    error = output_error("p", "probabilities", REFERENCE, bad)
    assert (error.cosine, error.agreement, error.sqnr_db) == (0, 0, -SQNR_CAP_DB)


def test_zero_outputs_are_alike_only_to_each_other():
    zero = np.zeros((1, 4))
    assert cosine(zero, zero) == 1
    assert cosine(zero, zero + 1) == 0
    assert sqnr_db(zero, zero + 1) == -SQNR_CAP_DB


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_evidence_of_an_output_that_is_not_finite_can_be_read_again(bad: float):
    """JSON has no infinity: it would be written as null and refused by every reader."""
    error = output_error("p", "values", REFERENCE, np.full_like(REFERENCE, bad))
    assert decode(encode(error), OutputError, what="evidence") == error


@pytest.mark.parametrize(("kind", "yes", "no"), [("probabilities", 0.9, 0.1), ("logits", 2.0, -2.0)])
def test_a_single_column_has_two_classes(kind: str, yes: float, no: float):
    """The largest of one column is always that column: opposite answers must not count as agreement."""
    reference = np.array([[yes], [no]], np.float32)
    assert output_error("p", kind, reference, reference).agreement == 1
    assert output_error("p", kind, reference, reference[::-1]).agreement == 0


def test_a_sample_that_is_nothing_beside_the_others_is_judged_by_its_size_not_its_direction():
    """A page without text answers 1e-7 everywhere: its direction is rounding. Other noise is alike, a mark is not."""
    page, blank = np.linspace(0, 1, 16), np.full(16, 1e-7)
    reference = np.stack([page, blank])
    assert cosine(reference, np.stack([page, -blank])) == pytest.approx(1.0)
    assert cosine(reference, np.stack([page, np.eye(16)[0]])) == pytest.approx(0.5)
    assert cosine(reference[1:], -reference[1:]) == pytest.approx(-1.0)
