"""The reference names every key of a profile file, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from edgeops.contracts.profile import Accelerator, Budgets, Cpu, Memory, Precision, Profile, Runtime, Serving

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "profiles.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([a-z0-9_]+)` \| (.+?) \| .+ \|$", re.MULTILINE)


@pytest.mark.parametrize("table", [Profile, Cpu, Memory, Accelerator, Runtime, Budgets, Serving])
def test_the_reference_has_every_key_and_says_which_are_required(table: type[msgspec.Struct]):
    section = re.split(r"^## ", PAGE.split(f"\n## {table.__name__}\n")[1], flags=re.MULTILINE)[0]
    written = {key: default == "required" for key, default in ROW.findall(section)}
    assert written == {field.encode_name: field.required for field in msgspec.structs.fields(table)}


def test_the_reference_has_every_precision():
    assert all(f"`{precision}`" in PAGE for precision in Precision)
