"""How fast a device serves: `python -m benchmarks.serving [--seconds 2] [--rounds 3] [--peers LitServe,…] [--out F]`.

edgeops by HTTP, Unix socket and in process, with validation and telemetry on, beside LitServe, MLServer, KServe and
BentoML (each in its own environment, asked in every encoding that it documents; the fastest counts), all with the same
ONNX file on one thread of onnxruntime. Ceilings: onnxruntime called without a server, and a loopback echo of as many
bytes. Clients and server share the machine. The rounds of one server follow each other; the median round is told.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import serving_kit, serving_load
from benchmarks.serving_kit import Kit
from benchmarks.serving_load import Exchange, Load, asked, called, frame_whole, http_request, http_whole, tcp
from benchmarks.serving_peers import PEERS, running

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "agent"))

from serving_rig import ServingRig, load_of

from edgeops.agent.worker.meter import Meter
from edgeops.client.inference import InferenceModel, open_model
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.frames import HEADER, Frame
from edgeops.transport import unix

CLIENTS = (1, 8)
_ROOT = Path(__file__).parents[1]
SWAP_WINDOW_S = 6.0
_METERED = 20_000
_PROCESSES = 5
# Name → (whether more is better, bound).
TARGETS = {
    "slowest row against the best peer": (True, 1.0),
    "slowest row against the best JSON": (True, 5.0),
    "socket requests/s, digits-mlp": (True, 15_000.0),
    "socket median / in process, colour-cnn": (False, 1.2),
    "telemetry us per inference, digits-mlp": (False, 2.0),
    "telemetry share of the inference, colour-cnn": (False, 0.03),
    "worker MB over the bare runtime": (False, 15.0),
    "slowest in a swap / without": (False, 2.0),
    "failures in swaps": (False, 0.0),
}

Rows = dict[str, dict[str, Load]]


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default=",".join(peer.name for peer in PEERS))
    parser.add_argument("--out", type=Path, default=Path("build/bench-serving.json"))
    chosen = parser.parse_args()
    print(f"{platform.machine()}, {psutil.cpu_count()} cores, load {psutil.getloadavg()[0]:.1f}", flush=True)
    figures: dict[str, Any] = {"rows": {}, "memory_mib": {}}
    met: dict[str, float] = {}
    for name in serving_kit.NAMES:
        kit = serving_kit.make(name)
        rows: Rows = {}
        bench = Bench(rows, chosen.seconds, chosen.rounds)
        figures["memory_mib"][name] = own_rows(kit, bench, met)
        for peer in PEERS:
            if peer.name in chosen.peers.split(","):
                with running(peer, kit) as server:
                    for encoding in peer.encodings:
                        for clients in CLIENTS:
                            load = lambda for_s, e=encoding, c=clients: server.load(e, c, for_s)  # noqa: E731
                            bench.row(f"{peer.name}, {encoding.name}", clients, load)
                    figures["memory_mib"][name][peer.name] = server.memory_mib()
        figures["rows"][name] = {
            row: {clients: one._asdict() for clients, one in by.items()} for row, by in rows.items()
        }
        show(name, rows)
        compare(name, rows, met)
    figures["targets"] = judged(met)
    figures["load"] = psutil.getloadavg()[0]
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"memory, MiB: {json.dumps(figures['memory_mib'])}\nload {figures['load']:.1f}; written to {chosen.out}")
    if not all(one["met"] for one in figures["targets"].values()):
        raise SystemExit("a target is missed")


class Bench:
    """Measures rows in rounds."""

    def __init__(self, rows: Rows, seconds: float, rounds: int) -> None:
        self._rows, self._seconds, self._rounds = rows, seconds, rounds

    def row(self, name: str, clients: int, load: Callable[[float], Load]) -> None:
        """Measure one row, after a short round that does not count."""
        load(self._seconds / 4)
        found = serving_load.median([load(self._seconds) for _ in range(self._rounds)])
        self._rows.setdefault(name, {})[str(clients)] = found
        print(f"  {name}, {clients}: {found.per_s:.0f}/s, p50 {found.p50_ms:.3f} ms", file=sys.stderr, flush=True)


def own_rows(kit: Kit, bench: Bench, met: dict[str, float]) -> dict[str, float]:
    """Measure edgeops and the ceilings; return memory."""
    session = kit.session()
    own = session.get_inputs()[0].name
    bench.row("onnxruntime in process", 1, lambda for_s: called(lambda: session.run(None, {own: kit.tensor}), for_s))
    feeds = {kit.input: kit.tensor}
    with contextlib.closing(open_model(str(kit.bundle.directory))) as local:
        check(local, kit)
        bench.row("edgeops, in process", 1, lambda for_s: called(lambda: local.infer(kit.name, feeds), for_s))
        once_s = called(lambda: local.infer(kit.name, feeds), 0.5).p50_ms / 1e3
    cost_s = telemetry_s(kit)
    if kit.name == "digits-mlp":
        met["telemetry us per inference, digits-mlp"] = cost_s * 1e6
    else:
        met[f"telemetry share of the inference, {kit.name}"] = cost_s / once_s
    print(f"  telemetry: {cost_s * 1e6:.2f} us per inference of {once_s * 1e3:.3f} ms", file=sys.stderr, flush=True)
    bare_mib, used_mib = memory_mib(kit)
    rig = ServingRig()
    try:
        rig.serve(kit.bundle)
        frame, binary = frame_exchange(kit), http_exchange(kit)
        ends(kit, frame, binary, bench)
        port, path = int(rig.url.rsplit(":", 1)[1]), Path(rig.socket.removeprefix("unix:"))
        with contextlib.closing(open_model(rig.socket)) as client:
            check(client, kit)
            bench.row("edgeops, socket", 1, lambda for_s: called(lambda: client.infer(kit.name, feeds), for_s))
        bench.row("edgeops, socket", 8, lambda for_s: asked(lambda: framed(path), frame, 8, for_s))
        for clients in CLIENTS:
            bench.row("edgeops, HTTP", clients, lambda for_s, c=clients: asked(lambda: tcp(port), binary, c, for_s))
        # Those of a few requests, or this one of all rows: whichever has more.
        used_mib = max(used_mib, own_mib(rig.pid))
        over = met.get("worker MB over the bare runtime", 0.0)
        met["worker MB over the bare runtime"] = max(over, (used_mib - bare_mib) * (1 << 20) / 1e6)
        swaps(kit, rig, met)
    finally:
        rig.close()
    return {"bare runtime": bare_mib, "edgeops worker": used_mib}


def check(client: InferenceModel, kit: Kit) -> None:
    """End the benchmark on a wrong answer."""
    if not np.allclose(client.infer(kit.name, {kit.input: kit.tensor})[kit.output], kit.expected, atol=1e-4):
        raise SystemExit(f"{kit.name}: a wrong answer")


def frame_exchange(kit: Kit) -> Exchange:
    """Return a request by frames."""
    body = kit.tensor.tobytes()
    body += bytes(-len(body) % 16)
    return Exchange(HEADER.pack(Frame.INFER, 0, len(body), 1) + body, frame_whole)


def http_exchange(kit: Kit) -> Exchange:
    """Return a request by HTTP with binary tensors."""
    spec = {"name": kit.input, "shape": list(kit.tensor.shape), "datatype": "FP32"}
    inputs = [{**spec, "parameters": {"binary_data_size": kit.tensor.nbytes}}]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    headers = f"Inference-Header-Content-Length: {len(head)}"
    return Exchange(http_request(f"/v2/models/{kit.name}/infer", head + kit.tensor.tobytes(), headers), http_whole)


def framed(path: Path) -> Any:
    """Connect by frames, and take the greeting."""
    client = unix.connect(path, 30.0)
    _, _, length, _ = HEADER.unpack(client.recv(HEADER.size))
    while length:
        length -= len(client.recv(length))
    return client


def ends(kit: Kit, frame: Exchange, binary: Exchange, bench: Bench) -> None:
    """Measure the echo of as many bytes, on a Unix socket and on TCP."""
    answer = HEADER.pack(Frame.ANSWER, 0, kit.expected.nbytes, 1)
    size = len(answer) + kit.expected.nbytes
    plain = Exchange(frame.request, lambda data: size if len(data) >= size else 0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "echo"
        with echo(len(plain.request), size, path):
            for clients in CLIENTS:
                bench.row(
                    "echo, Unix socket",
                    clients,
                    lambda for_s, c=clients, p=path: asked(lambda: unix.connect(p, 30.0), plain, c, for_s),
                )
    http = Exchange(binary.request, lambda data: 300 if len(data) >= 300 else 0)
    with echo(len(http.request), 300) as port:
        for clients in CLIENTS:
            bench.row("echo, TCP", clients, lambda for_s, c=clients: asked(lambda: tcp(int(port)), http, c, for_s))


@contextlib.contextmanager
def echo(request_bytes: int, answer_bytes: int, path: Path | None = None) -> Iterator[str]:
    """Run the echo; yield what it says first."""
    words = [sys.executable, "-m", "benchmarks.serving_echo", str(request_bytes), str(answer_bytes)]
    words += [str(path)] if path else []
    with subprocess.Popen(words, cwd=_ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def telemetry_s(kit: Kit) -> float:
    """Return what counting an answered request costs, histograms included, in seconds of CPU: the median of five."""
    meter = Meter(kit.bundle.manifest, "1.0.0", kit.bundle.digest)
    feeds, answer = {kit.input: kit.tensor}, {kit.output: kit.expected}
    rounds = []
    for _ in range(5):
        begun_s = time.process_time()
        for _ in range(_METERED):
            meter.answered(0.1, feeds, answer)
        meter.take()
        rounds.append((time.process_time() - begun_s) / _METERED)
    return sorted(rounds)[2]


def memory_mib(kit: Kit) -> tuple[float, float]:
    """Return the own memory of a bare runtime and of a worker, in MiB: medians of several, in turns."""
    bare, used = [], []
    feeds = {kit.input: kit.tensor}
    for _ in range(_PROCESSES):
        bare.append(bare_runtime_mib(kit))
        rig = ServingRig()
        try:
            rig.serve(kit.bundle)
            for address in (rig.socket, rig.url):
                with contextlib.closing(open_model(address)) as client:
                    for _ in range(1000):
                        client.infer(kit.name, feeds)
            used.append(own_mib(rig.pid))
        finally:
            rig.close()
    print(f"  memory, MiB: bare {bare}, workers {used}", file=sys.stderr, flush=True)
    return statistics.median(bare), statistics.median(used)


def bare_runtime_mib(kit: Kit) -> float:
    """Return the own memory of a process that does nothing but run the model."""
    code = f"""
