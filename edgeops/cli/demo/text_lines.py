"""The demo's hand-over: a published OCR text-line classifier and real text lines cropped from scans.

Licences: the model is Apache-2.0 (rapidocr-onnxruntime); `typewriter.png` and `linn.png` are described in REUSE.toml
of the ocrmypdf source distribution; `page` is part of scikit-image (BSD-3-Clause).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeops.cli.demo.packages import Member, Package, fetch

HEIGHT, WIDTH = 48, 192
PADDING_GRAY = 127
EVALUATION_WINDOWS = 3
LABELS = ("0", "180")

RAPIDOCR = Package("rapidocr-onnxruntime==1.4.4", "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf")
_OCRMYPDF = Package(
    "ocrmypdf==17.13.0", "151c35d810eb628fbc5cb9bbe80b834ecf094737efa0e7a2e9e1fac3c730ed49", source=True
)
MODEL = Member(
    RAPIDOCR,
    "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
)
TYPEWRITER = Member(
    _OCRMYPDF,
    "ocrmypdf-17.13.0/tests/resources/typewriter.png",
    "6f7a83685a83af954e9672b3e2db3253af165513d2826d780a48e175742f4469",
)
LINN = Member(
    _OCRMYPDF,
    "ocrmypdf-17.13.0/tests/resources/linn.png",
    "dcd90f08a6b8a733612f818330153636c13283dd548e2e092cad1fe628ec7bf3",
)

_HANDOVER = """\
# What the data scientist declares. Everything after this file is the toolkit's work.
schema = 1

[model]
name = "text-line-orientation"
file = "model.onnx"
description = "Is a line of text upright or turned by 180 degrees? PP-OCR mobile v2.0 classifier."

[[inputs]]
name = "image"
dtype = "uint8"
shape = [1, 48, 192, 3]        # as the device sees it: RGB, height 48, width 192
model_input = "x"
preprocess = [
  { step = "cast" },
  { step = "scale", by = 0.00784313725490196, offset = -1.0 },   # x / 127.5 - 1
  { step = "layout", change = "NHWC->NCHW" },
]

[[outputs]]
name = "orientation"
model_output = "save_infer_model/scale_0.tmp_1"
kind = "probabilities"
labels = ["0", "180"]

[calibration]
file = "calibration.npz"

[evaluation]
file = "evaluation.npz"
labels = "labels"
metric = "accuracy"
"""


class Split(NamedTuple):
    """Crops of one side of the split: images uint8 [n, 48, 192, 3], labels int64 [n], and distinct source lines."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    lines: int


class TextLines(NamedTuple):
    """Both sides, split by source line: no line has crops on both."""

    calibration: Split
    evaluation: Split


def source_lines() -> list[NDArray[np.uint8]]:
    """Return the text lines of the three scans as gray images, dark on light, each of its own size."""
    import skimage.data
    import skimage.filters
    from PIL import Image

    lines: list[NDArray[np.uint8]] = []
    # Gap: widest space between two words in pixels of that scan; larger gaps part columns.
    for member, gap, height in ((TYPEWRITER, 150, (60, 220)), (LINN, 40, (24, 110))):
        gray = np.asarray(Image.open(fetch(member)).convert("L"))
        lines += _cut_lines(gray, gray < 128, gap, height)
    page = skimage.data.page()
    lines += _cut_lines(page, page < skimage.filters.threshold_local(page, 41, offset=12), 14, (8, 34))
    return lines


def text_lines(*, windows_per_line: int = 3, seed: int = 7) -> TextLines:
    """Crop, turn, shift and re-light the scans' text lines.

    Args:
        windows_per_line: Crops along each calibration line; the evaluation side always has `EVALUATION_WINDOWS`.
        seed: Of the variation.
    """
    lines = source_lines()
    rng = np.random.default_rng(seed)
    return TextLines(
        _crops(lines[0::2], windows_per_line, rng),
        _crops(lines[1::2], EVALUATION_WINDOWS, rng),
    )


def write_handover(folder: Path, data: TextLines) -> Path:
    """Write the hand-over folder: `handover.toml`, the model, and sample data."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(fetch(MODEL), folder / "model.onnx")
    np.savez(folder / "calibration.npz", image=data.calibration.images)
    np.savez(folder / "evaluation.npz", image=data.evaluation.images, labels=data.evaluation.labels)
    (folder / "handover.toml").write_text(_HANDOVER)
    return folder


def _cut_lines(
    gray: NDArray[np.uint8], ink: NDArray[np.bool_], gap: int, height: tuple[int, int]
) -> list[NDArray[np.uint8]]:
    """Cut a scan into lines: ink is joined across word gaps, each joined piece of a line's height is one line."""
    from scipy import ndimage

    joined = ndimage.binary_closing(np.pad(ink, ((0, 0), (gap, gap))), np.ones((1, gap)))[:, gap:-gap]
    labels, _ = ndimage.label(ndimage.binary_dilation(joined, np.ones((max(3, height[0] // 6), 1))))
    lines = []
    for rows, columns in sorted(ndimage.find_objects(labels), key=lambda box: (box[0].start, box[1].start)):
        tall, wide = rows.stop - rows.start, columns.stop - columns.start
        if height[0] <= tall <= height[1] and wide >= 2.5 * tall:
            margin = max(2, tall // 8)
            top, left = max(0, rows.start - margin), max(0, columns.start - margin)
            lines.append(gray[top : rows.stop + margin, left : columns.stop + margin])
    return lines


def _crops(lines: list[NDArray[np.uint8]], windows: int, rng: np.random.Generator) -> Split:
    images, labels = [], []
    for line in lines:
        for window in range(windows):
            image = _relight(_window(line, window, windows, rng), rng)
            for label, turned in enumerate((image, image[::-1, ::-1])):
                images.append(np.repeat(turned[:, :, None], 3, axis=2))
                labels.append(label)
    return Split(np.stack(images), np.array(labels, np.int64), len(lines))


def _window(line: NDArray[np.uint8], index: int, windows: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return a 48x192 piece of a line at its place along it, shifted a little; short lines are padded with gray."""
    from PIL import Image

    scale = HEIGHT / line.shape[0]
    width = max(1, round(line.shape[1] * scale))
    resized: NDArray[Any] = np.asarray(Image.fromarray(line).resize((width, HEIGHT), Image.Resampling.BILINEAR))
    room = max(0, width - WIDTH)
    start = round(room * index / max(1, windows - 1)) + int(rng.integers(-6, 7))
    start = min(max(0, start), room)
    piece = np.roll(resized[:, start : start + WIDTH], int(rng.integers(-2, 3)), axis=0)
    padded = np.full((HEIGHT, WIDTH), PADDING_GRAY, np.uint8)
    padded[:, : piece.shape[1]] = piece
    return padded


def _relight(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Change contrast and brightness and lay a soft gradient of light over the image."""
    gain, bias = rng.uniform(0.7, 1.0), rng.uniform(-10, 25)
    slope = np.linspace(-1, 1, WIDTH, dtype=np.float64) * rng.uniform(-18, 18)
    return np.clip(np.rint(image * gain + bias + slope), 0, 255).astype(np.uint8)
