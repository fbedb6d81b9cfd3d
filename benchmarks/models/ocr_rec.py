"""OCR recognition: which characters are in a line? PP-OCRv4, 6,625 classes at 40 places, on lines of real scans."""

from __future__ import annotations

from pathlib import Path

from benchmarks.models.folder import write
from benchmarks.models.scans import lines
from edgeops.cli.demo.packages import Member, fetch
from edgeops.cli.demo.text_lines import RAPIDOCR

_MODEL = Member(
    RAPIDOCR,
    "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
    "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
)
_HEIGHT, _WIDTH, _CALIBRATION, _EVALUATION = 48, 320, 24, 48
_HANDOVER = f"""\
schema = 1

[model]
name = "ocr-rec"
file = "model.onnx"

[[inputs]]
name = "line"
dtype = "uint8"
shape = [1, {_HEIGHT}, {_WIDTH}, 3]
model_input = "x"
preprocess = [
  {{ step = "cast" }},
  {{ step = "normalize", mean = [127.5], std = [127.5] }},
  {{ step = "layout", change = "NHWC->NCHW" }},
]

[[outputs]]
name = "characters"
model_output = "softmax_11.tmp_0"
kind = "probabilities"

[calibration]
file = "calibration.npz"

[evaluation]
file = "evaluation.npz"
metric = "none"
"""


def make(folder: Path) -> None:
    """Write the hand-over."""
    images = lines(_HEIGHT, _WIDTH, _CALIBRATION + _EVALUATION)
    calibration, evaluation = images[:_CALIBRATION], images[_CALIBRATION:]
    write(folder, _HANDOVER, fetch(_MODEL).read_bytes(), {"line": calibration}, {"line": evaluation})
