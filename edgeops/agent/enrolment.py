"""How a new device gets its identity: from a one-time token, and from nothing that the token does not vouch for."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import msgspec

from edgeops import __version__, durable
from edgeops.agent.store import StateDirectory
from edgeops.contracts.enrolment import (
    BrokerAddress,
    ConnectionKind,
    EnrolmentToken,
    EnrolRequest,
    EnrolResponse,
    OfflineAnswer,
)
from edgeops.contracts.errors import ERROR_CODES, EdgeopsError
from edgeops.contracts.names import check_name
from edgeops.contracts.wire import Wire, decode, encode
from edgeops.transport.http import HttpClient, context_for, mutual_context, quick_backoff_s, unverified_get
from edgeops.transport.mqtt import TlsFiles
from edgeops.transport.tuf_fetcher import TufFetcher
from edgeops.trust import certificates
from edgeops.trust.device import DeviceIdentity
from edgeops.trust.time import Clock
from edgeops.trust.tuf_client import TufClient

log = logging.getLogger(__name__)

MAX_CA_BYTES = 64 << 10
MAX_ROOT_BYTES = 512_000
MAX_ANSWER_BYTES = 256 << 10
CLOCK_FILE = "clock.json"
_RECORD = "enrolment.json"


class Enrolment(Wire, frozen=True, kw_only=True):
    """What the device learned when it enrolled: who it is, and where to go."""

    fleet: str
    connection: str
    profile: str
    server: str
    broker: BrokerAddress
    artifacts_url: str


def enrolled(state: StateDirectory) -> Enrolment | None:
    """Return the device's enrolment; None: it has none yet.

    Raises:
        EdgeopsError: E-STATE-CORRUPT; the record is damaged.
    """
    return read_enrolment(state.identity)


def read_enrolment(identity: Path) -> Enrolment | None:
    """As `enrolled`, from the identity's directory."""
    path = identity / _RECORD
    try:
        return decode(path.read_bytes(), Enrolment, what=str(path))
    except FileNotFoundError:
        return None
    except (OSError, EdgeopsError) as error:
        raise EdgeopsError(
            "E-STATE-CORRUPT", f"{path}: {error}", "Remove the identity directory and enrol the device again."
        ) from error


def damage(identity: Path) -> EdgeopsError | None:
    """Return what is wrong with the identity of a device that was enrolled; None: nothing, or it was not."""
    try:
        if read_enrolment(identity) is not None:
            files = DeviceIdentity.load(identity).tls_files()
            mutual_context(TlsFiles(files.ca, files.certificate, files.key))
    except EdgeopsError as error:
        return error
    return None


def enrol(
    state: StateDirectory,
    token: EnrolmentToken,
    *,
    profile: str,
    name: str | None,
    kind: ConnectionKind = ConnectionKind.DEVICE,
) -> Enrolment:
    """Enrol the device: CA, first root, key, certificate; `enrolment.json` comes last and makes it count.

    A cut at any point leaves a device that enrols again with the same key.

    Args:
        state: The state directory.
        token: From the operator.
        profile: The device's profile; empty for a rig.
        name: A wish.
        kind: What joins.

    Raises:
        EdgeopsError: E-TRUST-ROOT; the server's CA or first root is not the one that the token names, and nothing was
            kept. E-TOKEN or E-ENROLL; the server refuses. E-NET-UNREACHABLE or E-NET-RESPONSE. E-DISK-FULL or
            E-DISK-WRITE.
    """
    if kind is ConnectionKind.DEVICE:
        check_name(profile, "profile")
    base = f"{token.server.rstrip('/')}/bootstrap"
    # The one connection that is not verified: what it brings counts only if the token names its hash.
    ca_pem = unverified_get(f"{base}/ca.pem", max_bytes=MAX_CA_BYTES)
    certificates.check_ca(ca_pem, token.ca_sha256)
    durable.make_private_dir(state.identity)
    durable.make_private_dir(state.trust)
    http = HttpClient(context_for(ca_pem), backoff=quick_backoff_s)
    root = http.get(f"{base}/root.json", max_bytes=MAX_ROOT_BYTES)
    tuf = TufClient(state.trust, token.server, TufFetcher(http), Clock(state.trust / CLOCK_FILE))
    tuf.bootstrap(root, token.root_sha256)
    identity = DeviceIdentity.create(state.identity)
    request = msgspec.structs.replace(_request(token, identity, profile, name), kind=kind)
    answer = _ask(http, f"{base}/enrol", request)
    return _take(state, token, identity, answer, ca_pem)


