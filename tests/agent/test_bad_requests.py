"""A hundred thousand bad requests: the worker stays, its memory stays, and good requests are answered among them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import adder_bundles
import numpy as np
import psutil
import pytest
from adder_bundles import MODEL, small_bundle
from serving_rig import ServingRig

from edgeops.client import inference_socket
from edgeops.client.inference import open_model
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.frames import HEADER, Frame
from edgeops.releases.bundles import Bundle
from edgeops.transport import unix

X = np.array([[1, 2, 3, 4]], np.float32)
WEAKENED = Path(__file__).parent / "weakened"
BOUNDED, EXHAUSTIVE = 800, 100_000
# What allocators keep of a burst; a leak of 100 bytes a request would be 10 MiB.
FLAT_WITHIN_MIB = 6.0
_INPUT = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
_ODD = (None, -1, 0, 1e300, 2**64, "x", "", [], {}, [[1]], True, "FP64", "BYTES", [4], [1, 4, 1], [-1, 4], [2**40, 4])


def http_requests(rng: random.Random) -> Iterator[bytes]:
    """Bad requests without an end: wrong by construction, or good ones that are damaged."""
    while True:
        kind = rng.randrange(8)
        body = json.dumps({"inputs": [_INPUT]}).encode()
        if kind == 0:
            yield rng.randbytes(rng.randrange(300))
        elif kind == 1:  # a wrong value somewhere in the document
            tensor = {**_INPUT, rng.choice([*_INPUT, "parameters"]): rng.choice(_ODD)}
            yield _post(json.dumps({"inputs": rng.choice([[tensor], tensor, [tensor, tensor], [], None])}).encode())
        elif kind == 2:  # binary tensors whose lengths do not agree
            head = json.dumps({"inputs": [{**_INPUT, "parameters": {"binary_data_size": rng.choice(_ODD)}}]}).encode()
            yield _post(
                head + rng.randbytes(rng.randrange(40)), f"Inference-Header-Content-Length: {rng.randrange(-5, 400)}"
            )
        elif kind == 3:  # a body that is cut off
            yield _post(body)[: rng.randrange(len(_post(body)))]
        elif kind == 4:  # one byte is another
            data = bytearray(_post(body))
            data[rng.randrange(len(data))] = rng.randrange(256)
            yield bytes(data)
        elif kind == 5:  # headers that are too much, or contradict each other
            more = (f"X-{number}: {'y' * rng.randrange(2000)}" for number in range(rng.randrange(40)))
            yield _post(body, *more)
        elif kind == 6:
            yield _post(
                body, "Transfer-Encoding: chunked", f"Content-Length: {rng.randrange(10 ** rng.randrange(1, 25))}"
            )
        else:
            yield _post(body, path=f"/v2/models/{rng.choice(['other', '..', '%00', 'a' * 3000])}/infer")


def frames(rng: random.Random) -> Iterator[bytes]:
    """Bad frames without an end."""
    while True:
        kind = rng.choice([0, Frame.GREETING, Frame.INFER, Frame.SHARE, Frame.INFER_SHARED, Frame.BYE, 77, 65535])
        length = rng.choice([0, 1, 15, 16, 17, 1 << 20, 2**32 - 1])
        data = HEADER.pack(kind, rng.randrange(65536), length, rng.randrange(2**64)) + rng.randbytes(rng.randrange(64))
        yield rng.choice([data, data[: rng.randrange(len(data))], rng.randbytes(rng.randrange(60))])


def _post(body: bytes, *headers: str, path: str = f"/v2/models/{MODEL}/infer") -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", "")
    return "\r\n".join(lines).encode() + body


def throw(connect: Callable[[], socket.socket], requests: Iterator[bytes], count: int, rng: random.Random) -> None:
    """Send requests, each on a connection of its own; some clients go without a word, the others wait for the end."""
    for _ in range(count):
        with connect() as connection:
            try:
                connection.sendall(next(requests))
                if rng.random() < 0.2:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    continue
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass
            except (BrokenPipeError, ConnectionResetError):
                continue  # the door was shut before all was said


def grown_mib(rig: ServingRig, way: str, count: int) -> float:
    """Send bad requests, a good one now and then; return how much memory the worker took after a quarter."""
    pid, rng = rig.pid, random.Random(7)
    port, path = int(rig.url.rsplit(":", 1)[1]), Path(rig.socket.removeprefix("unix:"))
    if way == "http":
        connect, requests = (lambda: socket.create_connection(("127.0.0.1", port), timeout=60)), http_requests(rng)
    else:
        connect, requests = (lambda: unix.connect(path, 60)), frames(rng)
    good = open_model(rig.url if way == "http" else rig.socket)
    throw(connect, requests, count // 4, rng)
    before_mib, held_before = used_mib(pid), settled(pid)
    for _ in range(10):
        throw(connect, requests, count * 3 // 40, rng)
        np.testing.assert_array_equal(good.infer(MODEL, {"x": X})["y"], X + 1)
    assert rig.pid == pid
    assert settled(pid, held_before + 1) <= held_before + 1  # the good client's own among them
    good.close()
    return used_mib(pid) - before_mib


@pytest.mark.parametrize(
    "count", [BOUNDED, pytest.param(EXHAUSTIVE, marks=[pytest.mark.full, pytest.mark.timeout(3600)])]
)
@pytest.mark.parametrize("way", ["http", "socket"])
def test_bad_requests_cost_no_memory_and_nobody_else_an_answer(
    rig: ServingRig, bundle: Bundle, proof: Callable[[str], None], way: str, count: int
) -> None:
    rig.serve(bundle)
    grown = grown_mib(rig, way, count)
    assert grown < FLAT_WITHIN_MIB
    proof(f"{count} bad requests: {grown:+.1f} MiB in the last three quarters")


def test_a_worker_that_keeps_what_it_was_sent_is_seen(
    rig: ServingRig, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: 16 KiB a request are seen after some hundred, 100 bytes after a hundred thousand."""
    monkeypatch.setenv("PYTHONPATH", str(WEAKENED))
    monkeypatch.setenv("EDGEOPS_TEST_WITHOUT", "forgetting_requests")
    rig.serve(bundle)
    assert grown_mib(rig, "http", BOUNDED) > FLAT_WITHIN_MIB


