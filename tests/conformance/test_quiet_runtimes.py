"""Runtimes tell nobody of the device that they run on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from affine_models import write_onnx

_PROGRAM = """
import sys
from pathlib import Path
{before}
from edgeops.runtimes.protocol import LoadOptions
from edgeops.runtimes.registry import backend
import numpy as np

session = backend("onnxruntime").load(Path(sys.argv[1]), LoadOptions())
session.run({{spec.name: np.ones(spec.shape, spec.dtype) for spec in session.inputs}})
"""


def written(folder: Path, before: str = "") -> list[str]:
    """Run a model in a process of its own, whose home is empty; return what lies there afterwards."""
    home = folder / "home"
    home.mkdir()
    artifact = write_onnx(folder / "model.onnx")
    command = [sys.executable, "-c", _PROGRAM.format(before=before), str(artifact)]
    # Nothing else of this process's surroundings: where it sees a CI's variables, onnxruntime is quiet by itself.
    surroundings = {"PATH": os.environ["PATH"], "HOME": str(home)}
    subprocess.run(command, env=surroundings, check=True, timeout=60)
    return sorted(str(path.relative_to(home)) for path in home.rglob("*"))


def test_onnxruntime_leaves_no_trace_and_opens_no_telemetry(tmp_path: Path) -> None:
    assert written(tmp_path) == []


def test_onnxruntime_would_tell_if_it_were_not_asked_not_to(tmp_path: Path) -> None:
    """Negative control: once it no longer does, the setting can go."""
    allowed = 'import os; os.environ["ORT_DISABLE_TELEMETRY"] = "0"'
    assert any("deviceid" in name for name in written(tmp_path, allowed))
