"""The OpenAPI document against its server: whatever it allows is answered as it says, and nothing with a 5xx."""

from __future__ import annotations

import contextlib
import itertools
import sys
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from served_fleet import BROKERS, Fleet, Serving

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    ignored_auth,
]


def keep_to_the_document(serving: Serving, examples: int) -> int:
    """Try every operation with requests that its document allows, and some that it does not; return how many it has."""
    ca, token = str(serving.home / "ca" / "ca.pem"), (serving.home / "api.token").read_text().strip()
    schema = schemathesis.openapi.from_url(serving.ready["api"] + "/api/v1/openapi.json", verify=ca)
    operations = [found.ok() for found in schema.get_all_operations()]
    for operation, mode in itertools.product(operations, GenerationMode):

        @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(case=operation.as_strategy(generation_mode=mode))
        def keeps(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=CHECKS, verify=ca, timeout=60, headers={"Authorization": f"Bearer {token}"})

        # Where an operation takes nothing, nothing can be wrong with what it is given.
        with contextlib.suppress(*([Unsatisfiable] if mode is GenerationMode.NEGATIVE else [])):
            keeps()
    return len(operations)


def test_every_operation_keeps_to_its_document(served: Serving, fleet: Fleet) -> None:
    assert keep_to_the_document(served, examples=1) > 25


_UNHURRIED = """
from edgeops.control.api import limits
limits.STRANGERS_BURST = 1_000_000
from edgeops.cli import main
main()
"""


class Unhurried(Serving):
    """A control plane that lets strangers ask as often as `ignored_auth` does, which takes a 429 for a fault."""

    def command(self) -> list[str]:
        return [sys.executable, "-c", _UNHURRIED]


def keep_at_length(serving: Serving, devices: Path, examples: int) -> int:
    serving.start()
    try:
        fleet = Fleet(serving, devices, refuses=("1.2.0",))
        try:
            return keep_to_the_document(serving, examples)
        finally:
            fleet.stop()
    finally:
        serving.stop()


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_every_operation_keeps_to_its_document_at_length(home: Path, tmp_path: Path) -> None:
    assert keep_at_length(Unhurried(home, BROKERS[-1]), tmp_path / "devices", examples=40) > 25


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("registry_url", ["postgresql"], indirect=True)
def test_every_operation_keeps_to_its_document_on_postgresql(home: Path, tmp_path: Path, registry_url: str) -> None:
    serving = Unhurried(home, BROKERS[-1], "--database", registry_url)
    assert keep_at_length(serving, tmp_path / "devices", examples=10) > 25
