"""What the whole house shares: real data, tools without which tests skip, and what was proved, printed at the end."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from edgeops.cli.demo.text_lines import text_lines, write_handover
from firmware_bridge.build import ARM, HOST

PROOF = "proof"

# No test asserts how long something takes: on a busy machine any example may take seconds.
settings.register_profile("edgeops", deadline=None)
settings.load_profile("edgeops")


@pytest.fixture(scope="session")
def ocr_handover(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hand-over of the demo: the OCR text-line classifier with crops of real scans. Do not change it: copy it."""
    return write_handover(tmp_path_factory.mktemp("ocr-handover"), text_lines(windows_per_line=1))


@pytest.fixture
def proof(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Notes what a test has survived or caught; the end of the run prints it, also where tests passed."""
    return lambda text: record_property(PROOF, text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was proved: how many cuts, kills and refused writes were survived, and the mutants by name."""
    lines = [
        f"{report.nodeid}: {text}"
        for report in terminalreporter.stats.get("passed", [])
        for name, text in report.user_properties
        if name == PROOF and report.when == "call"
    ]
    if lines:
        terminalreporter.section("proof")
        for line in sorted(lines):
            terminalreporter.write_line(line)


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
