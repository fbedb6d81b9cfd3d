"""Odd data and hostile models through the whole compile: a proved bundle or a refusal that names the cause."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks import models
from edgeops import compiler
from edgeops.contracts.errors import EdgeopsError
from edgeops.releases.bundles import open_bundle
from edgeops.runtimes.bundle_session import open_session
from edgeops.testkit.handovers import shapes, write_shapes_handover

RUNTIMES = ("onnxruntime", "openvino", "litert")


def answers_like_the_source(directory: Path) -> None:
    """Run the bundle on images that no calibration saw."""
    images, labels = shapes(60, seed=9)
    with open_session(directory, open_bundle(directory).manifest) as session:
        got = [int(np.argmax(session.run({"image": image[None]})["shape"])) for image in images]
    assert np.mean(np.array(got) == labels) > 0.6, "the float model is right on 4 of 5"


@pytest.mark.parametrize(
    ("runtime", "kind"),
    [
        pytest.param(runtime, kind, marks=[] if runtime == "onnxruntime" or kind == "one sample" else pytest.mark.full)
        for runtime in RUNTIMES
        for kind in ("never varies", "all black", "one sample")
    ],
)
def test_poor_calibration_data_give_a_bundle_that_still_answers(profile, tmp_path: Path, runtime: str, kind: str):
    handover = write_shapes_handover(tmp_path / "handover", evaluation=200)
    images = shapes(32, seed=2)[0]
    poor = {"never varies": images[:1].repeat(32, 0), "all black": images * 0, "one sample": images[:1]}[kind]
    np.savez(handover / "calibration.npz", image=poor)
    one = compiler.compile(handover, [profile(runtime, "int8", "fp32")], tmp_path / "out").profiles[0]
    assert one.passed
    assert one.evidence.calibration_samples == len(poor)
    answers_like_the_source(one.packaged.directory)


def test_labels_of_one_class_prove_no_lossy_artifact_that_float_would_not(profile, tmp_path: Path):
    """Every answer is right whatever the others do: the agreement with float still has to hold."""
    handover = write_shapes_handover(tmp_path / "handover", outlier=400.0)
    images, labels = shapes(600, seed=3)
    np.savez(handover / "evaluation.npz", image=images[labels == 2], labels=labels[labels == 2])
    one = compiler.compile(handover, [profile("onnxruntime", "int8", "fp32")], tmp_path / "out").profiles[0]
    assert one.passed
    assert one.chosen.metric is not None
    answers_like_the_source(one.packaged.directory)


def test_dimensions_that_no_machine_holds_are_refused(profile, tmp_path: Path):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 1 << 20, 1 << 20]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", x=np.zeros((4, 3, 8, 8), np.float32))
    (tmp_path / "handover.toml").write_text(
        '[model]\nname = "huge"\nfile = "m.onnx"\n[[inputs]]\nname = "x"\ndtype = "float32"\n'
        'shape = [1, 3, 1048576, 1048576]\n[[outputs]]\nname = "y"\n[calibration]\nfile = "c.npz"\n'
    )
    with pytest.raises(EdgeopsError) as caught:
        compiler.compile(tmp_path, [profile("onnxruntime", "fp32")], tmp_path / "out")
    assert caught.value.code in ("E-DATA-SHAPE", "E-HANDOVER-SHAPE")
    assert "1048576" in caught.value.what


def test_graph_that_blows_up_inside_costs_the_compile_and_not_the_machine(
    profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Small input, small file, 64 GiB in the middle."""
    nodes = [
        helper.make_node("Expand", ["x", "size"], ["wide"]),
        helper.make_node("Mul", ["wide", "wide"], ["square"]),
        helper.make_node("ReduceSum", ["square"], ["y"], keepdims=1),
    ]
    size = helper.make_tensor("size", TensorProto.INT64, [2], [1 << 17, 1 << 17])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [size])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", x=np.ones((4, 1, 1), np.float32))
    (tmp_path / "handover.toml").write_text(
        '[model]\nname = "bomb"\nfile = "m.onnx"\n[[inputs]]\nname = "x"\ndtype = "float32"\nshape = [1, 1]\n'
        '[[outputs]]\nname = "y"\n[calibration]\nfile = "c.npz"\n'
    )
    monkeypatch.setattr(compiler.executor, "default_memory_mib", lambda _: 2048.0)
    with pytest.raises(EdgeopsError) as caught:
        compiler.compile(tmp_path, [profile("onnxruntime", "fp32")], tmp_path / "out")
    assert caught.value.code == "E-MODEL-UNSUPPORTED"
    assert not (tmp_path / "out").exists()


# What is made without torch.
MUTATED = ("ocr-cls", "ocr-det", "ocr-rec", "silero-vad", "digits-boosting")


def mutants(data: bytes, count: int, seed: int) -> list[bytes]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        mutant = bytearray(data)
        for place in rng.integers(0, len(mutant), int(rng.integers(1, 6))):
            mutant[place] = int(rng.integers(0, 256))
        made.append(bytes(mutant))
    return made


def compiled_or_refused(handover: Path, board: str, mutant: bytes, out: Path) -> None:
    """Have the command compile a mutant: it ends with words of an edgeops error, or with a bundle that opens."""
    (handover / "model.onnx").write_bytes(mutant)
    words = [sys.executable, "-m", "edgeops", "compile", str(handover), "--profile", board, "--out", str(out)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=170, check=False, env=dict(os.environ))
    assert "Traceback" not in done.stderr, done.stderr
    if done.returncode == 0:
        open_bundle(next(out.rglob("bundle")))
    else:
        assert done.returncode in (2, 3), (done.returncode, done.stderr)
        assert "E-" in done.stderr


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(1, 20))])
@pytest.mark.timeout(900)
def test_mutated_model_is_compiled_or_refused_by_the_command(profile, tmp_path: Path, own_cache: Path, seed: int):
    """Whole command, own process."""
    handover, board = write_shapes_handover(tmp_path / "handover", evaluation=60), profile("onnxruntime", "fp32")
    model = (handover / "model.onnx").read_bytes()
    for index, mutant in enumerate(mutants(model, 3, seed)):
        compiled_or_refused(handover, board, mutant, tmp_path / f"out-{index}")


@pytest.mark.parametrize("name", ["digits-forest", *(pytest.param(name, marks=pytest.mark.full) for name in MUTATED)])
@pytest.mark.timeout(1800)
def test_mutated_real_model_is_compiled_or_refused_by_the_command(profile, tmp_path: Path, own_cache: Path, name: str):
    """Models as people hand them over: large, with control flow, decision trees and names that exporters made."""
    handover = Path(shutil.copytree(models.handover(name), tmp_path / "handover"))
    model = (handover / "model.onnx").read_bytes()
    for index, mutant in enumerate(mutants(model, 2, len(model))):
        compiled_or_refused(handover, profile("onnxruntime", "fp32"), mutant, tmp_path / f"out-{index}")