def request_on_paper(state: StateDirectory, token: EnrolmentToken, *, profile: str, name: str | None) -> bytes:
    """Make the device's key, and return its request as a file for `edgeops device enroll`: it holds the token's secret.

    Raises:
        EdgeopsError: E-NAME. E-TRUST-KEY; a key that is there is not readable. E-DISK-FULL or E-DISK-WRITE.
    """
    check_name(profile, "profile")
    durable.make_private_dir(state.identity)
    return encode(_request(token, DeviceIdentity.create(state.identity), profile, name))


def enrol_on_paper(state: StateDirectory, token: EnrolmentToken, answer: OfflineAnswer) -> Enrolment:
    """Enrol the device with what `edgeops device enroll` answered: held against the token as if it came by network.

    Raises:
        EdgeopsError: E-TRUST-ROOT; CA or first root is not the one that the token names. E-ENROLL, E-TRUST-KEY or
            E-TRUST-SIGNATURE; the certificate is for another device or key, or of another CA. E-DISK-FULL or
            E-DISK-WRITE.
    """
    ca_pem = answer.response.ca_pem.encode()
    certificates.check_ca(ca_pem, token.ca_sha256)
    durable.make_private_dir(state.identity)
    durable.make_private_dir(state.trust)
    http = HttpClient(context_for(ca_pem), backoff=quick_backoff_s)
    tuf = TufClient(state.trust, token.server, TufFetcher(http), Clock(state.trust / CLOCK_FILE))
    tuf.bootstrap(answer.root_json.encode(), token.root_sha256)
    return _take(state, token, DeviceIdentity.create(state.identity), answer.response, ca_pem)


def _take(
    state: StateDirectory, token: EnrolmentToken, identity: DeviceIdentity, answer: EnrolResponse, ca_pem: bytes
) -> Enrolment:
    """Install a certificate, and keep who the device is; see `enrol`."""
    if answer.fleet != token.fleet:
        raise EdgeopsError("E-ENROLL", f"the server speaks for fleet {answer.fleet!r}, the token for {token.fleet!r}")
    certificate = answer.certificate_pem.encode()
    if certificates.common_name(certificate) != check_name(answer.connection, "device name"):
        raise EdgeopsError("E-ENROLL", f"the certificate is not for {answer.connection}")
    identity.install(certificate, ca_pem)
    enrolment = Enrolment(
        fleet=answer.fleet,
        connection=answer.connection,
        profile=answer.profile,
        server=token.server,
        broker=answer.broker,
        artifacts_url=answer.artifacts_url,
    )
    durable.write_file(state.identity / _RECORD, encode(enrolment), mode=0o600)
    log.info("enrolled as %s in %s", enrolment.connection, enrolment.fleet)
    return enrolment


def _request(token: EnrolmentToken, identity: DeviceIdentity, profile: str, name: str | None) -> EnrolRequest:
    wish = name or f"{profile[:48]}-device"
    return EnrolRequest(
        secret=token.secret,
        csr_pem=identity.csr_pem(wish).decode(),
        profile=profile,
        name=name,
        agent_version=__version__,
    )


def _ask(http: HttpClient, url: str, request: EnrolRequest) -> EnrolResponse:
    status, answer = http.post_json(url, encode(request), max_bytes=MAX_ANSWER_BYTES)
    if status in (200, 201):
        return decode(answer, EnrolResponse, what="the server's enrolment answer")
    raise problem_of(status, answer, "enrol this device")


def problem_of(status: int, answer: bytes, what_for: str) -> EdgeopsError:
    """Return the error of the server's problem document; what has no known code is a refusal all the same.

    Args:
        status: HTTP status.
        answer: The body.
        what_for: What the server refuses to do.
    """
    try:
        said = json.loads(answer)
        code, what = str(said["code"]), str(said["detail"])
    except (ValueError, KeyError, TypeError):
        code, what = "", f"status {status}"
    if code not in ERROR_CODES:
        code = "E-ENROLL"
    return EdgeopsError(code, f"the server refuses to {what_for}: {what[:500]}", "Ask the operator.")
