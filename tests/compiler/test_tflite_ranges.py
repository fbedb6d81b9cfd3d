"""Ranges of a TFLite model are found once for all schemes of a kind, and are the quantizer's own, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from edgeops import compiler
from edgeops.compiler.candidates import Traits, ladder
from edgeops.compiler.passes.litert import read_ranges, write_ranges
from edgeops.compiler.passes.samples import write_samples
from edgeops.compiler.sensitivity import Aim
from edgeops.contracts.profile import Precision, Runtime
from edgeops.intake.handover import read

AIM = Aim(cosine_min=0.99, sqnr_min_db=15.0, agreement_min=0.97, kinds={"y": "probabilities"})


def test_schemes_that_need_the_same_ranges_share_the_step_that_finds_them():
    runtime = Runtime(name="litert", runtime_min="1.2", precisions=tuple(Precision), source="test")
    traits = Traits(stateful=False, ops=frozenset({"Conv"}))
    whole, partial = ladder(runtime, Precision.INT8, traits, AIM)
    assert [step.name for step in whole.steps] == ["onnx-to-tflite", "tflite-ranges", "tflite-quantize"]
    assert partial.steps[:2] == whole.steps[:2]
    assert partial.steps[2] != whole.steps[2]
    (dynamic,) = ladder(runtime, Precision.DYNAMIC_INT8, traits, AIM)
    assert [step.name for step in dynamic.steps] == ["onnx-to-tflite", "tflite-quantize"], "it needs none"


def test_ranges_are_kept_bit_for_bit(tmp_path: Path):
    ranges = {
        "a;": {"min": np.float32(-0.1) * np.ones((1, 1), np.float32), "max": np.array([[np.pi]], np.float64)},
        "nothing is known of it": {},
        "b": {"min": np.array(3, np.int64)},
    }
    write_ranges(tmp_path, ranges)
    found = read_ranges(tmp_path)
    assert list(found) == list(ranges)
    for tensor, figures in ranges.items():
        assert {name: (value.dtype, value.shape, value.tobytes()) for name, value in found[tensor].items()} == {
            name: (value.dtype, value.shape, value.tobytes()) for name, value in figures.items()
        }


# In a process of its own: its native code and that of other tests do not bear each other.
_COMPARED = """
import sys
from pathlib import Path
from litert_quantizer import quantizer
from edgeops.compiler.passes import litert
model, *folders = map(Path, sys.argv[1:])
def plain(ranges):
    return {tensor: {name: (value.dtype.str, value.tobytes()) for name, value in figures.items()}
            for tensor, figures in ranges.items()}
for folder in folders:
    ours = plain(litert._calibrate(model, "static", folder, {}))
    tool = quantizer.Quantizer(str(model), litert._recipe("static", []))
    theirs = plain(tool.calibrate({"serving_default": litert._feeds(model, folders[0], {})}, num_threads=1))
    print(bool(ours), ours == theirs)
"""


def test_ranges_are_those_that_the_quantizer_finds(shapes_handover: Path, profile, tmp_path: Path):
    """And the control: with other samples they differ."""
    one = compiler.compile(shapes_handover, [profile("litert", "fp32")], tmp_path / "out").profiles[0]
    calibration = read(shapes_handover).calibration
    write_samples(tmp_path / "samples", "calibration", calibration)
    write_samples(tmp_path / "others", "calibration", {name: array[:3] for name, array in calibration.items()})
    words = [one.packaged.directory / "model.tflite", tmp_path / "samples", tmp_path / "others"]
    done = subprocess.run(
        [sys.executable, "-c", _COMPARED, *map(str, words)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "True", "True", "False"]
