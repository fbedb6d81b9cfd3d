"""Real models of every kind through compile: right runtime, right precision, and answers that an own check confirms."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from benchmarks import models
from edgeops import compiler
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.handover import Input
from edgeops.intake.handover import read
from edgeops.releases.bundles import open_bundle
from edgeops.runtimes.bundle_session import open_session
from edgeops.runtimes.steps import apply

PROFILES = ("intel-nuc", "generic-x86-64", "raspberry-pi-4")
CHECKED = 40
# Decision trees and models with state stay float, on onnxruntime.
FLOAT_ON_ONNXRUNTIME = {"digits-forest", "digits-boosting", "silero-vad"}
QUICK = [("digits-mlp", "raspberry-pi-4"), ("digits-forest", "intel-nuc"), ("silero-vad", "intel-nuc")]
TRAINED_BY_TORCH = {"mnist-cnn", "mnist-small", "mnist-mcu", "basic-motions"}


def everything() -> list[Any]:
    return [
        pytest.param(name, profile, marks=[] if (name, profile) in QUICK else [pytest.mark.full])
        for name in models.MODELS
        for profile in PROFILES
    ]


def handover(name: str) -> Path:
    if name in TRAINED_BY_TORCH:
        pytest.importorskip("torch", reason="torch is in the extra zoo: make test-full installs it")
    return models.handover(name)


def as_source(inputs: tuple[Input, ...], rows: dict[str, Any]) -> dict[str, Any]:
    return {item.model_input or item.name: apply(item.preprocess, rows[item.name]) for item in inputs}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "profile"), everything())
def test_a_real_model_keeps_its_answers(name: str, profile: str, tmp_path: Path) -> None:
    folder = handover(name)
    result = compiler.compile(folder, [profile], tmp_path / "out").profiles[0]
    assert result.passed, result.missed
    if name in FLOAT_ON_ONNXRUNTIME:
        assert (result.chosen.runtime, result.chosen.precision) == ("onnxruntime", "fp32")
    if name == "digits-forest":
        others = {one.reason for one in result.evidence.candidates if one.runtime != "onnxruntime"}
        assert others <= {"decision trees run on onnxruntime only"}, "none is tried, and the reason is kept"
    declared = read(folder).handover
    source = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.model_output or output.name for output in declared.outputs]
    with np.load(folder / "evaluation.npz") as file:
        data = {item.name: file[item.name][:CHECKED].reshape(-1, *item.shape) for item in declared.inputs}
    bundle = open_bundle(result.packaged.directory)
    wanted, got = [], []
    with open_session(bundle.directory, bundle.manifest) as session:
        for index in range(len(next(iter(data.values())))):
            row = {key: np.asarray(values[index]) for key, values in data.items()}
            wanted.append(source.run(names, as_source(declared.inputs, row)))
            answer = session.run(row)
            got.append([answer[output.name] for output in declared.outputs])
    for number, output in enumerate(declared.outputs):
        ours = np.stack([row[number] for row in got]).astype(np.float64)
        theirs = np.stack([row[number] for row in wanted]).astype(np.float64)
        assert ours.shape == theirs.shape
        if output.kind in ("probabilities", "logits"):
            assert (ours.argmax(-1) == theirs.argmax(-1)).mean() >= declared.gates.agreement_min - 0.05
        flat = ours.reshape(len(ours), -1), theirs.reshape(len(theirs), -1)
        cosine = (flat[0] * flat[1]).sum(1) / (np.linalg.norm(flat[0], axis=1) * np.linalg.norm(flat[1], axis=1))
        assert np.nanmean(cosine) >= declared.gates.cosine_min - 0.01


def test_decision_trees_are_refused_where_nothing_runs_them(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "device_profiles" / "generic-arm64.toml").read_text()
    text = text.replace('name = "generic-arm64"', 'name = "tflite-only"')
    profile = tmp_path / "tflite-only.toml"
    profile.write_text(re.sub(r'\[\[runtimes\]\]\nname = "onnxruntime".*?\n\n', "", text, flags=re.DOTALL))
    with pytest.raises(EdgeopsError, match="decision trees run on onnxruntime only, and it has litert") as refused:
        compiler.compile(handover("digits-forest"), [str(profile)], tmp_path / "out")
    assert refused.value.code == "E-MODEL-UNSUPPORTED"
