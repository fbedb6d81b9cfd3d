"""`make demo-mcu`: what it shows is so, by the command that a person types."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tflite_micro", reason="tflite-micro has wheels for Linux on x86-64 only")
pytest.importorskip("sklearn", reason="pip install 'edgeops[sklearn]'")


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("arm_compiler", "emulator")
def test_a_microcontroller_takes_part_in_rollouts_beside_linux_devices(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "edgeops", "demo", "--mcu", "--folder", str(tmp_path / "demo")],
        capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    said = done.stdout
    assert done.returncode == 0, said[-3000:] + done.stderr[-2000:]
    before, after = (int(found) for found in re.findall(r"pump │ 1\.[01]\.0 .*│ (\d+) of 50", said))
    assert before < after >= 45
    assert "rollout of 1.2.0: cortex-m4 stopped" in said
    assert "raspberry-pi-4-1/pump refused it: output 'probabilities'" in said
    assert "runs 1.1.0 and answers as before, after its power was cut" in said
    assert re.search(r"pump │ 1\.1\.0 +│ failed .*1\.2\.0: E-SELFTEST-GOLDEN", said)
