"""A result as an answer: signed by the rig's own key, and small enough for those who read it."""

from __future__ import annotations

import msgspec
from securesystemslib.signer import Signer

from edgeops.contracts.rig_runs import RigAnswer, RigCommand
from edgeops.contracts.rigs import RigResult
from edgeops.contracts.topics import SELF_UNIT
from edgeops.trust import reported as statements
from hil.evidence import RigKey, seal

# What a control plane takes: `control.ingest.statements.MAX_STATEMENT_BYTES`.
MAX_ANSWER_BYTES = 500 << 10


def answer_with(command: RigCommand, result: RigResult, key: RigKey, signer: Signer, now_s: float) -> RigAnswer:
    """Return a result as the answer to a command: it names fleet and command under the rig's signature.

    Where it would be too large, consoles are left out, then figures; verdicts and words are always there.

    Args:
        command: What was asked.
        result: What was found.
        key: The rig's own key.
        signer: The key of its connection.
        now_s: Now by the time rule: a machine without a clock does not know when it ran, only for how long.

    Raises:
        EdgeopsError: E-WIRE-SIZE; too large all the same.
    """
    result = msgspec.structs.replace(result, fleet=command.fleet, command=command.id, at_s=now_s - result.duration_s)
    for shorter in (lambda whole: whole, _without_consoles, _without_figures):
        result = shorter(result)
        answer = RigAnswer(
            fleet=command.fleet,
            connection=command.connection,
            unit=SELF_UNIT,
            id=command.id,
            statement=seal(result, key).decode(),
        )
        if len(answer.statement) < MAX_ANSWER_BYTES and len(statements.sign(answer, signer)) <= MAX_ANSWER_BYTES:
            return answer
    return msgspec.structs.replace(
        answer, statement="", code="E-WIRE-SIZE", what=f"the result has {len(answer.statement)} bytes"
    )


def _without_consoles(result: RigResult) -> RigResult:
    boards = tuple(msgspec.structs.replace(board, console="") for board in result.boards)
    return msgspec.structs.replace(result, boards=boards)


def _without_figures(result: RigResult) -> RigResult:
    boards = tuple(
        msgspec.structs.replace(
            board, checks=tuple(msgspec.structs.replace(check, figures={}) for check in board.checks)
        )
        for board in result.boards
    )
    return msgspec.structs.replace(result, boards=boards)
