"""What is fuzzed, and what must hold whatever comes: only errors with a code, and nothing unsigned is believed.

Each target takes bytes, and ends, raises `AssertionError` for a broken promise, or anything else for a crash.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import shutil
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from bundle_making import make_bundle
from choices import Choices, as_json
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from raw_repository import NOW_S, SIGNERS, RawRepository
from securesystemslib.exceptions import FormatError
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata

from edgeops import durable
from edgeops.contracts.deployment import DESIRED_TYPE, TELEMETRY_BATCH_TYPE, TELEMETRY_TYPE, Desired
from edgeops.contracts.enrolment import EnrolmentToken
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.telemetry import ModelWindow, QuantileSketch, Telemetry, TelemetryBatch
from edgeops.contracts.tensors import TensorSpec
from edgeops.contracts.topics import parse_topic, unit_topic
from edgeops.contracts.wire import decode, encode
from edgeops.control.ingest.statements import check_statement
from edgeops.releases.bundles import MAX_FILES, open_bundle, pack, unpack
from edgeops.releases.offline import OfflineRepository
from edgeops.trust import certificates, desired, envelopes, reported
from edgeops.trust.authority import FleetAuthority
from edgeops.trust.device import DeviceIdentity
from edgeops.trust.tuf_client import Target
from firmware_bridge import blobs, mcuboot

SIGNER = SIGNERS[0]
DEVICE = CryptoSigner.generate_ecdsa()


def in_memory(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """A write that does not wait for the disk: fuzzing cuts no power."""
    path.write_bytes(data)


@functools.cache
def repository() -> tuple[RawRepository, dict[str, bytes]]:
    """An honest repository, and its files."""
    repo = RawRepository()
    repo.delegate("targets", "role", SIGNERS[4])
    repo.add_target("role", "file")
    repo.publish("role", "targets")
    repo.next_root()
    return repo, dict(repo.files)


def metadata(data: bytes) -> None:
    """One file of a repository is changed; as a stranger does it, or as a thief who can sign for the role."""
    choose = Choices(data)
    repo, honest = repository()
    name = choose.one(sorted(honest))
    role = name.removesuffix(".json").lstrip("0123456789").removeprefix(".")
    thief = choose.number(2) == 1
    document = json.loads(honest[name])
    if choose.number(4) == 0:
        changed = choose.changed_bytes(honest[name])
        thief = False
    elif thief:
        document["signed"] = choose.changed_json(document["signed"])
        try:
            body = encode_canonical(document["signed"]).encode()
        except (FormatError, ValueError, RecursionError):
            return  # what has no canonical form has no signature
        document["signatures"] = [signer.sign(body).to_dict() for signer in repo.signers[role]]
        changed = as_json(document)
    else:
        changed = as_json(choose.changed_json(document))
    repo.files.clear()
    repo.files.update({**honest, name: changed})
    repo.fetcher.asked.clear()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        with mock.patch.object(durable, "write_file", in_memory):
            client = repo.client(folder, root=honest["1.root.json"])
            client.refresh()
            found = client.find("file")
        if not thief:
            assert found.hashes == {"sha256": hashlib.sha256(b"content").hexdigest()}
        if not thief and name in repo.fetcher.asked:
            signed = [Metadata.from_bytes(content).signed_bytes for content in (changed, honest[name])]
            assert signed[0] == signed[1]
    except EdgeopsError:
        pass
    finally:
        repo.files.clear()
        repo.files.update(honest)
        shutil.rmtree(folder)


WANTED = Desired(
    fleet="demo", connection="pi-1", unit="self", generation=7, issued_at_s=NOW_S, expires_at_s=NOW_S + 9, components=()
)  # fmt: skip
WINDOW = Telemetry(
    fleet="demo", connection="pi-1", unit="self", boot_id="b1", seq=1, start_s=0, end_s=1,
    models=(ModelWindow(model="m", release="1.0.0", digest="d", latency_ms=QuantileSketch.of([1.0]), requests=1),),
)  # fmt: skip
BATCH = TelemetryBatch(fleet="demo", connection="pi-1", unit="self", windows=(WINDOW,))


def envelope(data: bytes) -> None:
    """A signed statement is changed: outside the signature by a broker, or inside by who holds the key."""
    choose = Choices(data)
    statement, kind, signer = choose.one(
        [(WANTED, DESIRED_TYPE, SIGNER), (WINDOW, TELEMETRY_TYPE, DEVICE), (BATCH, TELEMETRY_BATCH_TYPE, DEVICE)]
    )
    inside = choose.number(2) == 1
    if inside:
        payload = as_json(choose.changed_json(json.loads(encode(statement))))
        if choose.number(3) == 0:
            payload = choose.changed_bytes(payload)
        try:
            sealed = envelopes.seal(payload, kind, signer)
        except EdgeopsError:
            return
    else:
        sealed = envelopes.seal(encode(statement), kind, signer)
        match choose.number(3):
            case 0:
                sealed = choose.changed_bytes(sealed)
            case 1:
                sealed = as_json(choose.changed_json(json.loads(sealed)))
            case _:
                forged = as_json(choose.changed_json(json.loads(encode(statement))))
                sealed = as_json({**json.loads(sealed), "payload": base64.b64encode(forged).decode()})
    speaker = {"fleet": "demo", "connection": "pi-1", "unit": "self"}
    try:
        if kind == DESIRED_TYPE:
            keys = {SIGNER.public_key.keyid: SIGNER.public_key}
            said: Any = desired.verify(sealed, keys=keys, floor_generation=7, now_s=NOW_S, **speaker)
            assert said.generation >= 7
        else:
            said = reported.verify_telemetry(sealed, key=DEVICE.public_key, **speaker)
            for window in said:
                check_statement(window)
    except EdgeopsError:
        return
    if not inside:
        assert said in (WANTED, (WINDOW,))


@functools.cache
def authority() -> tuple[FleetAuthority, bytes, bytes]:
    """A fleet's CA, a device's request, and its certificate."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    made = FleetAuthority.create(folder / "ca", "demo")
    request = DeviceIdentity.create(folder / "d").csr_pem("pi-1")
    shutil.rmtree(folder)
    return made, request, made.issue_device(request, "pi-1")


