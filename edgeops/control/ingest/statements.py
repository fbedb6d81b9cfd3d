"""Whether a message is what it claims: right topic, right device's signature, right form. Bytes in, statement out."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from securesystemslib.signer import Key

from edgeops.contracts.deployment import MAX_COMPONENTS, MEASUREMENT_TYPE, Presence, Progress, Reported
from edgeops.contracts.enrolment import ConnectionKind
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.measurement import MAX_CANDIDATES, MeasureAnswer
from edgeops.contracts.names import check_name
from edgeops.contracts.rig_runs import MAX_BOARDS, RigAnswer, RigReport
from edgeops.contracts.samples import SamplesAnswer
from edgeops.contracts.telemetry import MAX_MODELS, DeviceWindow, Telemetry
from edgeops.contracts.topics import SELF_UNIT, UnitTopic
from edgeops.contracts.wire import decode, encode
from edgeops.control.measuring import SignedAnswer
from edgeops.control.rigs.runs import SignedRigAnswer
from edgeops.releases import rig_results
from edgeops.trust import certificates, envelopes, reported

MAX_STATEMENT_BYTES = 512 << 10
MAX_PRESENCE_BYTES = 1024
MAX_WORDS = 64
MAX_INTEGER = 1 << 53
# What one window may count: sums over a fleet's life stay far below what a column holds.
MAX_WINDOW_COUNT = 1_000_000_000
MAX_ID_CHARACTERS = 64
MAX_FIGURES = 64
MAX_DOING = 500
Statement = Reported | Progress | Telemetry | Presence | SamplesAnswer | SignedAnswer | RigReport | SignedRigAnswer


class Known(NamedTuple):
    """What the registry says of a sender: its certificate (PEM), and whether it may still speak.

    `previous_pem` is the certificate before, where its key still counts; else "". `rig_key` is what a rig signs its
    results with; None: the fleet trusts none of this name.
    """

    certificate_pem: str
    revoked: bool
    previous_pem: str = ""
    kind: ConnectionKind = ConnectionKind.DEVICE
    rig_key: Key | None = None


@functools.lru_cache(maxsize=20_000)
def device_key(certificate_pem: str) -> Key:
    """Return the key of a device's certificate.

    Raises:
        EdgeopsError: E-WIRE-MALFORMED or E-TRUST-KEY; not a usable certificate.
    """
    return certificates.public_key(certificate_pem.encode())


def read_statements(topic: UnitTopic, payload: bytes, fleet: str, known: Known | None) -> tuple[Statement, ...]:
    """Check a device's message completely; return what it says: one statement, or the windows of a batch.

    Args:
        topic: Its topic; only there does the broker vouch for the sender.
        payload: Its bytes.
        fleet: The control plane's fleet.
        known: The sender; None: no such device.

    Raises:
        EdgeopsError: E-DEVICE-UNKNOWN; no such device, or revoked. E-TOPIC; not a topic that devices write.
            E-WIRE-SIZE, E-WIRE-MALFORMED; too large, or not of the agreed form. E-TRUST-SIGNATURE; not signed by the
            device, or a verdict not by the key of this rig. E-TRUST-DEVICE; what was signed is for another fleet,
            device or unit than the topic says.
    """
    if topic.fleet != fleet or known is None or known.revoked:
        raise EdgeopsError("E-DEVICE-UNKNOWN", f"{topic.connection} is not enrolled in {fleet}")
    if topic.leaf == "presence":
        if len(payload) > MAX_PRESENCE_BYTES:
            raise EdgeopsError("E-WIRE-SIZE", f"presence of {len(payload)} bytes")
        return (decode(payload, Presence, what="presence"),)
    if topic.leaf not in ("reported", "progress", "telemetry", "res"):
        raise EdgeopsError("E-TOPIC", f"devices send nothing as {topic.leaf}")
    if len(payload) > MAX_STATEMENT_BYTES:
        raise EdgeopsError("E-WIRE-SIZE", f"{topic.leaf} of {len(payload)} bytes")
    try:
        statements = _verified(topic, payload, fleet, known, known.certificate_pem)
    except EdgeopsError as error:
        if error.code != "E-TRUST-SIGNATURE" or not known.previous_pem:
            raise
        statements = _verified(topic, payload, fleet, known, known.previous_pem)
    for statement in statements:
        if isinstance(statement, SamplesAnswer):
            _check_result(statement, topic)
        elif isinstance(statement, SignedAnswer):
            _check_answer(statement.answer, topic)
        elif isinstance(statement, SignedRigAnswer):
            _check_rig_answer(statement.answer, topic)
        elif isinstance(statement, RigReport):
            _check_rig_report(statement)
        else:
            check_statement(statement)
    return statements


def _verified(
    topic: UnitTopic, payload: bytes, fleet: str, known: Known, certificate_pem: str
) -> tuple[Reported | Progress | Telemetry | SamplesAnswer | SignedAnswer | RigReport | SignedRigAnswer, ...]:
    connection, unit, key = topic.connection, topic.unit, device_key(certificate_pem)
    if known.kind is ConnectionKind.RIG:
        return (_verified_of_rig(topic, payload, fleet, known, certificate_pem),)
    if topic.leaf == "res" and envelopes.payload_type(payload) == MEASUREMENT_TYPE:
        answer = reported.verify(payload, MeasureAnswer, key=key, fleet=fleet, connection=connection, unit=unit)
        return (SignedAnswer(answer, payload, certificate_pem),)
    if topic.leaf == "telemetry":
        return reported.verify_telemetry(payload, key=key, fleet=fleet, connection=connection, unit=unit)
    if topic.leaf == "res":
        return (reported.verify(payload, SamplesAnswer, key=key, fleet=fleet, connection=connection, unit=unit),)
    if topic.leaf == "progress":
        return (reported.verify(payload, Progress, key=key, fleet=fleet, connection=connection, unit=unit),)
    return (reported.verify(payload, Reported, key=key, fleet=fleet, connection=connection, unit=unit),)


def _verified_of_rig(
    topic: UnitTopic, payload: bytes, fleet: str, known: Known, certificate_pem: str
) -> RigReport | SignedRigAnswer:
    """Return what a rig says. Its verdict counts only by the rig's own key, which the fleet was told by hand: whoever
    has the key of the connection, or lets rigs join, cannot let a release through.
    """
    connection, unit, key = topic.connection, topic.unit, device_key(certificate_pem)
    if unit != SELF_UNIT or topic.leaf not in ("reported", "res"):
        raise EdgeopsError("E-TOPIC", f"rigs send nothing as {unit}/{topic.leaf}")
    if topic.leaf == "reported":
        return reported.verify(payload, RigReport, key=key, fleet=fleet, connection=connection, unit=unit)
    answer = reported.verify(payload, RigAnswer, key=key, fleet=fleet, connection=connection, unit=unit)
    result = None
    if answer.statement:
        if known.rig_key is None:
            raise EdgeopsError("E-TRUST-SIGNATURE", f"the fleet trusts no key of rig {connection}", rig_results.NEXT)
        result = rig_results.verified_by(known.rig_key, answer.statement.encode(), f"verdict of {connection}")
    return SignedRigAnswer(answer, result, payload, certificate_pem)


def _check_rig_answer(answer: RigAnswer, topic: UnitTopic) -> None:
    if answer.id != topic.id:
        raise EdgeopsError("E-TRUST-DEVICE", f"an answer to {answer.id[:80]} came as one to {topic.id}")
    if bool(answer.statement) == bool(answer.code):
        raise EdgeopsError("E-WIRE-MALFORMED", "an answer of a rig without result or reason, or with both")


def _check_rig_report(report: RigReport) -> None:
    _check_boot_id(report.boot_id)
    if not 0 <= report.seq < MAX_INTEGER or not math.isfinite(report.at_s):
        raise EdgeopsError("E-WIRE-MALFORMED", "a figure of a rig's report is impossible")
    if len(report.boards) > MAX_BOARDS or len(report.features) > MAX_WORDS:
        raise EdgeopsError("E-WIRE-MALFORMED", "a rig has too many boards or features")
    if report.doing is not None and len(report.doing.said) > MAX_DOING:
        raise EdgeopsError("E-WIRE-MALFORMED", f"a rig says more than {MAX_DOING} characters")
    for board in report.boards:
        check_name(board.name, "board")
        check_name(board.profile, "profile")


def _check_result(result: SamplesAnswer, topic: UnitTopic) -> None:
    if result.id != topic.id:
        raise EdgeopsError("E-TRUST-DEVICE", f"an answer to {result.id[:63]!r} came as one to {topic.id}")
    if not (0 <= result.offset < MAX_INTEGER and 0 <= result.total < MAX_INTEGER and math.isfinite(result.at_s)):
        raise EdgeopsError("E-WIRE-MALFORMED", "a figure of an answer is impossible")


def _check_answer(answer: MeasureAnswer, topic: UnitTopic) -> None:
    """Check that an answer is to the command of its topic, and says figures or a reason.

    Raises:
        EdgeopsError: E-TRUST-DEVICE; to another command. E-WIRE-MALFORMED.
    """
    if answer.id != topic.id:
        raise EdgeopsError("E-TRUST-DEVICE", f"an answer to {answer.id[:80]} came as one to {topic.id}")
    found = answer.measurements
    if (found is None) == (not answer.code) or (found is not None and len(found.bundles) > MAX_CANDIDATES):
        raise EdgeopsError("E-WIRE-MALFORMED", "an answer without figures or reason, or with too many")
    if found is not None and found.device != topic.connection:
        raise EdgeopsError("E-TRUST-DEVICE", f"{topic.connection} speaks for {found.device[:80]}")


def _check_device(figures: DeviceWindow | None) -> None:
    if figures is not None and (
        len(figures.zones_c) > MAX_FIGURES or len(figures.throttled) > MAX_FIGURES or len(encode(figures)) > 8192
    ):
        raise EdgeopsError("E-WIRE-MALFORMED", "a device says too much of itself")


def _check_boot_id(boot_id: str) -> None:
    if not 0 < len(boot_id) <= MAX_ID_CHARACTERS or not (boot_id.isascii() and boot_id.isprintable()):
        raise EdgeopsError("E-WIRE-MALFORMED", "boot_id is not 1 to 64 printable ASCII characters")


def check_statement(statement: Reported | Progress | Telemetry) -> None:
    """Check what the form alone does not say: names, and numbers that any database can hold.

    Raises:
        EdgeopsError: E-WIRE-MALFORMED or E-NAME.
    """
    _check_boot_id(statement.boot_id)
    integers = [statement.seq]
    if isinstance(statement, Reported):
        if len(statement.components) > MAX_COMPONENTS:
            raise EdgeopsError("E-WIRE-MALFORMED", f"{len(statement.components)} components")
        if statement.unit != SELF_UNIT:
            check_name(statement.profile, "profile")
        if max(len(statement.attributes), len(statement.capabilities)) > MAX_WORDS:
            raise EdgeopsError("E-WIRE-MALFORMED", f"more than {MAX_WORDS} attributes or capabilities")
        integers += [statement.observed_generation, *(part.generation for part in statement.components)]
        names = [part.name for part in statement.components]
        floats = [statement.at_s]
    elif isinstance(statement, Progress):
        integers += [statement.generation, statement.step]
        names, floats = [statement.component], [statement.at_s, statement.percent or 0.0]
    else:
        if len(statement.models) > MAX_MODELS:
            raise EdgeopsError("E-WIRE-MALFORMED", f"{len(statement.models)} models")
        names, floats = [window.model for window in statement.models], [statement.start_s, statement.end_s]
        if not 0 <= statement.dropped_windows <= MAX_WINDOW_COUNT:
            raise EdgeopsError("E-WIRE-MALFORMED", f"not 0 to {MAX_WINDOW_COUNT} windows were dropped")
        _check_device(statement.device)
        for window in statement.models:
            counts = [window.requests, window.counted, *window.errors.values()]
            if max(counts) > MAX_WINDOW_COUNT:
                raise EdgeopsError("E-WIRE-MALFORMED", f"a window counts more than {MAX_WINDOW_COUNT}")
            integers += counts
            # A sum that is not finite, or a bin that no number names, could not be read again by anybody.
            if not window.latency_ms.is_sound(MAX_WINDOW_COUNT):
                raise EdgeopsError("E-WIRE-MALFORMED", "latencies that cannot be")
    if min(integers) < 0 or max(integers) >= MAX_INTEGER:
        raise EdgeopsError("E-WIRE-MALFORMED", "a count is below 0 or above 2^53")
    if not all(math.isfinite(value) for value in floats):
        raise EdgeopsError("E-WIRE-MALFORMED", "a figure is not finite")
    for name in names:
        check_name(name, "component")
