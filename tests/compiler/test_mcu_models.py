"""Real models on an emulated microcontroller: as right as the interpreter, picture by picture."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks import models
from edgeops import compiler
from edgeops.releases.bundles import open_bundle
from edgeops.runtimes.bundle_session import open_session

pytest.importorskip("torch", reason="torch is in the extra zoo: make test-full installs it")
pytest.importorskip("tflite_micro", reason="tflite-micro has wheels for Linux on x86-64 only")
pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(1800),
    pytest.mark.usefixtures("arm_compiler", "emulator"),
]


@pytest.mark.parametrize(
    ("name", "profile", "gates", "least"),
    [
        ("mnist-mcu", "cortex-m4", "", 0.93),
        # Raw accelerations reach far beyond most of them: int8 keeps every class, and no more of the logits.
        ("basic-motions", "cortex-m3", "\n[gates]\nsqnr_min_db = 10\n", 0.95),
    ],
)
def test_a_real_model_is_right_on_the_board(name: str, profile: str, gates: str, least: float, tmp_path: Path):
    folder = tmp_path / "handover"
    shutil.copytree(models.handover(name), folder)
    declared = folder / "handover.toml"
    declared.write_text(declared.read_text() + gates)
    one = compiler.compile(folder, [profile], tmp_path / "out").profiles[0]
    assert one.passed, one.missed
    assert one.chosen.metric is not None
    assert one.chosen.on_board is not None
    with np.load(folder / "evaluation.npz") as file:
        (inputs,) = (file[key] for key in file.files if key != "labels")
        labels = file["labels"]
    picked = np.linspace(0, len(labels) - 1, 250).astype(int)
    manifest = open_bundle(one.packaged.directory).manifest
    (source,), (output,) = manifest.inputs, manifest.outputs
    with open_session(one.packaged.directory, manifest) as session:
        assert session.provider.startswith("emulated board")
        got = [
            int(np.argmax(session.run({source.name: inputs[index].reshape(source.shape)})[output.tensor.name]))
            for index in picked
        ]
    accuracy = float(np.mean(np.array(got) == labels[picked]))
    print(f"{name} on {one.chosen.on_board.board}: accuracy {accuracy:.3f} on {len(picked)} labelled samples")
    assert accuracy >= least
    assert accuracy == pytest.approx(one.chosen.metric.artifact, abs=0.05)
