"""A command as a signed statement for one rig: to run a release on its boards."""

from __future__ import annotations

from collections.abc import Mapping

from securesystemslib.signer import Key, Signer

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.names import check_name
from edgeops.contracts.rig_runs import MAX_BUNDLES, MAX_VALID_S, RIG_COMMAND_TYPE, RigCommand
from edgeops.contracts.wire import encode
from edgeops.trust import commands, envelopes


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
    command = commands.unseal(
        data, RIG_COMMAND_TYPE, RigCommand, keys=keys, fleet=fleet, connection=connection, unit=unit, id=id,
        now_s=now_s, most_s=MAX_VALID_S, again="Resume the rollout: it asks again. Check this machine's clock.",
    )  # fmt: skip
    check_name(command.model, "model")
    profiles = [check_name(one.profile, "profile") for one in command.bundles]
    if not 0 < len(set(profiles)) == len(profiles) <= MAX_BUNDLES or command.rollout < 1 or command.attempt < 1:
        raise EdgeopsError("E-WIRE-MALFORMED", f"command: bundles for {', '.join(profiles)[:200] or 'no profile'}")
    return command
