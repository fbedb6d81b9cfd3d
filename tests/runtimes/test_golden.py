"""Golden vectors catch what only running shows, and let a whole bundle pass."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import DEVICE_SHAPE, VECTORS, write_artifact

from edgeops.contracts.errors import EdgeopsError
from edgeops.releases.bundles import Bundle, open_bundle, seal
from edgeops.runtimes.bundle_session import open_session
from edgeops.runtimes.golden import load, replay
from edgeops.testkit.damage import damage_artifact


def replay_of(bundle: Bundle):
    with open_session(bundle.directory, bundle.manifest) as session:
        return replay(session, bundle.manifest, load(bundle.directory, bundle.manifest))


def test_a_whole_bundle_passes(bundle: Bundle):
    found = replay_of(bundle)
    assert (found.worst_output, found.vectors) == ("p", VECTORS)
    assert found.max_abs_diff <= 1e-6
    assert found.min_cosine > 0.9999


def test_a_slightly_wrong_artifact_with_a_right_manifest_is_refused(bundle: Bundle):
    write_artifact(bundle.directory / "model.onnx", shift=0.002)
    damaged = seal(bundle.directory, bundle.manifest)
    open_bundle(damaged.directory, expect_digest=damaged.digest)
    with pytest.raises(EdgeopsError, match="golden vector") as caught:
        replay_of(damaged)
    assert caught.value.code == "E-SELFTEST-GOLDEN"


def test_a_change_below_the_tolerance_passes(bundle: Bundle):
    """Negative control of the one above: it is the tolerance that decides, not any change of bytes."""
    write_artifact(bundle.directory / "model.onnx", shift=1e-8)
    replay_of(seal(bundle.directory, bundle.manifest))


def test_lost_quality_against_the_float_source_is_refused(bundle: Bundle):
    source = np.load(bundle.directory / "golden/source-p.npy")
    np.save(bundle.directory / "golden/source-p.npy", source[..., ::-1].copy())
    with pytest.raises(EdgeopsError, match="cosine"):
        replay_of(seal(bundle.directory, bundle.manifest))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_refused(bundle: Bundle, value: float):
    write_artifact(bundle.directory / "model.onnx", shift=value)
    with pytest.raises(EdgeopsError) as caught:
        replay_of(seal(bundle.directory, bundle.manifest))
    assert caught.value.code == "E-SELFTEST-GOLDEN"


@pytest.mark.parametrize("content", [b"no array", np.zeros(3, np.float32), np.zeros((VECTORS, 1, 4), np.float64)])
def test_golden_files_of_another_form_are_refused(bundle: Bundle, content):
    path = bundle.directory / "golden/p.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    sealed = seal(bundle.directory, bundle.manifest)
    with pytest.raises(EdgeopsError) as caught:
        load(sealed.directory, sealed.manifest)
    assert caught.value.code == "E-BUNDLE-INVALID"


def test_the_testkit_damages_a_bundle_so_that_only_running_shows_it(bundle: Bundle, tmp_path):
    damaged = damage_artifact(bundle.directory, tmp_path / "damaged")
    assert damaged.digest != bundle.digest
    open_bundle(damaged.directory, expect_digest=damaged.digest)
    with pytest.raises(EdgeopsError):
        replay_of(damaged)
    with open_session(damaged.directory, damaged.manifest) as session:
        answer = session.run({"image": np.zeros(DEVICE_SHAPE, np.uint8)})["p"]
    assert np.isfinite(answer).all()


def test_an_infinity_that_the_artifact_gave_on_the_compile_host_too_is_right(bundle: Bundle):
    """log(0) is a right answer where it was one before, and only there."""

    class Session:
        def __init__(self, answer: np.ndarray) -> None:
            self.answer = answer

        def run(self, feeds):
            return {"p": self.answer}

    right = np.array([[-np.inf, 0.0, 1.0, 2.0]], np.float32)
    vectors = load(bundle.directory, bundle.manifest)
    vectors = vectors._replace(artifact_outputs={"p": np.stack([right] * VECTORS)}, source_outputs={})
    assert replay(Session(right), bundle.manifest, vectors).max_abs_diff == 0
    for wrong in (-right, np.nan * right, np.where(np.isinf(right), 0, right)):
        with pytest.raises(EdgeopsError) as caught:
            replay(Session(wrong), bundle.manifest, vectors)
        assert caught.value.code == "E-SELFTEST-GOLDEN"
