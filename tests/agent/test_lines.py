"""A model's Unix socket: what is right is answered, through memory too; what is wrong gets its code or the door."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adder_bundles import MODEL, small_bundle
from fake_fleet import wait_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_rig import ServingRig

from edgeops.agent.worker import lines, turns
from edgeops.client import inference_socket
from edgeops.client.inference import InferenceClient, LocalModel, SocketClient, open_model
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.frames import FRAMES_VERSION, HEADER, Frame, FrameRefusal, Greeting, places
from edgeops.contracts.tensors import TensorSpec
from edgeops.contracts.wire import decode, encode
from edgeops.transport import unix

X = np.array([[1, 2, 3, 4]], np.float32)
BYTES = X.nbytes


def path_of(rig: ServingRig) -> Path:
    return Path(rig.socket.removeprefix("unix:"))


def read(connection: socket.socket) -> tuple[int, int, int, bytes]:
    """Read one frame: kind, flags, mark, body."""
    data = b""
    while len(data) < HEADER.size:
        more = connection.recv(HEADER.size - len(data))
        if not more:
            raise EOFError
        data += more
    kind, flags, length, mark = HEADER.unpack(data)
    body = b""
    while len(body) < length:
        body += connection.recv(length - len(body))
    return kind, flags, mark, body


@pytest.fixture
def line(served: ServingRig) -> Iterator[socket.socket]:
    with unix.connect(path_of(served), 60) as connection:
        assert read(connection)[0] == Frame.GREETING
        yield connection


def request(mark: int = 7, values: np.ndarray[Any, Any] = X) -> bytes:
    return HEADER.pack(Frame.INFER, 0, BYTES, mark) + values.tobytes()


def refused(frame: tuple[int, int, int, bytes], code: str) -> None:
    assert frame[0] == Frame.REFUSAL
    assert decode(frame[3], FrameRefusal, what="refusal").code == code


@pytest.mark.parametrize("share", [False, True], ids=["through the socket", "through memory"])
def test_client_and_server_agree(served: ServingRig, share: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_socket, "SHARE_FROM_BYTES", 0 if share else 1 << 30)
    with SocketClient(path_of(served)) as client:
        assert (client._connection._shared is not None) is share
        for number in range(5):
            np.testing.assert_array_equal(client.infer(MODEL, {"x": X + number})["y"], X + number + 1)
        kept = client.infer(MODEL, {"x": X}, outputs=["y"])["y"]
        client.infer(MODEL, {"x": X * 2})
        np.testing.assert_array_equal(kept, X + 1)  # an answer is the caller's, not the buffer's
        assert client.metadata(MODEL)["versions"] == ["1.0.0"]
        assert client.ready()


def test_each_request_is_counted_with_its_own_inputs(
    rig: ServingRig, bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests of one client come into the same buffer, or memory, one after the other; they are counted later."""
    rig.serve(bundle)
    for share_from in (0, 1 << 30):
        monkeypatch.setattr(inference_socket, "SHARE_FROM_BYTES", share_from)
        with SocketClient(path_of(rig)) as client:
            for value in (-1, 1, 6, 20) * 3:
                client.infer(MODEL, {"x": np.full_like(X, value)})
    windows = [window for window in rig.counted_to_the_end() if window.requests]
    assert [sum(counts) for counts in zip(*(window.inputs["x"] for window in windows), strict=True)] == [24] * 4
    # y = x + 1: 0, 2, 7, 21; the edges are 0, 5, 10.
    assert [sum(counts) for counts in zip(*(w.outputs["y"] for w in windows), strict=True)] == [0, 48, 24, 24]


def test_three_ways_give_the_same_answer(served: ServingRig, bundle: Any) -> None:
    addresses = {served.url: InferenceClient, served.socket: SocketClient, str(bundle.directory): LocalModel}
    for address, kind in addresses.items():
        model = open_model(address)
        assert isinstance(model, kind)
        np.testing.assert_array_equal(model.infer(MODEL, {"x": X})["y"], X + 1)
        assert model.ready()
        assert model.metadata(MODEL)["name"] == MODEL
        for wrong, code in (({"z": X}, "E-RUNTIME-INPUT"), ({"x": X.astype(np.float64)}, "E-RUNTIME-INPUT")):
            with pytest.raises(EdgeopsError) as caught:
                model.infer(MODEL, wrong)
            assert caught.value.code == code, address
        for name, outputs, code in (("other", (), "E-INFER-MODEL"), (MODEL, ("w",), "E-INFER-REQUEST")):
            with pytest.raises(EdgeopsError) as caught:
                model.infer(name, {"x": X}, outputs=outputs)
            assert caught.value.code == code, address
        model.close()


