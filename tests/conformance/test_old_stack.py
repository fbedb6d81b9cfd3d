"""tflite-runtime 2.14 with numpy 1.26, as older boards have it: the same suite, in an environment of its own."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
from pathlib import Path

import pytest
from affine_models import file_name, write_tflite

from edgeops.compiler.toolchain import Toolchain, ensure

_ROOT = Path(__file__).parents[2]
OLD_STACK = Toolchain(
    name="tflite-runtime",
    version="2.14.0",
    requirements=(
        "tflite-runtime==2.14.0", "numpy==1.26.4", "msgspec==0.22.0", "psutil==7.2.2",
        "pytest==9.2.0", "iniconfig==2.3.1", "packaging==26.3", "pluggy==1.7.0", "Pygments==2.21.0",
    ),
    module="tflite_runtime.interpreter",
    purpose="tests",
)  # fmt: skip
# As `test_litert_names_tensors_as_the_signature_does` has it.
_SIGNATURE = {"second": "a", "first": "b", "alpha": "gap", "zeta": "total"}


@pytest.mark.full
def test_the_old_runtime_passes_the_suite_of_all(tmp_path: Path) -> None:
    for open_batch, signature in ((False, None), (True, None), (False, _SIGNATURE)):
        name = file_name(open_batch=open_batch, signed=signature is not None)
        write_tflite(tmp_path / name, open_batch=open_batch, signature=signature)
    # Entry points are how backends are found: what says them of edgeops is lent to that environment, and nothing else.
    told = importlib.metadata.distribution("edgeops")
    lent = Path(str(told.locate_file(""))).glob("edgeops-*.dist-info")
    (tmp_path / "lent").mkdir()
    for folder in lent:
        (tmp_path / "lent" / folder.name).symlink_to(folder)
    done = subprocess.run(
        [
            str(ensure(OLD_STACK) / "bin" / "python"), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=",
            "-o", "filterwarnings=", "--import-mode=importlib", "--noconftest",
            "tests/conformance/test_backends.py", "tests/conformance/test_delegates.py",
            "-k", "litert and not interpreter_that_dies",
        ],
        cwd=_ROOT,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{_ROOT}:{tmp_path / 'lent'}:{_ROOT / 'tests' / 'conformance'}",
            "EDGEOPS_AFFINE_MODELS": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    counts = {what: int(count) for count, what in re.findall(r"(\d+) (passed|failed|skipped|deselected)", done.stdout)}
    assert counts["passed"] >= 30
    assert not counts.get("failed")
    version = subprocess.run(
        [str(ensure(OLD_STACK) / "bin" / "python"), "-c", "import numpy; print(numpy.__version__)"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert version.stdout.strip() == "1.26.4"
