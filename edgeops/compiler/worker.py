"""A worker process: runs the steps that it is told, through the cache, and says how far it came.

Whatever a native converter does to this process, the compile sees only that it ended.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from pathlib import Path

from edgeops import durable
from edgeops.compiler.engine import Failed, Step, run_step
from edgeops.compiler.store import Failure, Product, Store, Stored
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import Wire, decode, encode

RESPONSE_NAME = "response.json"


class Place(Wire, frozen=True, kw_only=True):
    """A product and its folder."""

    path: str
    product: Product

    @classmethod
    def of(cls, stored: Stored) -> Place:
        """Return where a stored product lies."""
        return cls(path=str(stored.path), product=stored.product)

    def stored(self) -> Stored:
        """Return the stored product."""
        return Stored(Path(self.path), self.product)


class Request(Wire, frozen=True, kw_only=True):
    """What a worker is to do: steps from a source on, with the products that they read beside it."""

    store: str
    steps: tuple[Step, ...]
    source: Place
    inputs: dict[str, Place]


class Response(Wire, frozen=True, kw_only=True):
    """How it ended: the last product, or the failing step with its reason; `error` for what no product records."""

    place: Place | None = None
    step: str = ""
    failure: Failure | None = None
    error: Failure | None = None


def serve(request: Request) -> Response:
    """Run all steps of a request."""
    store = Store(Path(request.store))
    current = request.source.stored()
    inputs = {role: place.stored() for role, place in request.inputs.items()}
    for step in request.steps:
        try:
            found = run_step(store, step, current, inputs)
        except EdgeopsError as error:
            return Response(step=step.name, error=Failure(code=error.code, what=error.what))
        if found.product.failure is None:
            current = found
        elif not step.optional:
            failed = Failed(step.name, found.product.failure)
            return Response(step=failed.step, failure=failed.failure)
    return Response(place=Place.of(current))


def main() -> None:
    """Read the request that the first argument names; write the response beside it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Converters compete with a person's own work on the same machine.
    os.nice(5)
    threading.Thread(target=_end_with_the_compile, daemon=True).start()
    path = Path(sys.argv[1])
    request = decode(path.read_bytes(), Request, what="request of a worker")
    durable.write_file(path.parent / RESPONSE_NAME, encode(serve(request)))


def _end_with_the_compile() -> None:
    """Wait until standard input ends, as it does when the compile is gone; then end this process and its children."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
