"""OCR detection: where on a page is text? PP-OCRv4, on pieces of real scans; a map of probabilities, without labels."""

from __future__ import annotations

from pathlib import Path

from benchmarks.models.folder import write
from benchmarks.models.scans import tiles
from edgeops.cli.demo.packages import Member, fetch
from edgeops.cli.demo.text_lines import RAPIDOCR

_MODEL = Member(
    RAPIDOCR,
    "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
    "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
)
_SIDE, _CALIBRATION, _EVALUATION = 320, 24, 48
_HANDOVER = f"""\
schema = 1

[model]
name = "ocr-det"
file = "model.onnx"

[[inputs]]
name = "image"
dtype = "uint8"
shape = [1, {_SIDE}, {_SIDE}, 3]
model_input = "x"
preprocess = [
  {{ step = "cast" }},
  {{ step = "normalize", mean = [123.675, 116.28, 103.53], std = [58.395, 57.12, 57.375] }},
  {{ step = "layout", change = "NHWC->NCHW" }},
]

[[outputs]]
name = "text"
model_output = "sigmoid_0.tmp_0"
kind = "values"

[calibration]
file = "calibration.npz"

[evaluation]
file = "evaluation.npz"
metric = "none"
"""


def make(folder: Path) -> None:
    """Write the hand-over."""
    images = tiles(_SIDE, _CALIBRATION + _EVALUATION)
    calibration, evaluation = images[:_CALIBRATION], images[_CALIBRATION:]
    write(folder, _HANDOVER, fetch(_MODEL).read_bytes(), {"image": calibration}, {"image": evaluation})
