"""A command as a signed statement for one unit of one device: to measure candidates."""

from __future__ import annotations

from collections.abc import Mapping

from securesystemslib.signer import Key, Signer

from edgeops.contracts.deployment import MEASURE_TYPE
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.measurement import (
    MAX_CANDIDATES,
    MAX_RUNS,
    MAX_THREADS,
    MAX_VALID_S,
    MeasureCommand,
)
from edgeops.contracts.wire import encode
from edgeops.trust import commands, envelopes


def issue(command: MeasureCommand, signer: Signer) -> bytes:
    """Return the signed envelope of a command.

    Raises:
        EdgeopsError: E-WIRE-SIZE; too large for any reader.
    """
    return envelopes.seal(encode(command), MEASURE_TYPE, signer)


def verify(
    data: bytes, *, keys: Mapping[str, Key], fleet: str, connection: str, unit: str, id: str, now_s: float
) -> MeasureCommand:
    """Return a command that may be obeyed; in every other case nothing is done.

    Args:
        data: The envelope.
        keys: Keys of the TUF role `desired-state`, from verified metadata.
        fleet: This device's fleet.
        connection: This device.
        unit: The unit whose topic it came on.
        id: The command's id as the topic says it.
        now_s: Time by the time rule.

    Raises:
        EdgeopsError: E-WIRE-SIZE or E-WIRE-MALFORMED. E-TRUST-SIGNATURE; not signed by one of `keys`. E-TRUST-DEVICE;
            for another fleet, device or unit, or of another id. E-TRUST-EXPIRED.
    """
    command = commands.unseal(
        data, MEASURE_TYPE, MeasureCommand, keys=keys, fleet=fleet, connection=connection, unit=unit, id=id,
        now_s=now_s, most_s=MAX_VALID_S, again="Ask again; check this device's clock.",
    )  # fmt: skip
    possible = (
        0 < len(command.bundles) <= MAX_CANDIDATES
        and 0 < command.runs <= MAX_RUNS
        and 0 <= command.threads <= MAX_THREADS
    )
    if not possible:
        raise EdgeopsError(
            "E-WIRE-MALFORMED",
            f"command: {len(command.bundles)} bundles, {command.runs} runs, {command.threads} threads",
        )
    return command