def test_requests_that_come_together_or_in_pieces_are_answered_in_order(line: socket.socket) -> None:
    line.sendall(b"".join(request(number, X + number) for number in range(20)))
    for number in range(20):
        kind, _, mark, body = read(line)
        assert (kind, mark) == (Frame.ANSWER, number)
        np.testing.assert_array_equal(np.frombuffer(body, np.float32), (X + number + 1)[0])
    for byte in request():
        line.sendall(bytes([byte]))
    assert read(line)[0] == Frame.ANSWER


@pytest.mark.parametrize(
    "data",
    [
        HEADER.pack(Frame.INFER, 0, BYTES + 1, 1), HEADER.pack(Frame.INFER, 0, 0, 1),
        HEADER.pack(Frame.INFER, 0, 0xFFFFFFFF, 1), HEADER.pack(Frame.INFER_SHARED, 0, 0, 1),
        HEADER.pack(Frame.ANSWER, 0, 0, 1), HEADER.pack(999, 0, 0, 1), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["a byte too many", "empty", "4 GiB", "memory that was not shared", "an answer", "unknown", "HTTP"],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_and_the_line_ends(served: ServingRig, line: socket.socket, data: bytes) -> None:
    line.sendall(data)
    refused(read(line), "E-INFER-REQUEST")
    with pytest.raises((EOFError, ConnectionResetError)):
        read(line)
    with SocketClient(path_of(served)) as client:
        np.testing.assert_array_equal(client.infer(MODEL, {"x": X})["y"], X + 1)
    served.expect("counted")


def memory(size: int, seals: int) -> int:
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    if seals:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


SEALED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


@pytest.mark.parametrize(
    "make",
    [
        lambda: memory(2 * BYTES, 0), lambda: memory(2 * BYTES, fcntl.F_SEAL_GROW), lambda: memory(1 << 20, SEALED),
        lambda: memory(0, SEALED), lambda: memory(2 * BYTES, SEALED | fcntl.F_SEAL_WRITE),
        lambda: os.open("/dev/null", os.O_RDWR), lambda: os.open("/dev/zero", os.O_RDONLY),
    ],
    ids=["may shrink", "may shrink, not grow", "too large", "empty", "read-only", "a device", "an endless device"],
)  # fmt: skip
def test_memory_that_could_end_the_worker_is_not_taken(line: socket.socket, make: Any) -> None:
    descriptor = make()
    socket.send_fds(line, [HEADER.pack(Frame.SHARE, 0, 0, 3)], [descriptor])
    os.close(descriptor)
    refused(read(line), "E-INFER-REQUEST")
    line.sendall(request())
    assert read(line)[0] == Frame.ANSWER


def test_sealed_memory_of_the_right_size_is_taken(line: socket.socket) -> None:
    """The control of the test above; and a descriptor that is missing is no reason to end."""
    line.sendall(HEADER.pack(Frame.SHARE, 0, 0, 3))
    refused(read(line), "E-INFER-REQUEST")
    for _ in range(3):
        descriptor = memory(2 * BYTES, SEALED)
        socket.send_fds(line, [HEADER.pack(Frame.SHARE, 0, 0, 3)], [descriptor])
        assert read(line)[0] == Frame.SHARE
        os.pwrite(descriptor, X.tobytes(), 0)
        line.sendall(HEADER.pack(Frame.INFER_SHARED, 0, 0, 4))
        assert read(line) == (Frame.ANSWER_SHARED, 0, 4, b"")
        assert os.pread(descriptor, BYTES, BYTES) == (X + 1).tobytes()
        os.close(descriptor)


def test_unsealed_memory_would_end_the_worker() -> None:
    """Why the seals are looked at: a page that is gone is a SIGBUS for whoever reads it."""
    descriptor = memory(1 << 16, 0)
    script = f"import mmap, os; m = mmap.mmap({descriptor}, 1 << 16); os.ftruncate({descriptor}, 0); print(m[0])"
    done = subprocess.run([sys.executable, "-c", script], pass_fds=(descriptor,), check=False, capture_output=True)
    os.close(descriptor)
    assert done.returncode == -signal.SIGBUS


def test_descriptors_that_nobody_asked_for_do_not_pile_up(served: ServingRig) -> None:
    def held() -> int:
        return len(list(Path(f"/proc/{served.pid}/fd").iterdir()))

    before = held()
    for _ in range(30):
        with unix.connect(path_of(served), 60) as connection:
            read(connection)
            descriptors = [os.open("/dev/null", os.O_RDONLY) for _ in range(8)]
            socket.send_fds(connection, [HEADER.pack(Frame.INFER, 0, 1, 0)], descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
    wait_for(lambda: held() <= before, "descriptors pile up")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.binary(max_size=200), st.just(request())), max_size=6))
