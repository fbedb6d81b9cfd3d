"""A worker process: runs the step that it is told, through the cache, and says how it ended.

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
from edgeops.compiler.engine import Step, run_step
from edgeops.compiler.store import Failure, Product, Store, Stored
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import Wire, decode, encode
from edgeops.runtimes.openvino_backend import without_telemetry

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
    """What a worker is to do: a step from a source on, with the products that it reads beside it."""

    store: str
    step: Step
    source: Place
    inputs: dict[str, Place]


class Response(Wire, frozen=True, kw_only=True):
    """How it ended: the product, or why there is none; `error` for what no product records."""

    place: Place | None = None
    failure: Failure | None = None
    error: Failure | None = None


def serve(request: Request) -> Response:
    """Run the step of a request."""
    inputs = {role: place.stored() for role, place in request.inputs.items()}
    try:
        found = run_step(Store(Path(request.store)), request.step, request.source.stored(), inputs)
    except EdgeopsError as error:
        return Response(error=Failure(code=error.code, what=error.what))
    if found.product.failure is not None:
        return Response(failure=found.product.failure)
    return Response(place=Place.of(found))


def main() -> None:
    """Answer the request that the first argument names."""
    settle()
    answer(Path(sys.argv[1]))


def settle() -> None:
    """Make this process fit for workers."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Converters compete with a person's own work on the same machine.
    os.nice(5)
    without_telemetry()


def answer(path: Path) -> None:
    """Do what the request in a file says, and write the response beside it; end if standard input does."""
    threading.Thread(target=_end_with_the_compile, daemon=True).start()
    request = decode(path.read_bytes(), Request, what="request of a worker")
    durable.write_file(path.parent / RESPONSE_NAME, encode(serve(request)))


def _end_with_the_compile() -> None:
    """Wait until standard input ends, as it does when the compile is gone; then end this process and its children."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
