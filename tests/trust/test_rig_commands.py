"""A command to a rig is obeyed only as it was signed, by the rig that is meant, in its time."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rig_runs import MAX_VALID_S, RIG_COMMAND_TYPE, RigBundle, RigCommand
from edgeops.contracts.wire import encode
from edgeops.trust import envelopes, keys, rig_commands

NOW = 1_800_000_000.0
KEY = keys.generate()
BUNDLE = RigBundle(profile="cortex-m4", target="m/1.0.0/cortex-m4.edgeops", digest="sha256:" + "ab" * 32)
COMMAND = RigCommand(
    fleet="f1", connection="bench", unit="self", id="c1", issued_at_s=NOW, expires_at_s=NOW + 100, rollout=7, attempt=1,
    model="m", version="1.0.0", bundles=(BUNDLE,),
)  # fmt: skip


def verify(envelope: bytes, *, now_s: float = NOW, **other: Any) -> RigCommand:
    mine = {"fleet": "f1", "connection": "bench", "unit": "self", "id": "c1", **other}
    return rig_commands.verify(envelope, keys={KEY.public_key.keyid: KEY.public_key}, now_s=now_s, **mine)


def test_a_command_as_it_was_signed_is_obeyed() -> None:
    assert verify(rig_commands.issue(COMMAND, KEY)) == COMMAND


@pytest.mark.parametrize(
    ("case", "changes", "mine", "code"),
    [
        ("for another rig", {"connection": "lab"}, {}, "E-TRUST-DEVICE"),
        ("of another fleet", {"fleet": "f2"}, {}, "E-TRUST-DEVICE"),
        ("on another topic", {}, {"id": "c2"}, "E-TRUST-DEVICE"),
        ("too late", {}, {"now_s": NOW + 100}, "E-TRUST-EXPIRED"),
        ("without an end", {"expires_at_s": NOW + MAX_VALID_S + 1}, {}, "E-WIRE-MALFORMED"),
        ("that never held", {"expires_at_s": NOW}, {}, "E-WIRE-MALFORMED"),
        ("without bundles", {"bundles": ()}, {}, "E-WIRE-MALFORMED"),
        ("with a bundle twice", {"bundles": (BUNDLE, BUNDLE)}, {}, "E-WIRE-MALFORMED"),
        ("of no attempt", {"attempt": 0}, {}, "E-WIRE-MALFORMED"),
        ("of a profile that is a path", {"bundles": (msgspec.structs.replace(BUNDLE, profile="../x"),)}, {}, "E-NAME"),
        ("of a model that is a path", {"model": "../x"}, {}, "E-NAME"),
    ],
)
def test_what_nobody_may_ask_for_is_refused(case: str, changes: Any, mine: Any, code: str) -> None:
    envelope = rig_commands.issue(msgspec.structs.replace(COMMAND, **changes), KEY)
    with pytest.raises(EdgeopsError) as caught:
        verify(envelope, **mine)
    assert caught.value.code == code, case


def test_a_command_to_a_rig_that_the_control_plane_did_not_sign_is_refused() -> None:
    stranger = keys.generate()
    for envelope in (
        rig_commands.issue(COMMAND, stranger),
        envelopes.seal(encode(COMMAND), "application/vnd.edgeops.measure+json", KEY),
    ):
        with pytest.raises(EdgeopsError) as caught:
            verify(envelope)
        assert caught.value.code == "E-TRUST-SIGNATURE"
    # Control: without the look at who signed it, and as what, the stranger would be obeyed.
    forged = rig_commands.issue(COMMAND, stranger)
    assert envelopes.read_unverified(forged, RigCommand) == COMMAND
    assert envelopes.payload_type(forged) == RIG_COMMAND_TYPE
