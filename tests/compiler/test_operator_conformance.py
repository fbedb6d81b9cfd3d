"""No operator is wrong silently: ONNX's conformance models are right on a backend, or refused with a reason."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from operator_models import BACKENDS, DATA, Verdict, folders, verdicts

from edgeops.compiler.toolchain import ONNX2TF, ensure

needs_models = pytest.mark.skipif(
    not DATA.is_dir(), reason="ONNX's conformance models are not installed: apt-get install libonnx-testdata"
)
_CHUNK = 40


def judged(names: list[str], backends: tuple[str, ...]) -> list[Verdict]:
    """Judge models in processes of their own: one that crashes costs its model, as in a compile."""
    found: list[Verdict] = []
    left = list(names)
    while left:
        part, left = left[:_CHUNK], left[_CHUNK:]
        script = Path(__file__).with_name("operator_models.py")
        done = subprocess.run(
            [sys.executable, str(script), ",".join(backends), *part], capture_output=True, text=True, timeout=3000
        )
        begun = ""
        for line in filter(lambda text: text.startswith("{"), done.stdout.splitlines()):
            said = json.loads(line)
            begun = said.get("begun", begun)
            if "begun" not in said:
                found.append(Verdict(**said))
        if done.returncode > 0:
            raise AssertionError(f"{begun}: {done.stderr[-2000:]}")
        if done.returncode < 0:
            told = {verdict.backend for verdict in found if verdict.model == begun}
            found += [Verdict(begun, backend, "refused", "crash") for backend in backends if backend not in told]
            left = part[part.index(begun) + 1 :] + left
    return found


def spread(count: int) -> list[str]:
    names = [folder.name for folder in folders()]
    return names[:: max(1, len(names) // count)][:count]


def none_is_wrong(found: list[Verdict], models: int) -> None:
    wrong = [verdict for verdict in found if verdict.result == "wrong"]
    assert wrong == []
    assert all(verdict.why for verdict in found if verdict.result == "refused")
    counts = Counter((verdict.backend, verdict.result) for verdict in found)
    print(dict(counts))
    for backend in {verdict.backend for verdict in found}:
        assert counts[backend, "right"] + counts[backend, "refused"] == models


@needs_models
def test_none_of_a_spread_of_operators_is_wrong() -> None:
    ensure(ONNX2TF)
    none_is_wrong(judged(spread(16), ("onnxruntime", "openvino")), 16)
    none_is_wrong(judged(["test_add", "test_relu", "test_softmax_axis_1", "test_if"], ("litert",)), 4)


@needs_models
def test_a_wrong_conversion_would_be_told(tmp_path: Path) -> None:
    """The negative control: a recorded answer that was changed makes the right artifact wrong."""
    folder = Path(shutil.copytree(DATA / "test_add", tmp_path / "test_add"))
    recorded = folder / "test_data_set_0" / "output_0.pb"
    changed = numpy_helper.to_array(onnx.TensorProto.FromString(recorded.read_bytes())).copy()
    changed.ravel()[0] += np.float32(0.01)
    recorded.write_bytes(numpy_helper.from_array(changed).SerializeToString())
    assert [verdict.result for verdict in verdicts(folder, ("onnxruntime",))] == ["wrong"]


@needs_models
@pytest.mark.full
@pytest.mark.timeout(3600)
def test_no_operator_is_wrong() -> None:
    names = [folder.name for folder in folders()]
    assert len(names) >= 200
    none_is_wrong(judged(names, ("onnxruntime", "openvino")), len(names))
    ensure(ONNX2TF)
    few = spread(220)
    none_is_wrong(judged(few, (BACKENDS[2],)), len(few))
