"""Wishes for raw inputs as signed commands to one unit of one device, by the key that signs desired state."""

from __future__ import annotations

from collections.abc import Mapping

from securesystemslib.signer import Key, Signer

from edgeops.contracts.samples import SAMPLES_TYPE, SamplesCommand, check_samples_command
from edgeops.contracts.wire import encode
from edgeops.trust import commands, envelopes


def issue(command: SamplesCommand, signer: Signer) -> bytes:
    """Return the signed envelope of a command.

    Raises:
        EdgeopsError: E-COMMAND; no device would take it. E-WIRE-SIZE; too large for any reader.
    """
    check_samples_command(command)
    return envelopes.seal(encode(command), SAMPLES_TYPE, signer)


def verify(
    data: bytes, *, keys: Mapping[str, Key], fleet: str, connection: str, unit: str, id: str, now_s: float
) -> SamplesCommand:
    """Return a command that may be carried out, unless one of this id was.

    Args:
        data: The envelope.
        keys: Keys of the TUF role `desired-state`, from verified metadata.
        fleet: This device's fleet.
        connection: This device.
        unit: The unit whose topic it came on.
        id: The id of that topic.
        now_s: Time by the time rule.

    Raises:
        EdgeopsError: E-WIRE-SIZE or E-WIRE-MALFORMED. E-TRUST-SIGNATURE; not signed by one of `keys`. E-TRUST-DEVICE;
            for another fleet, device or unit, or of another id. E-TRUST-EXPIRED. E-COMMAND or E-NAME; not one that
            this version can carry out.
    """
    command = commands.unseal(
        data, SAMPLES_TYPE, SamplesCommand, keys=keys, fleet=fleet, connection=connection, unit=unit, id=id,
        now_s=now_s, again="Ask again.",
    )  # fmt: skip
    check_samples_command(command)
    return command
