"""Fixtures that the whole house shares: the real model and real text lines, fetched once into the cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeops.cli.demo.text_lines import text_lines, write_handover


@pytest.fixture(scope="session")
def ocr_handover(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hand-over of the demo: the OCR text-line classifier with crops of real scans. Do not change it: copy it."""
    return write_handover(tmp_path_factory.mktemp("ocr-handover"), text_lines(windows_per_line=1))
