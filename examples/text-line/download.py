"""Take a published OCR model and real scans of text lines, and hand the model over."""

import sys

import edgeops
from edgeops.cli.demo.packages import fetch
from edgeops.cli.demo.text_lines import LABELS, MODEL, text_lines

data = text_lines(windows_per_line=2)
# What the network was trained on: RGB between -1 and 1, channels first. Devices send a camera's bytes.
steps = [{"step": "cast"}, {"step": "scale", "by": 1 / 127.5, "offset": -1}, {"step": "layout", "change": "NHWC->NCHW"}]

done = edgeops.handover(
    fetch(MODEL), data.calibration.images, out=sys.argv[1], name="text-line", labels=LABELS, preprocess=steps,
    evaluation=(data.evaluation.images, data.evaluation.labels),
)  # fmt: skip
print(f"{done.folder} is handed over")
