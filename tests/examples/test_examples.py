"""Every example, from its script to a gated, signed release with its report, by the commands that its README names.

The scripts run as a person runs them, in a process of their own; so do the commands.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import lines
from edgeops.client.inference_local import LocalModel
from edgeops.intake.handover import read
from edgeops.releases.bundles import open_bundle

ROOT = Path(__file__).parents[2]
EDGEOPS = Path(sys.executable).parent / "edgeops"
EXAMPLES = ROOT / "examples"
pytestmark = pytest.mark.timeout(900)


def example(name: str, script: str, out: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{name}.{script}", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def edgeops(*words: object) -> Any:
    done = subprocess.run([EDGEOPS, *map(str, words), "--json"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def released(handover: Path, profile: str, folder: Path) -> tuple[dict[str, Any], Path]:
    """Check, compile, sign and report; return the compile's record of the profile, and the report."""
    looked = edgeops("handover", "check", handover, "--profile", profile)
    assert looked["profiles"][0]["runs"]
    compiled = edgeops("compile", handover, "--profile", profile, "--out", folder / "build")["profiles"][0]
    assert compiled["passed"]
    home = folder / "home"
    edgeops("trust", "init", "--home", home, "--fleet", "examples")
    edgeops("release", "create", "--home", home, "--version", "1.0.0", folder / "build" / profile / "bundle")
    release = edgeops("release", "publish", "--home", home, read(handover).handover.model.name, "1.0.0")
    assert [target["digest"] for target in release["targets"]] == [compiled["digest"]]
    report = folder / "report.html"
    done = subprocess.run(
        [EDGEOPS, "report", folder / "build" / profile / "bundle", "--out", report],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert compiled["digest"][7:19] in report.read_text()
    return compiled, folder / "build" / profile / "bundle"


def accuracy(bundle: Path, handover: Path, count: int = 200) -> float:
    """Return the share of right answers of a bundle, as a device would ask it."""
    manifest = open_bundle(bundle).manifest
    output = manifest.outputs[0].tensor.name
    with np.load(handover / "evaluation.npz") as file:
        rows, labels = {spec.name: file[spec.name][:count] for spec in manifest.inputs}, file["labels"][:count]
    with LocalModel(bundle) as model:
        right = [
            model.infer(manifest.model, {name: values[index] for name, values in rows.items()})[output].argmax()
            == label
            for index, label in enumerate(labels)
        ]
    return float(np.mean(right))


def test_digits_become_a_release(tmp_path: Path):
    example("digits", "train", tmp_path / "digits")
    _, bundle = released(tmp_path / "digits", "raspberry-pi-4", tmp_path)
    assert accuracy(bundle, tmp_path / "digits") > 0.93


@pytest.mark.full
def test_text_lines_become_a_release(tmp_path: Path):
    example("text-line", "download", tmp_path / "text-line")
    _, bundle = released(tmp_path / "text-line", "generic-x86-64", tmp_path)
    assert accuracy(bundle, tmp_path / "text-line") > 0.93


@pytest.mark.parametrize(
    ("kind", "profile", "least"),
    [("tree", "generic-x86-64", 0.93), pytest.param("mlp", "raspberry-pi-4", 0.85, marks=pytest.mark.full)],
)
def test_a_sensors_forest_and_network_become_releases(kind: str, profile: str, least: float, tmp_path: Path):
    example("sensor", "train", tmp_path / "sensor")
    compiled, bundle = released(tmp_path / "sensor" / kind, profile, tmp_path)
    assert accuracy(bundle, tmp_path / "sensor" / kind) > least
    assert kind != "tree" or (compiled["runtime"], compiled["precision"]) == ("onnxruntime", "fp32")


@pytest.mark.full
def test_voice_activity_becomes_a_release_that_carries_state(tmp_path: Path):
    example("voice-activity", "download", tmp_path / "voice")
    compiled, bundle = released(tmp_path / "voice", "generic-x86-64", tmp_path)
    assert (compiled["runtime"], compiled["precision"]) == ("onnxruntime", "fp32")
    assert [info.state_to for info in open_bundle(bundle).manifest.outputs] == [None, "state"]


@pytest.mark.full
def test_a_torch_network_becomes_a_release(tmp_path: Path):
    pytest.importorskip("torch", reason="torch is in the extra zoo: make test-full installs it")
    example("torch-image", "train", tmp_path / "mnist")
    _, bundle = released(tmp_path / "mnist", "raspberry-pi-4", tmp_path)
    assert accuracy(bundle, tmp_path / "mnist") > 0.95


@pytest.mark.full
def test_the_same_job_by_hand_runs(tmp_path: Path):
    """What README counts is no sham: it serves right answers, and refuses what is damaged."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.by_hand"], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "golden-out.npy is damaged" in done.stdout
    assert float(re.search(r": (0\.\d+) right of 899", done.stdout)[1]) > 0.93


def test_readme_has_the_counted_lines():
    found = lines.counts()
    text = (ROOT / "README.md").read_text()
    assert f"**{found['with edgeops']} lines**" in text
    assert f"**{found['by hand']} lines**" in text
    assert found["with edgeops"] < 10 < 200 < found["by hand"]


def test_lines_are_counted_as_said():
    text = '"""Doc."""\n\nimport json\nfrom sklearn.svm import SVC\n\n# Why.\nx, y = load_digits()\nprint(\n    x\n)\n'
    assert lines.code_lines(text) == {3, 4, 7, 8, 9, 10}
    assert lines.training_lines(text) == {4, 7}


@pytest.mark.parametrize("folder", ["digits", "sensor", "text-line", "torch-image", "voice-activity"])
def test_an_example_is_a_script_and_a_page_without_production_code(folder: str):
    """No server, no device, no update: nothing of those packages is imported."""
    files = sorted(path.name for path in (EXAMPLES / folder).iterdir() if path.is_file())
    assert len(files) == 2
    script = (EXAMPLES / folder / files[1]).read_text()
    assert "edgeops.handover(" in script
    assert len(lines.code_lines(script)) < 40
    imported = set(re.findall(r"^(?:from|import) ([a-z_0-9]+)", script, re.MULTILINE))
    assert imported <= {"sys", "edgeops", "benchmarks", "sklearn", "torch"}