def test_random_bytes_never_crash_the_worker(served: ServingRig, parts: list[bytes]) -> None:
    pid = served.pid
    with unix.connect(path_of(served), 60) as connection:
        read(connection)
        try:
            for part in parts:
                connection.sendall(part)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):
                pass
        except (BrokenPipeError, ConnectionResetError):
            pass  # the door was shut before all was said
    with SocketClient(path_of(served)) as client:
        np.testing.assert_array_equal(client.infer(MODEL, {"x": X})["y"], X + 1)
    assert served.pid == pid


def test_a_swap_loses_no_request_and_clients_go_along(rig: ServingRig, bundle: Any, other_bundle: Any) -> None:
    rig.serve(bundle)
    answers: list[float] = []
    stop = threading.Event()

    def ask() -> None:
        with SocketClient(path_of(rig)) as client:
            while not stop.is_set():
                answers.append(float(client.infer(MODEL, {"x": X})["y"][0, 0]))

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    wait_for(lambda: answers, "nobody is answered")
    for number, following in enumerate((other_bundle, bundle, other_bundle), 2):
        rig.swap(following, f"{number}.0.0")
    wait_for(lambda: len(set(answers)) == 2, "the new bundle answers nobody")
    stop.set()
    for client in clients:
        client.join(60)
    assert not any(client.is_alive() for client in clients)
    assert len(set(answers)) == 2
    with SocketClient(path_of(rig)) as client:
        assert client.metadata(MODEL)["versions"] == ["4.0.0"]


def test_a_client_that_does_not_go_along_gets_no_answer(rig: ServingRig, bundle: Any, other_bundle: Any) -> None:
    """The control of the test above: after its good-bye a worker answers nothing any more."""
    rig.serve(bundle)
    with unix.connect(path_of(rig), 60) as connection:
        assert read(connection)[0] == Frame.GREETING
        rig.swap(other_bundle, "2.0.0")
        assert read(connection)[0] == Frame.BYE
        with contextlib.suppress(OSError):
            connection.sendall(request())
        with pytest.raises((EOFError, OSError)):
            read(connection)


def test_a_killed_worker_costs_a_client_no_request(rig: ServingRig, bundle: Any) -> None:
    rig.serve(bundle)
    with SocketClient(path_of(rig)) as client:
        for _ in range(3):
            os.kill(rig.pid, 9)
            np.testing.assert_array_equal(client.infer(MODEL, {"x": X})["y"], X + 1)
            rig.expect("serves")


def test_a_slow_model_answers_health_and_refuses_what_waits_too_long(tmp_path: Path, rig: ServingRig) -> None:
    """A model that is not quick has a thread: many at once wait for their turn, and get their own answer."""
    rig.serve(small_bundle(tmp_path / "slow", slow=True))
    results: list[bool] = []

    def ask(number: int) -> None:
        with SocketClient(path_of(rig)) as client:
            results.extend(
                np.array_equal(client.infer(MODEL, {"x": X + number})["y"], X + number + 1) for _ in range(10)
            )

    asking = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for one in asking:
        one.start()
    with InferenceClient(rig.url) as client:
        assert client.ready()
    for one in asking:
        one.join(60)
    assert results == [True] * 60


