"""The real OCR line classifier on real text lines: what compile chooses for a board without latency of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeops import compiler
from edgeops.contracts.errors import EdgeopsError
from edgeops.releases.bundles import open_bundle
from edgeops.runtimes import golden
from edgeops.runtimes.bundle_session import open_session
from edgeops.testkit.damage import damage_artifact


def test_line_classifier_becomes_a_proved_litert_bundle(ocr_handover: Path, tmp_path: Path):
    one = compiler.compile(ocr_handover, ["raspberry-pi-4"], tmp_path / "out").profiles[0]
    assert one.passed
    assert one.chosen.runtime == "litert"
    assert one.chosen.size_bytes < (ocr_handover / "model.onnx").stat().st_size
    assert one.chosen.metric is not None
    assert one.chosen.metric.drop_high <= 0.02
    bundle = open_bundle(one.packaged.directory)
    data = np.load(ocr_handover / "evaluation.npz")
    with open_session(bundle.directory, bundle.manifest) as session:
        right = [
            session.run({"image": image[None]})["orientation"].argmax() == label
            for image, label in zip(data["image"][:80], data["labels"][:80], strict=True)
        ]
    assert np.mean(right) >= 0.9
    damaged = damage_artifact(bundle.directory, tmp_path / "damaged")
    with open_session(damaged.directory, damaged.manifest) as session:
        try:
            golden.replay(session, damaged.manifest, golden.load(damaged.directory, damaged.manifest))
        except EdgeopsError as error:
            code = error.code
        else:
            code = "no error"
    assert code == "E-SELFTEST-GOLDEN"
