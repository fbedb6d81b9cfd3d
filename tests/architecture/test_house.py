"""The tree itself: rooms by their names, and nothing in the repository that must not be there."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
BINARY_SUFFIXES = {".onnx", ".tflite", ".pt", ".pth", ".bin", ".npz", ".npy", ".so", ".elf", ".img", ".whl", ".pem"}
NAMELESS = {"utils", "helpers", "common", "core", "misc", "manager"}


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
    return [Path(line) for line in done.stdout.splitlines()]


def test_no_weights_keys_or_binaries_are_tracked():
    assert [path for path in tracked() if path.suffix in BINARY_SUFFIXES] == []


def test_every_room_has_a_noun():
    rooms = [part for path in tracked() if path.suffix == ".py" for part in (*path.parts[:-1], path.stem)]
    assert set(rooms) & NAMELESS == set()


def test_every_room_says_what_it_is_for():
    packages = [path for path in tracked() if path.name == "__init__.py" and path.parts[0] != "tests"]
    assert packages
    for path in packages:
        assert (ROOT / path).read_text().startswith('"""'), path
