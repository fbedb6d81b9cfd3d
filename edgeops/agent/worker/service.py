"""The local inference API without sockets: a complete HTTP request in, a complete response out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple
from urllib.parse import unquote

import msgspec
from numpy.typing import NDArray

from edgeops import __version__
from edgeops.agent.worker.drawing import Drawing
from edgeops.agent.worker.engine import Engine
from edgeops.agent.worker.meter import Meter
from edgeops.agent.worker.oip import InferCodec, metadata
from edgeops.agent.worker.shadow import Mirror
from edgeops.contracts.errors import EdgeopsError
from edgeops.runtimes.protocol import Tensors

JSON = b"application/json"
BINARY = b"application/octet-stream"
BUSY_PATH = "/v2/edgeops/busy"
# An application that dies holds updates up no longer than this.
MAX_BUSY_S = 3600.0
_AGAIN = ((b"Retry-After", b"1"),)
_STATUS_OF = {"E-INFER-REQUEST": 400, "E-RUNTIME-INPUT": 400, "E-INFER-MODEL": 404, "E-INFER-BUSY": 503}


class _BusyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    for_s: Annotated[float, msgspec.Meta(ge=0, le=MAX_BUSY_S)]


_BUSY = msgspec.json.Decoder(_BusyRequest)


class HttpRequest(NamedTuple):
    """A complete request. `json_length` is the header Inference-Header-Content-Length, as it was sent."""

    method: str
    path: str
    body: bytes
    json_length: bytes | None = None
    encoded: bool = False


class HttpResponse(NamedTuple):
    """A complete response. `headers` holds what is beside Content-Type, Content-Length and Connection."""

    status: int
    body: bytes
    content_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Service:
    """Answers requests for one bundle and counts them.

    Args:
        engine: The loaded bundle.
        meter: Where requests are counted.
        on_busy: Called with the seconds for which the application wants no update to disturb it.
    """

    def __init__(self, engine: Engine, meter: Meter, on_busy: Callable[[float], None]) -> None:
        self._engine, self._meter, self._on_busy = engine, meter, on_busy
        self.mirror: Mirror | None = None
        self.drawing: Drawing | None = None
        self._nan_policy = engine.manifest.nan_policy
        self._codec = InferCodec(engine.manifest, engine.release)
        self._metadata = msgspec.json.encode(metadata(engine.manifest, engine.release))
        base = f"/v2/models/{engine.manifest.model}"
        bases = (base, f"{base}/versions/{engine.release}")
        self._infer_paths = frozenset(f"{item}/infer" for item in bases)
        self._documents = {
            "/v2": msgspec.json.encode(
                {"name": "edgeops", "version": __version__, "extensions": ["binary_tensor_data"]}
            ),
            "/v2/health/live": b'{"live":true}',
            "/v2/health/ready": b'{"ready":true}',
            **dict.fromkeys(bases, self._metadata),
            **{f"{item}/ready": msgspec.json.encode({"name": engine.manifest.model, "ready": True}) for item in bases},
        }

    def infers(self, path: str) -> bool:
        """Say whether a path is one that runs the model."""
        return path in self._infer_paths

    def infer(self, feeds: Tensors) -> tuple[dict[str, NDArray[Any]], bool]:
        """Run the model, and see to values that are not finite as the hand-over wants it.

        Returns:
            The outputs, and whether one of them is not finite.

        Raises:
            EdgeopsError: E-RUNTIME-INPUT, E-RUNTIME-RUN, E-INFER-VALUES.
        """
        answer = self._engine.run(feeds)
        if self._nan_policy == "pass" or self._engine.finite(answer):
            return answer, False
        if self._nan_policy == "fail":
            raise EdgeopsError("E-INFER-VALUES", "an output is not finite")
        self._meter.failed("E-INFER-VALUES")
        return answer, True

    def served(self, start_s: float, feeds: Tensors, answer: Tensors) -> None:
        """Count a request that was answered, since `start_s` of `time.perf_counter`."""
        self._meter.answered((time.perf_counter() - start_s) * 1e3, feeds, answer)
        if self.mirror is not None and not self.mirror.ended:
            self.mirror.offer(feeds, answer)
        if self.drawing is not None:
            self.drawing.offer(feeds)
            if self.drawing.ended:
                self.drawing = None

    def failed(self, code: str) -> None:
        """Count a request that was refused."""
        self._meter.failed(code)

    def max_body_bytes(self) -> int:
        """Return the largest body that a request may have: all inputs as JSON numbers, generously.

        The most that may come of what varies is there for binary tensors.
        """
        inputs = self._engine.manifest.inputs
        return (64 << 10) + sum(spec.nbytes if spec.varies else 32 * spec.elements for spec in inputs)

    def input_bytes(self) -> int:
        """Return the bytes of a request's binary tensors."""
        return sum(spec.nbytes for spec in self._engine.manifest.inputs)

    def handle(self, request: HttpRequest) -> HttpResponse:
        """Answer a request. Whatever the client sent, there is an answer with a code."""
        start_s = time.perf_counter()
        path = request.path.split("?", 1)[0]
        if "%" in path:
            path = unquote(path)
        path = path.rstrip("/")
        if path == BUSY_PATH:
            return self._keep_undisturbed(request)
        if path not in self._infer_paths:
            return self._look_up(request.method, path)
        if request.method != "POST":
            return refusal(405, "E-INFER-MODEL", f"{path} takes POST", ((b"Allow", b"POST"),))
        try:
            return self._infer(request, start_s)
        except EdgeopsError as error:
            return self.refused(error)
        except MemoryError:
            return self.refused(no_room())

    def refused(self, error: EdgeopsError) -> HttpResponse:
        """Count a request that is not answered, and say why."""
        self.failed(error.code)
        headers = _AGAIN if error.code == "E-INFER-BUSY" else ()
        return refusal(_STATUS_OF.get(error.code, 500), error.code, error.what, headers)

    def _keep_undisturbed(self, request: HttpRequest) -> HttpResponse:
        if request.method != "POST":
            return refusal(405, "E-INFER-REQUEST", f"{BUSY_PATH} takes POST", ((b"Allow", b"POST"),))
        try:
            asked = _BUSY.decode(request.body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return refusal(400, "E-INFER-REQUEST", f"{BUSY_PATH}: {error}")
        self._on_busy(asked.for_s)
        return HttpResponse(200, msgspec.json.encode(asked))

    def _look_up(self, method: str, path: str) -> HttpResponse:
        document = self._documents.get(path)
        if document is None:
            return refusal(404, "E-INFER-MODEL", f"nothing at {path[:200]}; here is {self._engine.manifest.model}")
        if method != "GET":
            return refusal(405, "E-INFER-MODEL", f"{path} takes GET", ((b"Allow", b"GET"),))
        return HttpResponse(200, document)

    def _infer(self, request: HttpRequest, start_s: float) -> HttpResponse:
        if request.encoded:
            raise EdgeopsError("E-INFER-REQUEST", "a Content-Encoding is not supported")
        json_length = None
        if request.json_length is not None:
            if not request.json_length.isdigit() or len(request.json_length) > 12:
                raise EdgeopsError("E-INFER-REQUEST", "Inference-Header-Content-Length is not a number")
            json_length = int(request.json_length)
        asked = self._codec.read(request.body, json_length)
        answer, flagged = self.infer(asked.feeds)
        response = self._codec.write(asked, answer, flagged=flagged)
        self.served(start_s, asked.feeds, answer)
        if response.json_length is None:
            return HttpResponse(200, response.body)
        mark = ((b"Inference-Header-Content-Length", b"%d" % response.json_length),)
        return HttpResponse(200, response.body, BINARY, mark)


def no_room() -> EdgeopsError:
    """Return the error of a request for whose tensors, as they come and go, there is no memory now."""
    return EdgeopsError("E-INFER-BUSY", "this worker has too little memory for the request now")


def refusal(status: int, code: str, what: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> HttpResponse:
    """Return an error response: Open Inference Protocol's `error`, and the stable `code`."""
    body = msgspec.json.encode({"error": f"{code}: {what}", "code": code})
    return HttpResponse(status, body, JSON, headers)
