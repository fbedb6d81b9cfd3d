"""The threat model says only what a test shows, and the trust reference names what the code has."""

from __future__ import annotations

import re
from pathlib import Path

from edgeops.contracts import deployment
from edgeops.trust import envelopes, roles

ROOT = Path(__file__).parents[2]
MODEL = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "docs" / "reference" / "trust.md").read_text(encoding="utf-8")


def test_every_test_that_the_threat_model_names_exists():
    written = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    there = set(re.findall(r"^\s*(?:async )?def (test_\w+)\(", written, re.MULTILINE))
    named = set(re.findall(r"`(test_\w+)`", MODEL))
    assert len(named) > 25
    assert named - there == set()


def test_every_row_of_the_threat_model_names_a_test():
    rows = [line for line in MODEL.splitlines() if line.startswith("|")][2:]
    assert [row for row in rows if "`test_" not in row] == []


def test_the_reference_has_every_payload_type_and_lifetime():
    types = [value for name, value in vars(deployment).items() if name.endswith("_TYPE")]
    assert [value for value in types if value not in REFERENCE] == []
    for role, seconds in roles.LIFETIME_S.items():
        assert re.search(rf"\| `{role}` \|.*\| {seconds / roles.DAY_S:.0f} days \|", REFERENCE), role
    assert f"{1 << roles.FIRST_BITS} bins" in REFERENCE
    assert f"{roles.TARGETS_PER_BIN} targets" in REFERENCE
    assert envelopes.MAX_ENVELOPE_BYTES == 1 << 20
    assert f"{envelopes.MAX_SIGNATURES}\nsignatures" in REFERENCE
