"""What the firmware tests share: they skip, with the command that helps, where a compiler or emulator is missing."""

from __future__ import annotations

import shutil

import pytest

from firmware_bridge.build import ARM, HOST


def needs(program: str, package: str) -> None:
    """Skip the test where a program is missing."""
    if shutil.which(program) is None:
        pytest.skip(f"no {program}: apt-get install --yes {package}")


@pytest.fixture(scope="session")
def host_compiler() -> None:
    needs(*HOST)


@pytest.fixture(scope="session")
def arm_compiler() -> None:
    needs(*ARM)


@pytest.fixture(scope="session")
def emulator() -> None:
    needs("qemu-system-arm", "qemu-system-arm")
