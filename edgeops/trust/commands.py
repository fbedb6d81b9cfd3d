"""What holds for every signed command to one unit, whatever it asks for: by whom, for whom, and until when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeVar

from securesystemslib.signer import Key

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import decode
from edgeops.trust import envelopes


class _Command(Protocol):
    @property
    def fleet(self) -> str: ...

    @property
    def connection(self) -> str: ...

    @property
    def unit(self) -> str: ...

    @property
    def id(self) -> str: ...

    @property
    def issued_at_s(self) -> float: ...

    @property
    def expires_at_s(self) -> float: ...


C = TypeVar("C", bound=_Command)


def unseal(
    data: bytes,
    payload_type: str,
    kind: type[C],
    *,
    keys: Mapping[str, Key],
    fleet: str,
    connection: str,
    unit: str,
    id: str,
    now_s: float,
    again: str,
    most_s: float | None = None,
) -> C:
    """Return a command that is signed, meant for this unit, and has not expired.

    Args:
        data: The envelope.
        payload_type: Its type.
        kind: What is in it.
        keys: Keys of the TUF role `desired-state`, from verified metadata.
        fleet: The reader's fleet.
        connection: The reader.
        unit: The unit whose topic it came on.
        id: The command's id as the topic says it.
        now_s: Time by the time rule.
        again: What a person does about one that has expired.
        most_s: The longest life that such a command may have; None: that is for `kind` to say.

    Raises:
        EdgeopsError: E-WIRE-SIZE or E-WIRE-MALFORMED. E-TRUST-SIGNATURE; not signed by one of `keys`. E-TRUST-DEVICE;
            for another fleet, connection or unit, or of another id. E-TRUST-EXPIRED.
    """
    command = decode(envelopes.unseal(data, payload_type, keys), kind, what="command")
    meant = (command.fleet, command.connection, command.unit, command.id)
    if meant != (fleet, connection, unit, id):
        raise EdgeopsError(
            "E-TRUST-DEVICE", f"a command for {'/'.join(meant)[:200]}, this is {fleet}/{connection}/{unit}/{id}"
        )
    if most_s is not None and not 0 < command.expires_at_s - command.issued_at_s <= most_s:
        raise EdgeopsError("E-WIRE-MALFORMED", f"command: its life is not within {most_s:.0f} s")
    if now_s >= command.expires_at_s:
        raise EdgeopsError("E-TRUST-EXPIRED", f"command {id} expired {now_s - command.expires_at_s:.0f} s ago", again)
    return command
