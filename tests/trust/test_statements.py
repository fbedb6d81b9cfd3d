"""Desired state for one device and no other; reports, progress and telemetry by the device's own key."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from raw_repository import NOW_S, SIGNERS, refused
from securesystemslib.signer import CryptoSigner

from edgeops.contracts.deployment import (
    DESIRED_TYPE,
    REPORTED_TYPE,
    Component,
    ComponentKind,
    DeploymentState,
    Desired,
    Progress,
    Reported,
)
from edgeops.contracts.telemetry import Telemetry
from edgeops.contracts.wire import encode
from edgeops.trust import desired, envelopes, reported

SIGNER, STRANGER = SIGNERS[0], SIGNERS[1]
KEYS = {SIGNER.public_key.keyid: SIGNER.public_key}
DEVICE = CryptoSigner.generate_ecdsa()
WANTED = Desired(
    fleet="demo",
    connection="pi-1",
    unit="self",
    generation=7,
    issued_at_s=NOW_S - 60,
    expires_at_s=NOW_S + 3600,
    components=(
        Component(name="m", kind=ComponentKind.MODEL, release="1.0.0", target="m/1.0.0/pi.edgeops", digest="sha256:1"),
    ),
)


def verify(data: bytes, **changed: Any) -> Desired:
    arguments: dict[str, Any] = {
        "keys": KEYS,
        "fleet": "demo",
        "connection": "pi-1",
        "unit": "self",
        "floor_generation": 7,
        "now_s": NOW_S,
    }
    return desired.verify(data, **{**arguments, **changed})


def issue(signer: CryptoSigner = SIGNER, **changed: Any) -> bytes:
    return desired.issue(msgspec.structs.replace(WANTED, **changed), signer)


def test_a_desired_state_reaches_the_device_it_is_for():
    assert verify(issue()) == WANTED


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (issue(STRANGER), "E-TRUST-SIGNATURE"),
        (issue(connection="pi-2"), "E-TRUST-DEVICE"),
        (issue(fleet="other"), "E-TRUST-DEVICE"),
        (issue(unit="mcu"), "E-TRUST-DEVICE"),
        (issue(expires_at_s=NOW_S), "E-TRUST-EXPIRED"),
        (issue(expires_at_s=NOW_S - 30), "E-TRUST-EXPIRED"),
        (issue(generation=6), "E-TRUST-REPLAY"),
        (issue(generation=-1), "E-TRUST-REPLAY"),
        (issue(issued_at_s=NOW_S + 3600), "E-WIRE-MALFORMED"),
        (envelopes.seal(b"{}", DESIRED_TYPE, SIGNER), "E-WIRE-MALFORMED"),
        (envelopes.seal(encode(WANTED), REPORTED_TYPE, SIGNER), "E-TRUST-SIGNATURE"),
        (encode(WANTED), "E-WIRE-MALFORMED"),
    ],
    ids=["stranger", "other device", "other fleet", "other unit", "expires now", "expired", "replay", "negative",
         "expires before issued", "not a desired state", "other type", "unsigned"],
)  # fmt: skip
def test_everything_else_changes_nothing(data: bytes, code: str):
    with refused(code):
        verify(data)


def test_each_refusal_hangs_on_exactly_one_check():
    """Negative controls: with the one fact changed that the check asks for, the same bytes pass."""
    assert verify(issue(STRANGER), keys={STRANGER.public_key.keyid: STRANGER.public_key})
    assert verify(issue(connection="pi-2"), connection="pi-2")
    assert verify(issue(unit="mcu"), unit="mcu")
    assert verify(issue(expires_at_s=NOW_S - 30), now_s=NOW_S - 31)
    assert verify(issue(generation=6), floor_generation=6)


def test_the_same_generation_signed_anew_passes():
    assert verify(issue(issued_at_s=NOW_S - 1, expires_at_s=NOW_S + 9999)).generation == 7


def test_no_desired_key_means_no_desired_state():
    with refused("E-TRUST-SIGNATURE"):
        verify(issue(), keys={})


def test_a_newer_writers_fields_do_no_harm():
    payload = encode(WANTED)[:-1] + b',"later":{"x":1}}'
    assert verify(envelopes.seal(payload, DESIRED_TYPE, SIGNER)) == WANTED


REPORT = Reported(
    fleet="demo",
    connection="pi-1",
    unit="self",
    boot_id="b",
    seq=1,
    at_s=NOW_S,
    agent_version="0.1.0",
    profile="pi",
    observed_generation=7,
    components=(),
)
STEP = Progress(
    fleet="demo",
    connection="pi-1",
    unit="self",
    boot_id="b",
    seq=2,
    at_s=NOW_S,
    component="m",
    generation=7,
    step=1,
    state=DeploymentState.DOWNLOADING,
    release="1.0.0",
)
WINDOW = Telemetry(
    fleet="demo", connection="pi-1", unit="self", boot_id="b", seq=3, start_s=NOW_S, end_s=NOW_S + 1, models=()
)


@pytest.mark.parametrize("statement", [REPORT, STEP, WINDOW], ids=["reported", "progress", "telemetry"])
def test_a_device_speaks_for_itself_only(statement: Reported | Progress | Telemetry):
    where: dict[str, Any] = {"fleet": "demo", "connection": "pi-1", "unit": "self"}
    key = DEVICE.public_key
    kind: Any = type(statement)
    sealed = reported.sign(statement, DEVICE)
    assert reported.verify(sealed, kind, key=key, **where) == statement
    with refused("E-TRUST-SIGNATURE"):
        reported.verify(sealed, kind, key=CryptoSigner.generate_ecdsa().public_key, **where)
    for other in ({"connection": "pi-2"}, {"fleet": "x"}, {"unit": "mcu"}):
        with refused("E-TRUST-DEVICE"):
            reported.verify(sealed, kind, key=key, **{**where, **other})
    for other_kind in {Reported, Progress, Telemetry} - {kind}:
        with refused("E-TRUST-SIGNATURE"):
            reported.verify(sealed, other_kind, key=key, **where)
