"""What rigs found of a release: believed from rigs that the fleet trusts, kept as they signed it."""

from __future__ import annotations

from pathlib import Path

from securesystemslib.signer import Key

from edgeops import durable
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.names import check_name
from edgeops.contracts.rigs import RIG_RESULT_TYPE, RigResult, Verdict
from edgeops.contracts.wire import decode
from edgeops.trust import envelopes, keys

MAX_RESULT_BYTES = 8 << 20
_RIGS = "rigs"
NEXT = "edgeops hil key RIG on the rig, then edgeops release trust-rig."


def trust(home: Path, name: str, public_key: Path) -> str:
    """Trust a rig from now on, with this key and no other; return the key's id.

    Args:
        home: The fleet's home.
        name: The rig's.
        public_key: PEM file, as `edgeops hil key` prints it.

    Raises:
        EdgeopsError: E-NAME. E-TRUST-KEY; no public key. E-DISK-FULL or E-DISK-WRITE.
    """
    key = keys.load_public(public_key)
    folder = home / _RIGS
    durable.make_private_dir(folder)
    durable.write_file(folder / f"{check_name(name, 'rig')}.pem", public_key.read_bytes())
    return str(key.keyid)


def trusted(home: Path) -> dict[str, Key]:
    """Return the keys of the rigs that a fleet trusts, by the rig's name.

    Raises:
        EdgeopsError: E-TRUST-KEY; one cannot be read.
    """
    return {path.stem: keys.load_public(path) for path in sorted((home / _RIGS).glob("*.pem"))}


def verified(home: Path, data: bytes, what: str) -> RigResult:
    """Return a result that the rig that it names has signed.

    Args:
        home: The fleet's home.
        data: The signed statement.
        what: For the error's reader.

    Raises:
        EdgeopsError: E-TRUST-SIGNATURE; by no rig that the fleet trusts, or by another one than it names.
            E-WIRE-MALFORMED or E-WIRE-SIZE.
    """
    known = {str(key.keyid): key for key in trusted(home).values()}
    payload = envelopes.unseal(data, RIG_RESULT_TYPE, known, max_bytes=MAX_RESULT_BYTES)
    result = decode(payload, RigResult, what=what)
    own = trusted(home).get(result.rig)
    if own is None:
        raise EdgeopsError("E-TRUST-SIGNATURE", f"{what}: rig {result.rig!r} is not trusted", NEXT)
    return verified_by(own, data, what)


def verified_by(key: Key, data: bytes, what: str) -> RigResult:
    """Return a result that one key has signed.

    Args:
        key: The rig's.
        data: The signed statement.
        what: For the error's reader.

    Raises:
        EdgeopsError: E-TRUST-SIGNATURE; by another key, or it is another statement. E-WIRE-MALFORMED or E-WIRE-SIZE.
    """
    payload = envelopes.unseal(data, RIG_RESULT_TYPE, {str(key.keyid): key}, max_bytes=MAX_RESULT_BYTES)
    return decode(payload, RigResult, what=what)


def check_result(home: Path, file: Path, digests: frozenset[str]) -> tuple[str, bytes]:
    """Read a rig's result that is to join a release; return the rig's name and the statement.

    Args:
        home: The fleet's home.
        file: What `edgeops hil run --evidence` wrote.
        digests: Of the release's bundles.

    Raises:
        EdgeopsError: E-RELEASE-GATE; the rig did not pass it, or ran another bundle. As `verified`.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise EdgeopsError("E-RELEASE-INVALID", f"{file}: {error.strerror}") from error
    result = verified(home, data, str(file))
    if result.verdict is not Verdict.PASSED:
        bad = [
            f"{board.board}: {board.verdict.value}" for board in result.boards if board.verdict is not Verdict.PASSED
        ]
        raise EdgeopsError("E-RELEASE-GATE", f"{file}: rig {result.rig} says {result.verdict.value}: {', '.join(bad)}")
    if strange := sorted({board.digest for board in result.boards if board.digest} - digests):
        raise EdgeopsError("E-RELEASE-GATE", f"{file}: rig {result.rig} ran {strange[0]}, which is not of this release")
    return result.rig, data