import sys, numpy, onnxruntime
settings = onnxruntime.SessionOptions()
settings.intra_op_num_threads = settings.inter_op_num_threads = 1
session = onnxruntime.InferenceSession({str(kit.artifact)!r}, settings, providers=["CPUExecutionProvider"])
item = session.get_inputs()[0]
for _ in range(1000):
    session.run(None, {{item.name: numpy.zeros(item.shape, numpy.float32)}})
print("ready", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        used_mib = own_mib(process.pid)
        process.terminate()
    return used_mib


def own_mib(pid: int) -> float:
    """Return a process's resident memory of its own, in MiB: pages that others map too (code of libraries) left out."""
    return float(psutil.Process(pid).memory_full_info().uss) / (1 << 20)


def swaps(kit: Kit, rig: ServingRig, met: dict[str, float]) -> None:
    """Compare the slowest request in a window with a swap with that of a window without; the median of three pairs."""
    feeds = {kit.input: kit.tensor}
    ratios, failures = [], 0
    for address in (rig.socket, rig.url):
        with contextlib.closing(open_model(address)) as client:
            for turn in range(3):
                calm = called(lambda c=client: c.infer(kit.name, feeds), SWAP_WINDOW_S)
                candidate = load_of(kit.bundle, f"1.0.{turn + 1}")
                rig.do(lambda serving, load=candidate: serving.try_out(load))
                promoted: list[bool] = []

                def once(c: InferenceModel = client, done: list[bool] = promoted) -> None:
                    nonlocal failures
                    try:
                        c.infer(kit.name, feeds)
                    except EdgeopsError as error:
                        failures += 1
                        print(f"  a request failed: {error!r}", file=sys.stderr, flush=True)
                    if not done and rig.serving.has_tested_candidate:
                        done.append(True)
                        rig.loop.post(rig.serving.promote)

                swapped = called(once, SWAP_WINDOW_S)
                if not promoted or not rig.serving.is_serving:
                    raise SystemExit("the swap was not over within its window")
                ratios.append(swapped.worst_ms / calm.worst_ms)
                print(
                    f"  slowest request over {address.split(':')[0]}: {calm.worst_ms:.1f} ms without a swap, "
                    f"{swapped.worst_ms:.1f} ms with one",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
    met["slowest in a swap / without"] = max(
        met.get("slowest in a swap / without", 0.0), sorted(ratios)[len(ratios) // 2]
    )
    met["failures in swaps"] = met.get("failures in swaps", 0.0) + failures


def show(name: str, rows: Rows) -> None:
    """Print a table."""
    print(f"\n{name}\n{'':34}" + "".join(f"{clients:>8} client(s)  p50 ms   p99 ms" for clients in CLIENTS))
    for row, by in rows.items():
        cells = [by.get(str(clients)) for clients in CLIENTS]
        line = "".join(
            f"{one.per_s:>14.0f}/s {one.p50_ms:>8.3f} {one.p99_ms:>8.3f}" if one else " " * 34 for one in cells
        )
        print(f"{row:34}{line}")
    sys.stdout.flush()


def compare(name: str, rows: Rows, met: dict[str, float]) -> None:
    """Keep the ratios that targets speak of."""
    peers = {row: by for row, by in rows.items() if row.split(", ")[0] in {peer.name for peer in PEERS}}
    for clients in map(str, CLIENTS):
        slowest = min(rows[row][clients].per_s for row in ("edgeops, HTTP", "edgeops, socket"))
        for what, among in (
            ("slowest row against the best peer", peers),
            ("slowest row against the best JSON", {row: by for row, by in peers.items() if row.endswith("JSON")}),
        ):
            if among:
                best = max(among, key=lambda row: among[row][clients].per_s)
                ratio = slowest / among[best][clients].per_s
                faster = min(by[clients].p50_ms for by in among.values())
                slower = max(rows[row][clients].p50_ms for row in ("edgeops, HTTP", "edgeops, socket"))
                print(
                    f"{name}, {clients} client(s): {ratio:.1f} times as many a second as {best}; median "
                    f"{faster / slower:.1f} times shorter than the shortest"
                )
                met[what] = min(met.get(what, ratio), ratio)
    if name == "digits-mlp":
        met["socket requests/s, digits-mlp"] = rows["edgeops, socket"]["1"].per_s
    else:
        inside = rows["edgeops, in process"]["1"].p50_ms
        met[f"socket median / in process, {name}"] = rows["edgeops, socket"]["1"].p50_ms / inside


def judged(met: dict[str, float]) -> dict[str, Any]:
    """Hold the figures against the targets, and print that."""
    found = {}
    for name, (more, bound) in TARGETS.items():
        if name not in met:
            continue
        good = met[name] >= bound if more else met[name] <= bound
        found[name] = {"value": met[name], "bound": bound, "met": good}
        print(f"{'met   ' if good else 'MISSED'}  {name}: {met[name]:.3g} (target {'≥' if more else '≤'} {bound:g})")
    return found


if __name__ == "__main__":
    main()
