"""Bounded fuzzing of everything that strangers can send; `make fuzz` goes on for longer, guided by coverage."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import pytest
import targets
from choices import Choices
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeops.trust import envelopes

EXAMPLES = 300


@pytest.mark.parametrize("name", sorted(targets.TARGETS))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(min_size=1, max_size=60))
def test_no_input_crashes_or_is_believed_unsigned(name: str, data: bytes):
    targets.TARGETS[name](data)


@pytest.mark.parametrize("name", ["metadata", "envelope"])
def test_a_believer_of_anything_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch):
    """Negative control: once signatures are not checked, the same fuzzing finds that something unsigned is believed."""
    monkeypatch.setattr(envelopes.Envelope, "verify", lambda *_: {})
    for role in ("Root", "Targets"):
        monkeypatch.setattr(f"tuf.api.metadata.{role}.verify_delegate", lambda *_: None)
    rng = random.Random(1)

    def search() -> None:
        for _ in range(3000):
            targets.TARGETS[name](rng.randbytes(40))

    with pytest.raises(AssertionError):
        search()


def test_choices_are_the_same_for_the_same_bytes():
    data = bytes(range(200))
    assert Choices(data).changed_json({"a": [1, {"b": 2}]}) == Choices(data).changed_json({"a": [1, {"b": 2}]})
    assert Choices(b"").changed_bytes(b"abc") == Choices(b"").changed_bytes(b"abc")


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="the extra `fuzz` is not installed")
def test_coverage_guided_fuzzing_finds_nothing_either(tmp_path: Path):
    runner = Path(__file__).with_name("run.py")
    done = subprocess.run(
        [sys.executable, str(runner), "--seconds", "20", "--corpus", str(tmp_path)], capture_output=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
