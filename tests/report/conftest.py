"""A small real compile that the tests of reports share: one whole minute of a compiler is not spent twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeops import compiler
from edgeops.testkit.handovers import write_shapes_handover

PROFILE = """\
name = "{name}"
title = "for tests"
[cpu]
model = "any"
arch = "aarch64"
cores = 1
clock_mhz = 1
source = "none"
[memory]
ram_mib = 1024
source = "none"
[budgets]
size_mib = 1.0
[[runtimes]]
name = "onnxruntime"
runtime_min = "1.18"
onnx_ir_max = 9
onnx_opset_max = 17
precisions = ["int8", "fp32"]
source = "none"
"""


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compile's folder: profiles `small` and `tiny`, one runtime."""
    folder = tmp_path_factory.mktemp("compiled")
    write_shapes_handover(folder / "shapes")
    profiles = []
    for name in ("small", "tiny"):
        profiles.append(folder / f"{name}.toml")
        profiles[-1].write_text(PROFILE.format(name=name))
    compiler.compile(folder / "shapes", [str(profile) for profile in profiles], folder / "build")
    return folder / "build"
