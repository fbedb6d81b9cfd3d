"""OCR line class: is a line of text turned by 180 degrees? PP-OCR mobile v2.0, with labelled crops of real scans."""

from __future__ import annotations

from pathlib import Path

from edgeops.cli.demo.text_lines import text_lines, write_handover


def make(folder: Path) -> None:
    """Write the hand-over."""
    write_handover(folder, text_lines(windows_per_line=2))
