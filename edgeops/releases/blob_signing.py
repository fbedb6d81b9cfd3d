"""The detached signature of a microcontroller's blob: made when its release is published, installed as its trailer."""

from __future__ import annotations

import base64
import binascii
import zipfile
from collections.abc import Iterable
from pathlib import Path

from securesystemslib.signer import CryptoSigner

from edgeops.contracts.bundle import MANIFEST_NAME, BundleManifest
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.release import TargetCustom
from edgeops.contracts.wire import decode
from edgeops.releases.bundles import ZIP_ERRORS
from firmware_bridge import blobs

RUNTIME = "mcu"
_MAX_BLOB_BYTES = 16 << 20
_MAX_COUNTER = (1 << 32) - 1


def blob_in(file: Path) -> bytes | None:
    """Return the blob that a packed bundle has as its artifact; None: it is no microcontroller's.

    Raises:
        EdgeopsError: E-BUNDLE-DAMAGED; it cannot be read. E-MCU-BLOB; the blob is damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if MANIFEST_NAME not in names:
                return None
            data = archive.read(MANIFEST_NAME)
            manifest = decode(data, BundleManifest, what=str(file))
            if manifest.runtime != RUNTIME or archive.getinfo(manifest.artifact).file_size > _MAX_BLOB_BYTES:
                return None
            artifact = archive.read(manifest.artifact)
    except (OSError, KeyError, *ZIP_ERRORS) as error:
        raise EdgeopsError("E-BUNDLE-DAMAGED", f"{file}: {error}", "Create the draft again.") from error
    except EdgeopsError as error:
        if error.code == "E-WIRE-MALFORMED":
            return None  # the bundle of an agent
        raise
    if artifact[: len(blobs.MARK)] != blobs.MARK:
        return None
    blobs.read(artifact)
    return artifact


def trailer(blob: bytes, version: str, counter: int, signer: CryptoSigner) -> str:
    """Return the trailer of a blob in base64.

    Args:
        blob: Header and code.
        version: Of the release.
        counter: Devices refuse a smaller one than that of what they confirmed.
        signer: An Ed25519 key.

    Raises:
        EdgeopsError: E-TRUST-KEY; the key is of another kind. E-CONFIG; the counter does not fit.
            E-MODEL-UNSUPPORTED; the version is too long for a blob.
    """
    if not 0 <= counter <= _MAX_COUNTER:
        raise EdgeopsError("E-CONFIG", f"the anti-rollback counter is {counter}, it must be in 0 to {_MAX_COUNTER}")

    def sign(message: bytes) -> bytes:
        return bytes.fromhex(signer.sign(message).signature)

    made = blobs.sign(blob, version=version, counter=counter, public_key=raw_public(signer), signer=sign)
    return base64.b64encode(made).decode()


def raw_public(signer: CryptoSigner) -> bytes:
    """Return an Ed25519 public key as firmware holds it: 32 bytes.

    Raises:
        EdgeopsError: E-TRUST-KEY; it is of another kind.
    """
    if signer.public_key.scheme != "ed25519":
        raise EdgeopsError("E-TRUST-KEY", "microcontrollers check Ed25519 signatures only", "Use an Ed25519 key.")
    return bytes.fromhex(signer.public_key.keyval["public"])


def raw_trailer(text: str) -> bytes:
    """Return the bytes of a trailer in base64.

    Raises:
        EdgeopsError: E-MCU-BLOB; it is none.
    """
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise EdgeopsError("E-MCU-BLOB", f"the blob's trailer is not base64: {error}", "Publish it again.") from error
    blobs.read_trailer(found)
    return found


def highest_counter(customs: Iterable[TargetCustom | None]) -> int:
    """Return the largest anti-rollback counter of what is published; 1 where nothing is."""
    trailers = [custom.blob_trailer for custom in customs if custom is not None and custom.blob_trailer]
    return max((blobs.read_trailer(raw_trailer(text)).counter for text in trailers), default=1)
