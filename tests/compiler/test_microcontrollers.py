"""Profiles of microcontrollers get an int8 model, proved with TensorFlow Lite for Microcontrollers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeops import compiler
from edgeops.contracts.errors import EdgeopsError
from edgeops.releases.bundles import open_bundle
from edgeops.runtimes.bundle_session import open_session
from edgeops.testkit.handovers import shapes, write_shapes_handover

pytest.importorskip("tflite_micro", reason="tflite-micro has wheels for Linux on x86-64 only")


@pytest.mark.parametrize("profile", ["cortex-m3", "cortex-m4", "cortex-m7"])
def test_bundle_for_a_microcontroller_is_int8_and_proved_by_its_interpreter(shapes_handover: Path, tmp_path, profile):
    one = compiler.compile(shapes_handover, [profile], tmp_path / "out").profiles[0]
    manifest = open_bundle(one.packaged.directory).manifest
    assert (manifest.runtime, manifest.precision, one.chosen.scheme) == ("mcu", "int8", "mcu-int8")
    arena_kib = one.chosen.peak_memory_mib * 1024
    assert 1 < arena_kib < 64, "the arena that the interpreter plans, not this host's memory"
    images, labels = shapes(60, seed=9)
    with open_session(one.packaged.directory, manifest) as session:
        got = [int(np.argmax(session.run({"image": image[None]})["shape"])) for image in images]
    assert np.mean(np.array(got) == labels) > 0.7


def test_model_that_needs_more_arena_than_the_profile_has_is_not_released(shapes_handover: Path, tmp_path: Path):
    text = Path("device_profiles/cortex-m4.toml").read_text()
    small = tmp_path / "tiny.toml"
    small.write_text(text.replace("cortex-m4", "tiny").replace("peak_memory_mib = 0.125", "peak_memory_mib = 0.0005"))
    result = compiler.compile(shapes_handover, [str(small)], tmp_path / "out")
    assert not result.profiles[0].passed
    with pytest.raises(EdgeopsError) as caught:
        result.raise_for_gates()
    assert caught.value.code == "E-COMPILE-GATE"
    assert "peak-memory-mib" in caught.value.what
    assert "peak_memory_mib" in caught.value.next_step


def test_operator_that_no_microcontroller_runs_is_named(tmp_path: Path):
    """A model of an operator that LiteRT has and its little sister has not."""
    folder = write_shapes_handover(tmp_path / "handover")
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("CumSum", ["flat", "axis"], ["sum"]),
        helper.make_node("Erf", ["sum"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 8, 8]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64]),
    ]
    axis = helper.make_tensor("axis", TensorProto.INT64, [], [1])
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [axis])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
    )
    declared = (folder / "handover.toml").read_text()
    head = declared[: declared.index("[[outputs]]")]
    (folder / "handover.toml").write_text(
        head + '[[outputs]]\nname = "y"\nmodel_output = "y"\nkind = "values"\n[calibration]\nfile = "calibration.npz"\n'
    )
    with pytest.raises(EdgeopsError) as caught:
        compiler.compile(folder, ["cortex-m4"], tmp_path / "out")
    assert caught.value.code == "E-COMPILE-CANDIDATE"
    assert "'SIGN'" in caught.value.what
