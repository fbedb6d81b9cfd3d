"""Builds products in worker processes, through the cache: what the search asks of the outside world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeops.compiler.engine import Failed, Step, walk
from edgeops.compiler.executor import Machine
from edgeops.compiler.store import Failure, Stored
from edgeops.compiler.worker import Place, Request
from edgeops.contracts.errors import EdgeopsError

# No other candidate would fare better.
_FATAL = ("E-DISK-FULL", "E-DISK-WRITE", "E-PLUGIN", "E-DEPENDENCY", "E-INTERNAL")


def build(machine: Machine, steps: Sequence[Step], source: Stored, inputs: Mapping[str, Stored]) -> Stored | Failed:
    """Follow a recipe; what is not in the cache is made in worker processes.

    An optional step that crashes or hangs is left out.

    Raises:
        CancelledError: The compile was interrupted.
        EdgeopsError: What no other candidate would do better at: disk, plugin, missing packages.
    """
    pending, current, roles = list(steps), source, dict(inputs)
    while True:
        done, reached = walk(machine.store, pending, current, roles)
        if isinstance(reached, Failed):
            return reached
        pending, current = pending[done:], reached
        if not pending:
            return current
        batch = _batch(pending)
        request = Request(
            store=str(machine.store.root),
            steps=tuple(batch),
            source=Place.of(current),
            inputs={role: Place.of(roles[role]) for step in batch for role in step.inputs},
        )
        response = machine.run(request)
        if response.failure is not None:
            return Failed(response.step, response.failure)
        if response.place is not None:
            current = response.place.stored()
        elif response.error is not None and response.error.code in _FATAL:
            raise EdgeopsError(response.error.code, f"{response.step}: {response.error.what}")
        elif not batch[0].optional:
            return Failed(response.step, response.error or Failure(code="E-INTERNAL", what="a worker said nothing"))
        pending = pending[len(batch) :]


def _batch(steps: Sequence[Step]) -> list[Step]:
    """Return the first steps that share a process: up to the next one that may be left out."""
    if steps[0].optional:
        return [steps[0]]
    batch = []
    for step in steps:
        if step.optional:
            break
        batch.append(step)
    return batch