def certificate(data: bytes) -> None:
    """A request or a certificate is changed below its PEM armour, or the armour itself."""
    choose = Choices(data)
    fleet, request, issued = authority()
    is_request = choose.number(2) == 0
    pem = request if is_request else issued
    if choose.number(3) == 0:
        changed = choose.changed_bytes(pem)
    else:
        kind = b"CERTIFICATE REQUEST" if is_request else b"CERTIFICATE"
        der = (
            x509.load_pem_x509_csr(pem).public_bytes(Encoding.DER)
            if is_request
            else x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
        )
        text = base64.encodebytes(choose.changed_bytes(der))
        changed = b"-----BEGIN " + kind + b"-----\n" + text + b"-----END " + kind + b"-----\n"
    if is_request:
        _codes_only(lambda: fleet.issue_device(changed, "pi-1"))
        return
    _codes_only(lambda: certificates.public_key(changed))
    _codes_only(lambda: certificates.common_name(changed))
    _codes_only(lambda: certificates.validity(changed))
    _codes_only(lambda: certificates.check_ca(changed, fleet.ca_sha256))
    if _codes_only(lambda: certificates.check_issued_by(changed, fleet.ca_pem)):
        assert x509.load_pem_x509_certificate(changed).tbs_certificate_bytes == (
            x509.load_pem_x509_certificate(issued).tbs_certificate_bytes
        )


@functools.cache
def packed_bundle() -> tuple[bytes, str]:
    """A bundle's file and its digest."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    bundle = make_bundle(folder / "bundle")
    pack(bundle, folder / "packed")
    data = (folder / "packed").read_bytes()
    shutil.rmtree(folder)
    return data, bundle.digest


_NAMES = (
    "model.bin", "golden/in.npy", "../x", "/tmp/x", "golden/../../x", "golden", "golden/", "a" * 300, ".hidden", "x\\y",
    "golden/.x", "C:x", "é", "a//b", "", "manifest.json", "nul\0x",
)  # fmt: skip
_PLAIN, _LINK, _FOLDER, _DEVICE, _FIFO = 0o100644, 0o120777, 0o040755, 0o060600, 0o010600


def rebuilt(choose: Choices, data: bytes) -> bytes:
    """An archive with entries that no honest one has: bombs, ways out, links, twins; or with changed bytes."""
    if choose.number(3) == 0:
        return choose.changed_bytes(data)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            if choose.number(8):
                new.writestr(info, old.read(info))
        for _ in range(choose.number(3) + 1):
            info = zipfile.ZipInfo(choose.one(_NAMES))
            info.external_attr = choose.one([_PLAIN, _LINK, _FOLDER, _DEVICE, _FIFO]) << 16
            content = choose.one([b"x", b"/etc/passwd", b"\0" * 300_000, choose.rest()[:64]])
            method = choose.one([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # a name twice is what is meant
                new.writestr(info, content, method)
    return choose.changed_bytes(out.getvalue()) if choose.number(4) == 0 else out.getvalue()


def bundle(data: bytes) -> None:
    """A bundle's archive is changed; unpacked, it is the bundle or nothing, and nothing lies outside its folder."""
    choose = Choices(data)
    packed, digest = packed_bundle()
    changed = rebuilt(choose, packed)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        (folder / "file").write_bytes(changed)
        good = _codes_only(lambda: unpack(folder / "file", folder / "out", expect_digest=digest))
        assert {path.name for path in folder.iterdir()} == ({"file", "out"} if good else {"file"})
        if good:
            assert open_bundle(folder / "out", expect_digest=digest)
            assert len(list((folder / "out").rglob("*"))) <= MAX_FILES
    finally:
        shutil.rmtree(folder)


