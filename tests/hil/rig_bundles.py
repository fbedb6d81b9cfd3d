"""Bundles for boards of rigs, and what a good one must come to: adders, for agents and for microcontrollers."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from adder_bundles import small_bundle
from model_code import adder

from edgeops.contracts.bundle import Binding, BundleManifest, Golden, OutputInfo, OutputTolerance
from edgeops.contracts.profile import Budgets, Precision
from edgeops.contracts.rigs import BoardResult, Verdict
from edgeops.contracts.tensors import TensorSpec
from edgeops.releases.bundles import Bundle, seal
from firmware_bridge import blobs
from hil.doctor import examine
from hil.rig import BoardSpec, Rig

SIZE = 16


_CORTEX = {
    "cortex-m3": (blobs.Cpu.CORTEX_M3, "armv7-m"),
    "cortex-m4": (blobs.Cpu.CORTEX_M4, "armv7e-m"),
    "cortex-m7": (blobs.Cpu.CORTEX_M7, "armv7e-m"),
}


def mcu_bundle(
    directory: Path,
    *,
    profile: str = "cortex-m4",
    add: int = 1,
    lie: int = 0,
    arena: int = 0,
    extra: str = "",
    budgets: Budgets | None = None,
) -> Bundle:
    """Make a bundle for a microcontroller: its blob adds 1 to sixteen int8 values.

    Args:
        directory: Where to.
        profile: For which.
        add: What the code adds.
        lie: What the golden vectors are wrong by.
        arena: Bytes of arena that the blob asks for; 0: what it needs.
        extra: C that its code runs, too.
        budgets: Its budgets.
    """
    cpu, arch = _CORTEX[profile]
    (directory / "golden").mkdir(parents=True)
    (directory / "model.blob").write_bytes(adder(directory.parent, cpu, add=add, size=SIZE, arena=arena, extra=extra))
    x = np.arange(-8, 8, dtype=np.int8).reshape(1, 1, SIZE)
    np.save(directory / "golden/x.npy", x)
    np.save(directory / "golden/y.npy", x + np.int8(add + lie))
    tensors = [TensorSpec(name=name, dtype="int8", shape=(1, SIZE)) for name in ("input", "output", "x", "y")]
    manifest = BundleManifest(
        model="adder",
        profile=profile,
        arch=arch,
        runtime="mcu",
        runtime_min="1",
        precision=Precision.INT8,
        scheme="int8",
        artifact="model.blob",
        inputs=(tensors[2],),
        outputs=(OutputInfo(tensor=tensors[3], kind="values"),),
        input_bindings=(Binding(device="x", artifact=tensors[0]),),
        output_bindings=(Binding(device="y", artifact=tensors[1]),),
        golden=Golden(
            count=1,
            inputs={"x": "golden/x.npy"},
            source_outputs={"y": "golden/y.npy"},
            artifact_outputs={"y": "golden/y.npy"},
            tolerances={"y": OutputTolerance(artifact_max_abs=0.0, source_min_cosine=0.9, reason="exact")},
        ),
        files={},
        budgets=budgets or Budgets(),
    )
    return seal(directory, manifest)


def skip_without(*boards: BoardSpec) -> None:
    """Skip a test on a machine that lacks what boards need; say what, and the command that installs it."""
    if missing := [one for one in examine(Rig(name="bench", title="", boards=boards)) if one.missing]:
        pytest.skip("; ".join(f"{one.board}: {one.missing}: {one.next_step}" for one in missing))


def linux_bundle(folder: Path, profile: str = "generic-x86-64", **made: object) -> Path:
    """Make a bundle for a board with an agent; return its folder."""
    whole = small_bundle(folder / "bundle", profile=profile, **made)  # type: ignore[arg-type]
    arch = "aarch64" if "arm64" in profile else "x86_64"
    return seal(whole.directory, msgspec.structs.replace(whole.manifest, arch=arch)).directory


def check_all_passed(result: BoardResult) -> None:
    """Hold that everything but accuracy, for which there are no labelled data, was checked and passed."""
    verdicts = {check.check: check.verdict for check in result.checks}
    assert {name for name, verdict in verdicts.items() if verdict is not Verdict.PASSED} == {"accuracy"}, result
    assert len(verdicts) == 12
    if not result.profile.startswith("cortex-"):
        figures = {check.check: check.figures for check in result.checks}
        assert figures["update"]["failed_requests"] == 0
        assert int(str(figures["update"]["requests"])) > 0
        assert figures["corrupted-download"]["refused_with"] == "E-TRUST-TARGET"