def test_a_turn_that_comes_too_late_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "MAX_WAITING", 3)
    running, may_end = threading.Event(), threading.Event()
    ran: list[int] = []

    def slow() -> None:
        running.set()
        may_end.wait(60)

    async def go() -> list[object]:
        desk = turns.Turns(typical_ms=turns.SLOW_MS)
        one = asyncio.ensure_future(desk.take(slow))
        await asyncio.to_thread(running.wait, 60)
        monkeypatch.setattr(turns, "WAIT_WITHIN_S", 0.05)
        others = [asyncio.ensure_future(desk.take(lambda: ran.append(1))) for _ in range(3)]
        await asyncio.sleep(0)  # they wait from now on
        await asyncio.sleep(0.1)
        may_end.set()
        return await asyncio.gather(one, *others, return_exceptions=True)

    first, second, third, fourth = asyncio.run(go())
    assert (first, ran) == (None, [])
    assert [error.code for error in (second, third, fourth) if isinstance(error, EdgeopsError)] == ["E-INFER-BUSY"] * 3
    assert "wait already" in str(fourth)


def test_more_clients_than_there_is_room_for_are_told(served: ServingRig) -> None:
    connections = []
    try:
        for _ in range(lines.MAX_LINES):
            connection = unix.connect(path_of(served), 60)
            connections.append(connection)
            assert read(connection)[0] == Frame.GREETING
        with unix.connect(path_of(served), 60) as connection:
            refused(read(connection), "E-INFER-BUSY")
    finally:
        for connection in connections:
            connection.close()


def test_clients_that_are_gone_before_they_are_greeted_take_no_room(served: ServingRig) -> None:
    os.kill(served.pid, signal.SIGSTOP)
    try:
        for _ in range(2 * lines.MAX_LINES):
            unix.connect(path_of(served), 60).close()
    finally:
        os.kill(served.pid, signal.SIGCONT)
    with SocketClient(path_of(served)) as client:
        np.testing.assert_array_equal(client.infer(MODEL, {"x": X})["y"], X + 1)


def test_a_socket_lies_where_no_address_reaches_and_replaces_what_died(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["x" * 50] * 4)
    for _ in range(2):
        listener = unix.listen(deep / "model.sock", backlog=1)
        unix.connect(deep / "model.sock", 5).close()
        listener.close()  # as by a power cut: the file stays
    (deep / "model.sock").unlink()
    (deep / "model.sock").write_text("somebody's")
    with pytest.raises(EdgeopsError) as caught:
        unix.listen(deep / "model.sock", backlog=1)
    assert caught.value.code == "E-CONFIG"
    assert (deep / "model.sock").read_text() == "somebody's"


def test_tensors_are_aligned_one_after_the_other() -> None:
    specs = [TensorSpec(name=str(n), dtype="uint8", shape=(n,)) for n in (1, 16, 17)]
    found, total = places(specs)
    assert [place.offset for place in found] == [0, 16, 32]
    assert total == 64


class Mute:
    """A server that is none: it says what it was told to, once."""

    def __init__(self, path: Path, says: bytes) -> None:
        self._listener = unix.listen(path, backlog=8)
        self._says = says
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                client.sendall(self._says)
                client.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("share", [False, True], ids=["through the socket", "through memory"])