def stick(data: bytes) -> None:
    """An exported file is changed: what is saved from it has the signed hash, or is not there."""
    choose = Choices(data)
    content = b"bundle"
    target = Target("m/1/pi.edgeops", len(content), hashlib.sha256(content).hexdigest(), None)  # type: ignore[arg-type]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("index.json", b'{"fleet":"f","model":"m","version":"1","targets":["m/1/pi.edgeops"]}')
        archive.writestr("metadata/timestamp.json", b"{}")
        archive.writestr(f"targets/{target.remote_path}", content)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        (folder / "file").write_bytes(rebuilt(choose, out.getvalue()))
        _codes_only(lambda: _use_stick(folder, target))
        saved = folder / "saved"
        assert not saved.exists() or saved.read_bytes() == content
        assert {path.name for path in folder.iterdir()} <= {"file", "saved"}
    finally:
        shutil.rmtree(folder)


def _use_stick(folder: Path, target: Target) -> None:
    with OfflineRepository(folder / "file") as repository:
        _codes_only(lambda: repository.index)
        _codes_only(lambda: repository.save(target, folder / "saved"))


def topic(data: bytes) -> None:
    """A topic of any text: read back as it was written, or refused."""
    choose = Choices(data)
    text = "eo/v1/demo/d/pi-1/self/desired"
    if choose.number(2):
        text = choose.changed_bytes(text.encode()).decode("utf-8", "surrogateescape")
    else:
        text = choose.rest().decode("utf-8", "replace")
    try:
        parsed = parse_topic(text)
    except EdgeopsError:
        return
    if parsed.leaf != "presence":
        assert unit_topic(parsed.fleet, parsed.connection, parsed.unit, parsed.leaf, parsed.id) == text


def token(data: bytes) -> None:
    """An enrolment token of any text."""
    choose = Choices(data)
    honest = EnrolmentToken(server="https://x", fleet="f", ca_sha256="a" * 64, root_sha256="b" * 64, secret="s")
    _codes_only(lambda: EnrolmentToken.from_text(choose.changed_bytes(honest.to_text().encode()).decode("latin-1")))
    _codes_only(lambda: decode(choose.rest(), Desired, what="desired"))


@functools.cache
def boot_image() -> tuple[bytes, int]:
    """An MCUboot image with protected TLVs, and how much of it its hash names."""
    body, protected = bytes(range(64)), struct.pack("<HHHHI", 0x6908, 12, 0x50, 4, 7)
    header = struct.pack("<4sIHHIIBBHI4x", mcuboot.MARK, 0, 32, len(protected), len(body), 0, 1, 2, 3, 0)
    hashed = header + body + protected
    tlvs = struct.pack("<HH32s", 0x10, 32, hashlib.sha256(hashed).digest()) + struct.pack("<HH64s", 0x24, 64, bytes(64))
    return hashed + struct.pack("<HH", 0x6907, 4 + len(tlvs)) + tlvs, len(hashed)


def image(data: bytes) -> None:
    """An MCUboot image that reads is what its hash names."""
    whole, hashed = boot_image()
    changed = Choices(data).changed_bytes(whole)
    if _codes_only(lambda: mcuboot.read(changed)):
        assert changed[:hashed] == whole[:hashed]


def blob(data: bytes) -> None:
    """A model blob that reads has the code that its header names."""
    spec = TensorSpec(name="x", dtype="int8", shape=(1, 4))
    whole = blobs.pack(blobs.Header(blobs.Cpu.CORTEX_M4, blobs.HEADER_SIZE, 16, 16, spec, spec, "m"), bytes(range(80)))
    changed = Choices(data).changed_bytes(whole)
    if _codes_only(lambda: blobs.read(changed)):
        assert changed[blobs.HEADER_SIZE :].startswith(bytes(range(80)))


TARGETS: dict[str, Callable[[bytes], None]] = {
    function.__name__: function
    for function in (metadata, envelope, certificate, bundle, stick, topic, token, image, blob)
}


def _codes_only(act: Callable[[], object]) -> bool:
    """Say whether it went well; any other error than one with a code is a crash."""
    try:
        act()
    except EdgeopsError:
        return False
    return True
