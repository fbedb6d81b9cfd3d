"""Versions of edgeops as real wheels, built from this tree with another number, and a defect where one is wanted."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from edgeops import __version__

REPOSITORY = Path(__file__).parents[2]
_PARTS = (
    "edgeops",
    "firmware_bridge",
    "hil",
    "device_profiles",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
)


def build_wheel(folder: Path, version: str, changes: dict[str, tuple[str, str]] | None = None) -> Path:
    """Build a wheel; return the folder that it lies in.

    Args:
        folder: Where to work.
        version: What the wheel says it is.
        changes: File below edgeops/ → text that must be in it, and what to put in its place.
    """
    source = folder / f"source-{version}"
    source.mkdir(parents=True)
    for name in _PARTS:
        path = REPOSITORY / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    about = source / "edgeops" / "__about__.py"
    about.write_text(about.read_text().replace(f'"{__version__}"', f'"{version}"'))
    for name, (text, other) in (changes or {}).items():
        path = source / "edgeops" / name
        code = path.read_text()
        assert text in code, f"{name} has changed: {text}"
        path.write_text(code.replace(text, other, 1))
    out = folder / f"wheels-{version}"
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "--wheel-dir", str(out), str(source)], check=True, capture_output=True, timeout=120)
    return out