def settled(pid: int, down_to: int = 0) -> int:
    """Return how many descriptors a worker holds once the last clients' are closed."""
    held, until_s = 0, time.monotonic() + 60
    while time.monotonic() < until_s:
        before, held = held, len(list(Path(f"/proc/{pid}/fd").iterdir()))
        if held == before and held <= (down_to or held):
            break
        time.sleep(0.1)
    return held


def used_mib(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss) / (1 << 20)


@pytest.mark.full
def test_a_worker_that_is_killed_at_any_moment_costs_no_answered_request(rig: ServingRig, bundle: Bundle) -> None:
    """A hundred kills, at moments that a seed draws, while a client asks by each way."""
    rig.serve(bundle)
    wrong: list[object] = []
    answered = [0, 0]
    stop = threading.Event()

    def ask(place: int, address: str) -> None:
        client = open_model(address)
        while not stop.is_set():
            value = float(answered[place] % 1000)
            try:
                answer = client.infer(MODEL, {"x": np.full((1, 4), value, np.float32)})["y"]
            except EdgeopsError as error:
                if error.code not in ("E-NET-UNREACHABLE", "E-NET-RESPONSE"):
                    wrong.append(error)
                continue
            if not (answer == value + 1).all():
                wrong.append(answer)
            answered[place] += 1
        client.close()

    threads = [threading.Thread(target=ask, args=pair) for pair in enumerate((rig.url, rig.socket))]
    for thread in threads:
        thread.start()
    rng = random.Random(11)
    for _ in range(100):
        rig.serving._crashes = 0  # no longer waits between starts: there is a kill to come
        before = list(answered)
        while any(now < then + 3 for now, then in zip(answered, before, strict=True)):
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        current = rig.serving._current
        if current is not None:
            os.kill(current.process.pid, signal.SIGKILL)
            rig.expect("crashed")
            rig.expect("serves")
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert min(answered) > 300


def test_many_clients_of_a_model_with_large_tensors_do_not_end_its_worker(
    rig: ServingRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few dozen that connected, or sent half a request, took all the memory that a worker may have."""
    monkeypatch.setattr(adder_bundles, "SHAPE", (1, 1_000_000))
    rig.serve(small_bundle(tmp_path / "large"))
    begun = HEADER.pack(Frame.INFER, 0, 4_000_000, 1) + bytes(1000)
    path = Path(rig.socket.removeprefix("unix:"))
    many = [unix.connect(path, 60) for _ in range(100)]
    try:
        for one in many:
            one.sendall(begun)
        for _ in range(40):
            many.append(socket.create_connection(("127.0.0.1", rig.serving.port or 0), 60))
            with contextlib.suppress(OSError):  # refused while it sends
                many[-1].sendall(b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\n\r\n" + bytes(7_000_000))
        x = np.ones((1, 1_000_000), np.float32)
        with monkeypatch.context() as changed:
            changed.setattr(inference_socket, "SHARE_FROM_BYTES", 1 << 30)
            with open_model(rig.socket) as client, pytest.raises(EdgeopsError) as caught:
                client.infer(MODEL, {"x": x})
            assert caught.value.code == "E-INFER-BUSY"
        # Through memory, of which the worker has no part of its own.
        with open_model(rig.socket) as client:
            np.testing.assert_array_equal(client.infer(MODEL, {"x": x})["y"], x + 1)
    finally:
        for one in many:
            one.close()
    with open_model(rig.url) as client:
        np.testing.assert_array_equal(client.infer(MODEL, {"x": x})["y"], x + 1)
    rig.counted_to_the_end()
    assert "crashed" not in {rig.said.get()[0] for _ in range(rig.said.qsize())}
