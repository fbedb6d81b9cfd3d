"""What a device or rig says, signed by its own key: reports, progress, telemetry alone and in batches, answers."""

from __future__ import annotations

from typing import TypeVar

from securesystemslib.signer import Key, Signer

from edgeops.contracts.deployment import (
    MEASUREMENT_TYPE,
    PROGRESS_TYPE,
    REPORTED_TYPE,
    TELEMETRY_BATCH_TYPE,
    TELEMETRY_TYPE,
    Progress,
    Reported,
)
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.measurement import MeasureAnswer
from edgeops.contracts.rig_runs import RIG_ANSWER_TYPE, RIG_REPORT_TYPE, RigAnswer, RigReport
from edgeops.contracts.samples import SAMPLES_ANSWER_TYPE, SamplesAnswer
from edgeops.contracts.telemetry import MAX_WINDOWS_PER_BATCH, Telemetry, TelemetryBatch
from edgeops.contracts.wire import decode, encode
from edgeops.trust import envelopes

Said = Reported | Progress | Telemetry | TelemetryBatch | SamplesAnswer | MeasureAnswer | RigReport | RigAnswer
Statement = TypeVar(
    "Statement", Reported, Progress, Telemetry, TelemetryBatch, SamplesAnswer, MeasureAnswer, RigReport, RigAnswer
)
_TYPES: dict[type[Said], str] = {
    Reported: REPORTED_TYPE,
    Progress: PROGRESS_TYPE,
    Telemetry: TELEMETRY_TYPE,
    TelemetryBatch: TELEMETRY_BATCH_TYPE,
    SamplesAnswer: SAMPLES_ANSWER_TYPE,
    MeasureAnswer: MEASUREMENT_TYPE,
    RigReport: RIG_REPORT_TYPE,
    RigAnswer: RIG_ANSWER_TYPE,
}


def sign(statement: Said, signer: Signer) -> bytes:
    """Return the signed envelope of a device's statement.

    Raises:
        EdgeopsError: E-WIRE-SIZE; too large for any reader.
    """
    return envelopes.seal(encode(statement), _TYPES[type(statement)], signer)


def verify(data: bytes, kind: type[Statement], *, key: Key, fleet: str, connection: str, unit: str) -> Statement:
    """Return a statement of this kind that this device made about this unit.

    Args:
        data: The envelope.
        kind: What it must be; a signature over another kind never counts.
        key: The key of the device's certificate.
        fleet: The fleet of the topic it came on.
        connection: The device of that topic.
        unit: The unit of that topic.

    Raises:
        EdgeopsError: E-WIRE-SIZE or E-WIRE-MALFORMED. E-TRUST-SIGNATURE; not signed by the device. E-TRUST-DEVICE;
            it speaks of another fleet, device or unit.
    """
    statement = decode(envelopes.unseal(data, _TYPES[kind], {key.keyid: key}), kind, what=kind.__name__.lower())
    said: tuple[Telemetry, ...] = statement.windows if isinstance(statement, TelemetryBatch) else ()
    if len(said) > MAX_WINDOWS_PER_BATCH:
        raise EdgeopsError("E-WIRE-MALFORMED", f"a batch of {len(said)} windows; {MAX_WINDOWS_PER_BATCH} are allowed")
    parts: list[Said] = [statement, *said]
    for part in parts:
        meant = (part.fleet, part.connection, part.unit)
        if meant != (fleet, connection, unit):
            raise EdgeopsError(
                "E-TRUST-DEVICE", f"a statement of {'/'.join(meant)[:200]} came from {connection}/{unit}"
            )
    return statement


def verify_telemetry(data: bytes, *, key: Key, fleet: str, connection: str, unit: str) -> tuple[Telemetry, ...]:
    """Return the windows of a telemetry message: one that was signed for itself, or a batch under one signature.

    Raises:
        EdgeopsError: As `verify`.
    """
    if envelopes.payload_type(data) == TELEMETRY_BATCH_TYPE:
        return verify(data, TelemetryBatch, key=key, fleet=fleet, connection=connection, unit=unit).windows
    return (verify(data, Telemetry, key=key, fleet=fleet, connection=connection, unit=unit),)
