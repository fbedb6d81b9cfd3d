"""What a supervisor loads: nothing heavy. Models live in workers only."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "ai_edge_litert",
    "sqlalchemy",
    "fastapi",
    "starlette",
    "uvicorn",
    "rich",
    "nncf",
}


def loaded_after(code: str) -> set[str]:
    script = f"import sys, json\n{code}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "module", ["edgeops.agent.supervisor", "edgeops.agent.status", "edgeops.cli.agent", "edgeops.agent.enrolment"]
)
def test_supervisor_modules_load_nothing_heavy(module: str):
    assert loaded_after(f"import {module}").isdisjoint(HEAVY)


def test_lightness_check_can_fail():
    """Negative control: a worker's modules do load numpy."""
    assert "numpy" in loaded_after("import edgeops.agent.worker.engine")
