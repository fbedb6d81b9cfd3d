"""The threat model says only what a test shows, and the trust reference names what the code has."""

from __future__ import annotations

import re
from pathlib import Path

from edgeops.contracts import deployment
from edgeops.trust import envelopes, roles

ROOT = Path(__file__).parents[2]
MODEL = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "docs" / "reference" / "trust.md").read_text(encoding="utf-8")


SOURCES = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
REAL, CONTROL = "test_a_real_agent_withstands_the_attack", "test_the_attack_succeeds_without_the_one_check"
NAMED = re.compile(r"`(test_\w+)(?:\[([\w ]+)\])?`")


def rows() -> list[list[str]]:
    """The cells of the table, without its head."""
    lines = [line.strip().strip("|").split("|") for line in MODEL.splitlines() if line.startswith("|")]
    assert {len(line) for line in lines} == {5}
    return [[cell.strip() for cell in line] for line in lines[2:]]


def source_of(test: str) -> str:
    """A test's text, up to what follows it."""
    found = re.search(rf"^( *)def {test}\(.*?(?=^\1(?:def |@|class |#)|\Z)", SOURCES, re.MULTILINE | re.DOTALL)
    assert found is not None, test
    return found[0]


def test_every_test_that_the_threat_model_names_exists():
    there = set(re.findall(r"^\s*(?:async )?def (test_\w+)\(", SOURCES, re.MULTILINE))
    named = {name for name, _ in NAMED.findall(MODEL)}
    assert len(named) > 50
    assert named - there == set()


def test_every_row_of_the_threat_model_names_a_test_and_a_negative_control():
    assert len(rows()) > 30
    assert [row for row in rows() if not NAMED.search(row[3]) or not NAMED.search(row[4])] == []


def test_a_control_within_a_test_is_there():
    within = [name for row in rows() for name in re.findall(r"within `(test_\w+)`", row[4])]
    assert within
    assert [name for name in within if "Control" not in source_of(name)] == []


def test_every_real_attack_is_in_the_table_with_its_own_control():
    """And the other way round: the table names no attack that there is not."""
    attacks = set(re.findall(r'^    "([\w ]+)": Attack\(', SOURCES, re.MULTILINE))
    assert len(attacks) >= 10
    for column, test in ((3, REAL), (4, CONTROL)):
        assert {case for row in rows() for name, case in NAMED.findall(row[column]) if name == test} == attacks
    for row in rows():
        of_real = [case for name, case in NAMED.findall(row[3]) if name == REAL]
        assert of_real == [case for name, case in NAMED.findall(row[4]) if name == CONTROL], row


def test_the_reference_has_every_payload_type_and_lifetime():
    types = [value for name, value in vars(deployment).items() if name.endswith("_TYPE")]
    assert [value for value in types if value not in REFERENCE] == []
    for role, seconds in roles.LIFETIME_S.items():
        assert re.search(rf"\| `{role}` \|.*\| {seconds / roles.DAY_S:.0f} days \|", REFERENCE), role
    assert f"{1 << roles.FIRST_BITS} bins" in REFERENCE
    assert f"{roles.TARGETS_PER_BIN} targets" in REFERENCE
    assert envelopes.MAX_ENVELOPE_BYTES == 1 << 20
    assert f"{envelopes.MAX_SIGNATURES}\nsignatures" in REFERENCE
