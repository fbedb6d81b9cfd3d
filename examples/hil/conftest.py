"""The bundle that the tests bring to the board."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--bundle`."""
    parser.addoption("--bundle", help="Folder of a compiled bundle for the boards' profile.")


@pytest.fixture
def bundle(request: pytest.FixtureRequest) -> Path:
    """The folder that was named."""
    named = request.config.getoption("--bundle")
    if named is None:
        pytest.skip("no --bundle was given: edgeops compile makes one")
    return Path(named)
