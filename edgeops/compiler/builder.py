"""Builds products in worker processes, through the cache: what the search asks of the outside world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeops.compiler.engine import Failed, Step, step_key, walk
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
        step = pending[0]
        key = step_key(step, current, roles)
        # Another profile may want the same at the same time.
        with machine.turn(key):
            if machine.store.lookup(key) is not None:
                continue
            response = machine.run(
                Request(
                    store=str(machine.store.root),
                    step=step,
                    source=Place.of(current),
                    inputs={role: Place.of(roles[role]) for role in step.inputs},
                )
            )
        if response.place is not None:
            current = response.place.stored()
        elif response.error is not None and response.error.code in _FATAL:
            raise EdgeopsError(response.error.code, f"{step.name}: {response.error.what}")
        elif not step.optional:
            why = response.failure or response.error or Failure(code="E-INTERNAL", what="a worker said nothing")
            return Failed(step.name, why)
        pending = pending[1:]
