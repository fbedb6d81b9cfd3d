"""The other servers: each in its pinned environment, with one model, asked in every encoding that it documents."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from benchmarks.serving_kit import Kit
from benchmarks.serving_load import Exchange, Load, ask, asked, http_body, http_request, http_whole, tcp
from edgeops.compiler.toolchain import Toolchain, ensure

_FOLDER = Path(__file__).parent / "peers"
_START_WITHIN_S = 90.0
_BOUNDARY = "bench-serving"


class Encoding(NamedTuple):
    """One way to ask a peer: over HTTP by `path`, or by gRPC with the peer's own messages in module `stubs`."""

    name: str
    path: str = ""
    headers: tuple[str, ...] = ()
    body: Callable[[Kit], bytes] | None = None
    read: Callable[[bytes], Any] | None = None
    stubs: str = ""


class Peer(NamedTuple):
    """A server: its environment, the words that start it, and its encodings."""

    name: str
    version: str
    module: str
    words: tuple[str, ...]
    encodings: tuple[Encoding, ...]

    @property
    def environment(self) -> Toolchain:
        """Its environment."""
        requirements = (_FOLDER / f"{self.name.lower()}-requirements.txt").read_text(encoding="utf-8").split()
        return Toolchain(
            self.name.lower(), self.version, tuple(requirements), self.module, "peer of `make bench-agent`"
        )


def _json(field: str) -> Callable[[Kit], bytes]:
    return lambda kit: json.dumps({field: kit.tensor.tolist()}).encode()


def _form(kit: Kit) -> bytes:
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="tensor"; filename="tensor"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return head.encode() + kit.tensor.tobytes() + f"\r\n--{_BOUNDARY}--\r\n".encode()


def _v2(kit: Kit) -> dict[str, Any]:
    return {"name": "x", "shape": list(kit.tensor.shape), "datatype": "FP32"}


def _v2_json(kit: Kit) -> bytes:
    return json.dumps({"inputs": [{**_v2(kit), "data": kit.tensor.reshape(-1).tolist()}]}).encode()


def _v2_head(kit: Kit) -> bytes:
    asked_for = {**_v2(kit), "parameters": {"binary_data_size": kit.tensor.nbytes}}
    return json.dumps({"inputs": [asked_for], "parameters": {"binary_data_output": True}}).encode()


def _raw(body: bytes) -> Any:
    return np.frombuffer(body, np.float32)


def _last_40(body: bytes) -> Any:
    """Ten float32 behind a JSON head."""
    return np.frombuffer(body[-40:], np.float32)


def _v2_read(body: bytes) -> Any:
    return json.loads(body)["outputs"][0]["data"]


_AS_BYTES = ("Content-Type: application/octet-stream",)
_AS_JSON = ("Content-Type: application/json",)
_AS_FORM = (f"Content-Type: multipart/form-data; boundary={_BOUNDARY}",)
_V2_JSON = Encoding("JSON", "/v2/models/model/infer", _AS_JSON, _v2_json, _v2_read)

PEERS = (
    Peer(
        "LitServe", "0.2.19", "litserve", ("serving_litserve.py", "{model}", "{port}"),
        (
            Encoding("JSON", "/predict", _AS_JSON, _json("data"), lambda body: json.loads(body)["data"]),
            Encoding("form with a file", "/predict", _AS_FORM, _form, _raw),
        ),
    ),
    Peer(
        "MLServer", "1.7.1", "mlserver", ("serving_mlserver.py", "{model}", "{port}"),
        (_V2_JSON, Encoding("gRPC, raw", stubs="mlserver.grpc.dataplane_pb2")),
    ),
    Peer(
        "KServe", "0.21.0", "kserve", ("serving_kserve.py", "{model}", "{port}"),
        (
            _V2_JSON,
            Encoding("binary tensors", "/v2/models/model/infer", _AS_BYTES, _v2_head, _last_40),
            Encoding("gRPC, raw", stubs="kserve.protocol.grpc.grpc_predict_v2_pb2"),
        ),
    ),
    Peer(
        "BentoML", "1.4.40", "bentoml",
        ("-m", "bentoml", "serve", "serving_bentoml:Served", "--port", "{port}", "--host", "127.0.0.1"),
        (
            Encoding("JSON", "/infer", _AS_JSON, _json("tensor"), json.loads),
            Encoding("form with a file", "/infer_file", _AS_FORM, _form, _raw),
        ),
    ),
)  # fmt: skip


