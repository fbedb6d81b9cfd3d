"""What a supervisor loads: nothing heavy. Models live in workers only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from adder_bundles import small_bundle

from edgeops import plugins
from edgeops.contracts.errors import EdgeopsError

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


# What a worker has no use for; megabytes each, or what belongs to its supervisor.
NOT_IN_WORKERS = {
    "csv",
    "edgeops.agent.settings",
    "edgeops.profiles.registry",
    "email",
    "importlib.metadata",
    "tempfile",
    "tomllib",
    "zipfile",
    "zoneinfo",
}


def modules_after(code: str) -> set[str]:
    script = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    return set(json.loads(done.stdout.splitlines()[-1]))


def loaded_after(code: str) -> set[str]:
    return {name.split(".")[0] for name in modules_after(code)}


@pytest.mark.parametrize(
    "module", ["edgeops.agent.supervisor", "edgeops.agent.status", "edgeops.cli.agent", "edgeops.agent.enrolment"]
)
def test_supervisor_modules_load_nothing_heavy(module: str):
    assert loaded_after(f"import {module}").isdisjoint(HEAVY)


def test_lightness_check_can_fail():
    """Negative control: a worker's modules do load numpy."""
    assert "numpy" in loaded_after("import edgeops.agent.worker.engine")


@pytest.mark.parametrize("told", [True, False])
def test_a_worker_that_serves_has_loaded_only_what_serving_needs(tmp_path: Path, told: bool):
    """Without the word of its supervisor it looks among the installed packages: the control."""
    bundle = small_bundle(tmp_path / "bundle")
    found = plugins.values("edgeops.backends") if told else {}
    modules = modules_after(
        "import edgeops.agent.worker.process\n"
        "from edgeops.agent.channel import Load\n"
        "from edgeops.agent.worker.engine import Engine\n"
        f"load = Load(directory={str(bundle.directory)!r}, release='1', digest={bundle.digest!r}, ram_mib=2048, "
        f"backends={found!r})\n"
        "Engine(load, lambda: None).self_test()"
    )
    assert (modules & NOT_IN_WORKERS == set()) is told


def test_what_was_told_of_a_runtime_that_has_moved_since_is_looked_for_again():
    plugins.tell("edgeops.backends", {"litert": "edgeops.runtimes.gone:LiteRtBackend", "none": "edgeops:none"})
    assert plugins.load("edgeops.backends", "litert").__name__ == "LiteRtBackend"
    with pytest.raises(EdgeopsError) as caught:
        plugins.load("edgeops.backends", "none")
    assert caught.value.code == "E-PLUGIN"
    assert "no 'none'; found: " in caught.value.what
