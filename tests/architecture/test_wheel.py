"""The built wheel, installed in a clean environment, carries all that a user needs."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    return next(out.glob("*.whl"))


def test_wheel_carries_packages_and_profiles(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "edgeops/__init__.py", "edgeops/py.typed", "firmware_bridge/__init__.py", "hil/__init__.py",
        "edgeops/profiles/device_profiles/raspberry-pi-4.toml",
    ):  # fmt: skip
        assert needed in names
    assert not [name for name in names if name.startswith("tests/")]


@pytest.mark.timeout(300)
def test_wheel_runs_in_a_clean_environment(wheel: Path, tmp_path: Path):
    """Base dependencies alone are enough for `doctor` and `profile list`."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", str(wheel)], check=True, timeout=240)
    edgeops = tmp_path / "env" / "bin" / "edgeops"
    doctor = subprocess.run([edgeops, "doctor", "--json"], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert {item["subject"] for item in json.loads(doctor.stdout)} >= {"edgeops", "python", "extra agent"}
    listed = subprocess.run(
        [edgeops, "profile", "list", "--json"], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    names = {item["name"] for item in json.loads(listed.stdout)}
    assert names >= {
        "raspberry-pi-4",
        "raspberry-pi-5",
        "jetson-orin-nano",
        "intel-nuc",
        "generic-x86-64",
        "generic-arm64",
    }


@pytest.mark.timeout(300)
@pytest.mark.parametrize("extra", ["agent,onnxruntime", "agent,litert"])
def test_agent_resolves_for_python_310_on_arm(wheel: Path, extra: str, tmp_path: Path):
    """JetPack 6 has Python 3.10: wheels for it and aarch64 exist for everything that the agent needs."""
    resolve = [
        sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--target", str(tmp_path),
        "--python-version", "3.10", "--implementation", "cp", "--only-binary=:all:",
        "--report", str(tmp_path / "r.json"),
        *(f"--platform=manylinux_2_{minor}_aarch64" for minor in range(17, 36)), "--platform=manylinux2014_aarch64",
        f"{wheel}[{extra}]",
    ]  # fmt: skip
    subprocess.run(resolve, check=True, timeout=240)
    chosen = {item["metadata"]["name"] for item in json.loads((tmp_path / "r.json").read_text())["install"]}
    assert "paho-mqtt" in chosen