class Server(NamedTuple):
    """A peer that runs."""

    peer: Peer
    kit: Kit
    port: int
    process: psutil.Process
    folder: Path

    def memory_mib(self) -> float:
        """Return the proportional memory of all its processes."""
        processes = [self.process, *self.process.children(recursive=True)]
        return float(sum(one.memory_full_info().pss for one in processes)) / (1 << 20)

    def load(self, encoding: Encoding, clients: int, for_s: float) -> Load:
        """Ask it; a wrong answer ends the benchmark."""
        if encoding.stubs:
            return self._grpc(encoding, clients, for_s)
        exchange = self._exchange(encoding)
        assert encoding.read is not None
        with tcp(self.port) as client:
            values = np.asarray(encoding.read(http_body(ask(client, exchange))), np.float32)
        if not np.allclose(values.reshape(-1), self.kit.expected.reshape(-1), atol=1e-4):
            raise SystemExit(f"{self.peer.name}, {encoding.name}: a wrong answer, {values[:10]}")
        return asked(lambda: tcp(self.port), exchange, clients, for_s)

    def _exchange(self, encoding: Encoding) -> Exchange:
        assert encoding.body is not None
        body, headers = encoding.body(self.kit), encoding.headers
        if encoding.body is _v2_head:
            headers = (*headers, f"Inference-Header-Content-Length: {len(body)}")
            body += self.kit.tensor.tobytes()
        return Exchange(http_request(encoding.path, body, *headers), http_whole)

    def _grpc(self, encoding: Encoding, clients: int, for_s: float) -> Load:
        for name, values in (("tensor", self.kit.tensor), ("expected", self.kit.expected)):
            np.save(self.folder / f"{name}.npy", values)
        words = [
            str(self.peer.environment.path / "bin" / "python"), str(_FOLDER / "grpc_load.py"), encoding.stubs,
            str(self.port + 1), "model", str(self.folder / "tensor.npy"), str(clients), str(for_s),
            str(self.folder / "expected.npy"),
        ]  # fmt: skip
        done = subprocess.run(words, capture_output=True, text=True, timeout=for_s + 120, check=False)
        if done.returncode:
            raise SystemExit(f"{self.peer.name}, {encoding.name}: {done.stderr[-2000:]}")
        said = json.loads(done.stdout.splitlines()[-1])
        return Load.of(said["times_s"], said["took_s"])


@contextlib.contextmanager
def running(peer: Peer, kit: Kit) -> Iterator[Server]:
    """Start a peer with a model, its environment made first where it is not there, and end it."""
    python = ensure(peer.environment) / "bin" / "python"
    port = _free_ports()
    with tempfile.TemporaryDirectory(prefix="bench-serving-") as folder:
        words = [word.format(model=kit.artifact, port=port) for word in peer.words]
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
            "BENCH_MODEL": str(kit.artifact), "BENCH_SHAPE": ",".join(map(str, kit.tensor.shape)),
            "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_FOLDER), "HOME": folder, "BENTOML_DO_NOT_TRACK": "True",
        }  # fmt: skip
        first = _FOLDER / words[0]
        words = [str(first) if first.exists() else words[0], *words[1:]]
        with (Path(folder) / "log").open("wb") as log:
            process = psutil.Popen([str(python), *words], cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            _wait(process, port, peer, Path(folder) / "log", grpc=any(one.stubs for one in peer.encodings))
            yield Server(peer, kit, port, psutil.Process(process.pid), Path(folder))
        finally:
            family = [*process.children(recursive=True), process]
            process.terminate()
            _, alive = psutil.wait_procs(family, timeout=20)
            for one in alive:
                one.kill()


def _wait(process: psutil.Popen, port: int, peer: Peer, log: Path, *, grpc: bool) -> None:
    until_s = time.monotonic() + _START_WITHIN_S
    for wanted in (port, port + 1) if grpc else (port,):
        while True:
            try:
                tcp(wanted).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > until_s:
                    raise SystemExit(f"{peer.name} does not start: {log.read_text()[-3000:]}") from None
                time.sleep(0.1)
    time.sleep(1.0)  # they listen before their model is loaded


def _free_ports() -> int:
    """Return a port that is free, and the next one is, too."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as one:
            port: int = one.getsockname()[1]
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port + 1)):
                return port


if __name__ == "__main__":
    sys.exit("see benchmarks/serving.py")