def test_an_answer_that_came_too_late_costs_that_request_only(
    served: ServingRig, share: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes on the same connection, where the next one would be taken for it; so that is made anew."""
    monkeypatch.setattr(inference_socket, "SHARE_FROM_BYTES", 0 if share else 1 << 30)
    with SocketClient(path_of(served), timeout_s=60) as client:
        np.testing.assert_array_equal(client.infer(MODEL, {"x": X})["y"], X + 1)
        client._connection._socket.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, inference_socket._TIMEVAL.pack(0, 50_000)
        )
        os.kill(served.pid, signal.SIGSTOP)
        try:
            with pytest.raises(EdgeopsError, match="no answer in time"):
                client.infer(MODEL, {"x": X + 1})
        finally:
            os.kill(served.pid, signal.SIGCONT)
        for number in range(3):
            np.testing.assert_array_equal(client.infer(MODEL, {"x": X * number})["y"], X * number + 1)


def test_a_server_that_was_away_is_found_again(rig: ServingRig, bundle: Any) -> None:
    rig.serve(bundle)
    with SocketClient(path_of(rig), timeout_s=60) as client:
        client._timeout_s = 0.2
        away = path_of(rig).with_suffix(".away")
        path_of(rig).rename(away)
        client._connection._socket.shutdown(socket.SHUT_RDWR)
        with pytest.raises(EdgeopsError, match="E-NET-UNREACHABLE"):
            client.infer(MODEL, {"x": X})
        away.rename(path_of(rig))
        client._timeout_s = 60.0
        np.testing.assert_array_equal(client.infer(MODEL, {"x": X})["y"], X + 1)


class Fickle:
    """A model's server that ends each connection once it was asked, until it answers the twentieth request.

    Args:
        path: Where it listens.
        farewell: What it says instead.
    """

    def __init__(self, path: Path, farewell: bytes) -> None:
        self._listener, self._farewell = unix.listen(path, backlog=8), farewell
        self.asked = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        spec = TensorSpec(name="x", dtype="float32", shape=X.shape)
        named = {"model": MODEL, "release": "1.0.0", "digest": "d"}
        greeting = encode(Greeting(frames=FRAMES_VERSION, inputs=(spec,), outputs=(spec,), **named))
        while self.asked < 20:
            client, _ = self._listener.accept()
            with client:
                client.sendall(HEADER.pack(Frame.GREETING, 0, len(greeting), 0) + greeting)
                _, _, mark, body = read(client)
                self.asked += 1
                answer = HEADER.pack(Frame.ANSWER, 0, BYTES, mark) + body
                client.sendall(self._farewell if self.asked < 20 else answer)


def test_a_request_that_worker_after_worker_dies_of_is_not_made_for_ever(tmp_path: Path) -> None:
    server = Fickle(tmp_path / "s", b"")
    with SocketClient(tmp_path / "s", timeout_s=60) as client, pytest.raises(EdgeopsError, match="3 times") as caught:
        client.infer(MODEL, {"x": X})
    assert (caught.value.code, server.asked) == ("E-NET-UNREACHABLE", 3)


def test_who_is_sent_away_comes_again_as_long_as_there_is_time(tmp_path: Path) -> None:
    bye = HEADER.pack(Frame.BYE, 0, 0, 0)
    server = Fickle(tmp_path / "s", bye)
    with SocketClient(tmp_path / "s", timeout_s=60) as client:
        np.testing.assert_array_equal(client.infer(MODEL, {"x": X})["x"], X)
    assert server.asked == 20
    server = Fickle(tmp_path / "t", bye)
    with SocketClient(tmp_path / "t", timeout_s=60) as client:
        client._timeout_s = 0.0
        with pytest.raises(EdgeopsError) as caught:
            client.infer(MODEL, {"x": X})
    assert (caught.value.code, server.asked) == ("E-NET-UNREACHABLE", 1)


@pytest.mark.parametrize(
    ("says", "code"),
    [
        (b"", "E-NET-UNREACHABLE"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "E-NET-RESPONSE"),
        (HEADER.pack(Frame.GREETING, 0, 0xFFFFFFFF, 0), "E-NET-RESPONSE"),
        (HEADER.pack(Frame.GREETING, 0, 2, 0) + b"{}", "E-NET-RESPONSE"),
        (HEADER.pack(Frame.GREETING, 0, 20, 0) + b"{", "E-NET-UNREACHABLE"),
        (HEADER.pack(Frame.REFUSAL, 0, 2, 0) + b"{}", "E-NET-RESPONSE"),
    ],
)
def test_a_client_survives_what_is_no_server(tmp_path: Path, says: bytes, code: str) -> None:
    Mute(tmp_path / "s", says)
    with pytest.raises(EdgeopsError) as caught:
        SocketClient(tmp_path / "s", timeout_s=60)
    assert caught.value.code == code
