"""A command as a signed statement for one rig: to run a release on its boards."""

from __future__ import annotations

from collections.abc import Mapping

from securesystemslib.signer import Key, Signer

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.names import check_name
from edgeops.contracts.rig_runs import MAX_BUNDLES, MAX_VALID_S, RIG_COMMAND_TYPE, RigCommand
from edgeops.contracts.wire import decode, encode
from edgeops.trust import envelopes


def issue(command: RigCommand, signer: Signer) -> bytes:
    """Return the signed envelope of a command.

    Raises:
        EdgeopsError: E-WIRE-SIZE; too large for any reader.
    """
    return envelopes.seal(encode(command), RIG_COMMAND_TYPE, signer)


def verify(
    data: bytes, *, keys: Mapping[str, Key], fleet: str, connection: str, unit: str, id: str, now_s: float
) -> RigCommand:
    """Return a command that may be obeyed; in every other case nothing is done.

    Args:
        data: The envelope.
        keys: Keys of the TUF role `desired-state`, from verified metadata.
        fleet: This rig's fleet.
        connection: This rig.
        unit: The unit whose topic it came on.
        id: The command's id as the topic says it.
        now_s: Time by the time rule.

    Raises:
        EdgeopsError: E-WIRE-SIZE, E-WIRE-MALFORMED or E-NAME. E-TRUST-SIGNATURE; not signed by one of `keys`.
            E-TRUST-DEVICE; for another fleet, rig or unit, or of another id. E-TRUST-EXPIRED.
    """
    command = decode(envelopes.unseal(data, RIG_COMMAND_TYPE, keys), RigCommand, what="command")
    meant = (command.fleet, command.connection, command.unit, command.id)
    if meant != (fleet, connection, unit, id):
        raise EdgeopsError(
            "E-TRUST-DEVICE", f"a command for {'/'.join(meant)[:200]}, this is {fleet}/{connection}/{unit}/{id}"
        )
    if not 0 < command.expires_at_s - command.issued_at_s <= MAX_VALID_S:
        raise EdgeopsError("E-WIRE-MALFORMED", "command: its life is not within a week")
    if now_s >= command.expires_at_s:
        raise EdgeopsError(
            "E-TRUST-EXPIRED",
            f"command {id} expired {now_s - command.expires_at_s:.0f} s ago",
            "Resume the rollout: it asks again. Check this machine's clock.",
        )
    check_name(command.model, "model")
    profiles = [check_name(one.profile, "profile") for one in command.bundles]
    if not 0 < len(set(profiles)) == len(profiles) <= MAX_BUNDLES or command.rollout < 1 or command.attempt < 1:
        raise EdgeopsError("E-WIRE-MALFORMED", f"command: bundles for {', '.join(profiles)[:200] or 'no profile'}")
    return command
