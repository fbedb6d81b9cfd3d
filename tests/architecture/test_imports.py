"""The house's rules that import-linter cannot see: what a process really loads."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = (
    "numpy", "onnx", "onnxruntime", "openvino", "nncf", "sqlalchemy", "alembic", "fastapi", "starlette", "uvicorn",
    "rich", "tuf", "paho", "cryptography",
)  # fmt: skip


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running `code`."""
    script = f"import sys, json\n{code}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_loads_no_command_and_nothing_heavy():
    """`edgeops --help` names every command, yet imports none of them."""
    code = """
import click
from edgeops.cli import root
try:
    root(["--help"], prog_name="edgeops")
except SystemExit:
    pass
assert not [name for name in sys.modules if name.startswith("edgeops.cli.")], "a command was imported"
"""
    assert loaded_after(code).isdisjoint(HEAVY)


def test_help_check_can_fail():
    """Negative control: the same look does see a heavy module once a command's room is imported."""
    assert "numpy" in loaded_after("import edgeops.runtimes.protocol")


@pytest.mark.parametrize("room", ["edgeops", "edgeops.contracts.deployment", "edgeops.durable", "edgeops.plugins"])
def test_foundations_load_nothing_heavy(room: str):
    assert loaded_after(f"import {room}").isdisjoint(HEAVY)
