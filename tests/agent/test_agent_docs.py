"""The agent's pages say what its code does."""

from __future__ import annotations

import re
from pathlib import Path

from edgeops.agent.states import TABLE, diagram
from edgeops.contracts.errors import ERROR_CODES

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def test_states_page_has_the_tables_diagram_and_rows():
    page = (REFERENCE / "agent-states.md").read_text()
    drawn = re.search(r"```mermaid\n(.*?)```", page, re.DOTALL)
    assert drawn is not None
    assert drawn.group(1) == diagram()
    assert page.count("\n| `") == len(TABLE)


def test_every_code_that_the_page_names_exists():
    codes = set(re.findall(r"`(E-[A-Z-]+)`", (REFERENCE / "agent.md").read_text()))
    assert codes
    assert codes <= set(ERROR_CODES)
