"""The local inference API over real HTTP: what is right is answered, what is wrong gets its code, nothing crashes."""

from __future__ import annotations

import json
import socket
import struct
import threading
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from adder_bundles import MODEL, small_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_rig import ServingRig

from edgeops.client.inference import InferenceClient
from edgeops.contracts.errors import EdgeopsError

X = np.array([[1, 2, 3, 4]], np.float32)
PATH = f"/v2/models/{MODEL}/infer"


def connect(rig: ServingRig) -> socket.socket:
    parts = urlsplit(rig.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=60)


def exchange(rig: ServingRig, data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes, read one response: status, headers, body."""
    with connect(rig) as connection:
        connection.sendall(data)
        return read_response(connection.makefile("rb"))


def read_response(reader: Any) -> tuple[int, dict[str, str], bytes]:
    status = int(reader.readline().split()[1])
    headers = {}
    while line := reader.readline().strip():
        name, _, value = line.decode().partition(": ")
        headers[name.lower()] = value
    return status, headers, reader.read(int(headers["content-length"]))


def post(body: bytes, path: str = PATH, **headers: object) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def infer_body(**changes: Any) -> bytes:
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4], **changes}
    return json.dumps({"inputs": [tensor]}).encode()


def test_client_and_server_agree_on_binary_tensors(served: ServingRig):
    with InferenceClient(served.url) as client:
        assert client.ready()
        assert client.metadata(MODEL)["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [1, 4]}]
        for _ in range(3):
            answer = client.infer(MODEL, {"x": X})
            np.testing.assert_array_equal(answer["y"], X + 1)
        assert list(client.infer(MODEL, {"x": X}, outputs=["y"])) == ["y"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2", 200), ("GET", "/v2/", 200), ("GET", "/v2/health/live", 200), ("GET", "/v2/health/ready", 200),
        ("GET", f"/v2/models/{MODEL}", 200), ("GET", f"/v2/models/{MODEL}/versions/1.0.0", 200),
        ("GET", f"/v2/models/{MODEL}/ready", 200), ("GET", f"/v2/models/{MODEL}/versions/1.0.0/ready", 200),
        ("GET", "/v2/models/other", 404), ("GET", f"/v2/models/{MODEL}/versions/9.9.9", 404), ("GET", "/", 404),
        ("GET", PATH, 405), ("POST", "/v2", 405), ("DELETE", "/v2", 405), ("GET", "/v2?x=1", 200),
        ("GET", "/v2/models/%61dder", 200), ("GET", "/../etc/passwd", 404),
    ],
)  # fmt: skip
def test_every_path_has_its_status(served: ServingRig, method: str, path: str, status: int):
    got, _, body = exchange(served, f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert got == status
    document = json.loads(body)
    assert status == 200 or document["code"] == "E-INFER-MODEL"


def test_json_tensors_flat_and_nested(served: ServingRig):
    for data in ([1, 2, 3, 4], [[1, 2, 3, 4]], [1.5, 2, 3, 4]):
        status, headers, body = exchange(served, post(infer_body(data=data)))
        assert status == 200
        assert headers["content-type"] == "application/json"
        output = json.loads(body)["outputs"][0]
        assert output["data"] == (np.array(data, np.float32).ravel() + 1).tolist()


def test_request_id_and_mixed_encodings(served: ServingRig):
    head = json.dumps(
        {
            "id": "r-1",
            "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}],
            "outputs": [{"name": "y", "parameters": {"binary_data": False}}],
        }
    ).encode()
    status, _, body = exchange(served, post(head + X.tobytes(), Inference_Header_Content_Length=len(head)))
    assert status == 200
    document = json.loads(body)
    assert document["id"] == "r-1"
    assert document["model_version"] == "1.0.0"
    assert document["outputs"][0]["data"] == [2, 3, 4, 5]


BINARY = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}]}
).encode()
DEEP = infer_body(data=0).replace(b'"data": 0', b'"data": ' + b"[" * 3000 + b"]" * 3000)
ENDLESS = b"GET /v2 HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (number, b"y" * 500) for number in range(100))
MALFORMED: dict[str, tuple[bytes, int, str]] = {
    "not JSON": (post(b"{"), 400, "E-INFER-REQUEST"),
    "not UTF-8": (post(b'{"inputs":"\xff"}'), 400, "E-INFER-REQUEST"),
    "empty": (post(b""), 400, "E-INFER-REQUEST"),
    "an array": (post(b"[]"), 400, "E-INFER-REQUEST"),
    "no inputs": (post(b'{"inputs":[]}'), 400, "E-RUNTIME-INPUT"),
    "deep nesting": (post(b'{"inputs":' + b"[" * 5000), 400, "E-INFER-REQUEST"),
    "wrong name": (post(infer_body(name="z")), 400, "E-RUNTIME-INPUT"),
    "wrong type": (post(infer_body(datatype="INT8")), 400, "E-RUNTIME-INPUT"),
    "unknown type": (post(infer_body(datatype="BYTES")), 400, "E-RUNTIME-INPUT"),
    "wrong shape": (post(infer_body(shape=[4])), 400, "E-RUNTIME-INPUT"),
    "huge shape": (post(infer_body(shape=[1, 1 << 60])), 400, "E-RUNTIME-INPUT"),
    "negative shape": (post(infer_body(shape=[1, -4])), 400, "E-RUNTIME-INPUT"),
    "too few": (post(infer_body(data=[1, 2, 3])), 400, "E-RUNTIME-INPUT"),
    "ragged": (post(infer_body(data=[[1, 2], [3]])), 400, "E-RUNTIME-INPUT"),
    "text": (post(infer_body(data=["a", "b", "c", "d"])), 400, "E-RUNTIME-INPUT"),
    "beyond float": (post(infer_body(data=[1e300, 1, 1, 1])), 400, "E-RUNTIME-INPUT"),
    "null": (post(infer_body(data=None)), 400, "E-RUNTIME-INPUT"),
    "deep data": (post(DEEP), 400, "E-INFER-REQUEST"),
    "unknown output": (post(infer_body()[:-1] + b',"outputs":[{"name":"q"}]}'), 400, "E-INFER-REQUEST"),
    "output twice": (post(infer_body()[:-1] + b',"outputs":[{"name":"y"},{"name":"y"}]}'), 400, "E-INFER-REQUEST"),
    "header length not a number": (post(BINARY, Inference_Header_Content_Length="many"), 400, "E-INFER-REQUEST"),
    "header length too large": (post(BINARY, Inference_Header_Content_Length=9999), 400, "E-INFER-REQUEST"),
    "header length zero": (post(BINARY, Inference_Header_Content_Length=0), 400, "E-INFER-REQUEST"),
    "no binary data": (post(BINARY, Inference_Header_Content_Length=len(BINARY)), 400, "E-RUNTIME-INPUT"),
    "binary left over": (
        post(BINARY + bytes(17), Inference_Header_Content_Length=len(BINARY)), 400, "E-INFER-REQUEST"
    ),
    "data and binary": (
        post(infer_body(parameters={"binary_data_size": 16})), 400, "E-INFER-REQUEST"
    ),
    "binary size lies": (
        post(infer_body(data=None, parameters={"binary_data_size": -16})), 400, "E-INFER-REQUEST"
    ),
    "encoded": (post(infer_body(), Content_Encoding="gzip"), 400, "E-INFER-REQUEST"),
    "too large": (post(b"x" * (1 << 20)), 413, "E-INFER-REQUEST"),
    "announced too large": (b"POST /v2 HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413, "E-INFER-REQUEST"),
    "endless headers": (ENDLESS, 431, "E-INFER-REQUEST"),
    "not HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "E-INFER-REQUEST"),
    "two lengths": (b"POST /v2 HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400, "E-INFER-REQUEST"),
    "length and chunks": (
        b"POST /v2 HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "E-INFER-REQUEST"
    ),
    "busy, not UTF-8": (
        b'POST /v2/edgeops/busy HTTP/1.1\r\nContent-Length: 8\r\n\r\n{"\xff\xff":1}', 400, "E-INFER-REQUEST"
    ),
    "upgrade": (b"GET /v2 HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 400, "E-INFER-REQUEST"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_requests_get_a_code_and_the_server_lives(served: ServingRig, name: str):
    data, status, code = MALFORMED[name]
    got, _, body = exchange(served, data)
    document = json.loads(body)
    assert (got, document["code"]) == (status, code)
    assert document["error"].startswith(code)
    with InferenceClient(served.url) as client:
        np.testing.assert_array_equal(client.infer(MODEL, {"x": X})["y"], X + 1)


def test_a_bad_request_does_not_cost_the_connection(served: ServingRig):
    with connect(served) as connection:
        reader = connection.makefile("rb")
        for data, status in ((post(b"{}"), 400), (post(infer_body()), 200), (b"GET /nothing HTTP/1.1\r\n\r\n", 404)):
            connection.sendall(data)
            assert read_response(reader)[0] == status


def test_pipelined_chunked_and_split_requests_are_answered_in_order(served: ServingRig):
    chunked = infer_body(data=[9, 9, 9, 9])
    half = len(chunked) // 2
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (chunked[:half], chunked[half:])) + b"0\r\n\r\n"
    stream = b"".join(
        (
            post(infer_body()),
            b"GET /v2/health/live HTTP/1.1\r\n\r\n",
            f"POST {PATH} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + chunks,
        )
    )
    for step in (1, 7, len(stream)):
        with connect(served) as connection:
            reader = connection.makefile("rb")
            for start in range(0, len(stream), step):
                connection.sendall(stream[start : start + step])
            answers = [json.loads(read_response(reader)[2]) for _ in range(3)]
        assert answers[0]["outputs"][0]["data"] == [2, 3, 4, 5]
        assert answers[1] == {"live": True}
        assert answers[2]["outputs"][0]["data"] == [10, 10, 10, 10]


def test_expect_continue_connection_close_and_http_1_0(served: ServingRig):
    body = infer_body()
    with connect(served) as connection:
        reader = connection.makefile("rb")
        connection.sendall(post(b"", Expect="100-continue").replace(b"Length: 0", b"Length: %d" % len(body)))
        assert reader.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert reader.readline() == b"\r\n"
        connection.sendall(body)
        assert read_response(reader)[0] == 200
    for request in (b"GET /v2 HTTP/1.1\r\nConnection: close\r\n\r\n", b"GET /v2 HTTP/1.0\r\n\r\n"):
        with connect(served) as connection:
            reader = connection.makefile("rb")
            connection.sendall(request)
            assert read_response(reader)[1]["connection"] == "close"
            assert reader.read() == b""


def test_aborted_uploads_and_silent_clients_disturb_nobody(served: ServingRig):
    silent = [connect(served) for _ in range(20)]
    for connection in silent[:10]:
        connection.sendall(post(infer_body())[:-5])
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    with InferenceClient(served.url) as client:
        np.testing.assert_array_equal(client.infer(MODEL, {"x": X})["y"], X + 1)
    for connection in silent[10:]:
        connection.close()


@settings(max_examples=150, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.one_of(
        st.binary(max_size=400),
        st.builds(lambda junk: post(junk), st.binary(max_size=200)),
        st.builds(
            lambda junk, length: post(junk, Inference_Header_Content_Length=length),
            st.binary(max_size=200),
            st.integers(-5, 300),
        ),
        st.builds(
            lambda at, byte: post(infer_body())[:at] + bytes([byte]) + post(infer_body())[at + 1 :],
            st.integers(0, 150),
            st.integers(0, 255),
        ),
    )
)
def test_random_bytes_never_crash_the_worker(served: ServingRig, data: bytes):
    pid = served.pid
    with connect(served) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
    assert served.pid == pid
    with InferenceClient(served.url) as client:
        assert client.ready()


def test_many_clients_at_once_get_their_own_answers(served: ServingRig):
    wrong: list[float] = []

    def ask(value: float) -> None:
        with InferenceClient(served.url) as client:
            for _ in range(30):
                answer = client.infer(MODEL, {"x": np.full((1, 4), value, np.float32)})["y"]
                if not (answer == value + 1).all():
                    wrong.append(value)

    threads = [threading.Thread(target=ask, args=(float(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("policy", ["fail", "flag", "pass"])
def test_values_that_are_not_finite_follow_the_handovers_policy(policy: str, rig: ServingRig, tmp_path):
    rig.serve(small_bundle(tmp_path / "b", divide=True, nan_policy=policy))
    zero = np.zeros((1, 4), np.float32)
    with InferenceClient(rig.url) as client:
        if policy == "fail":
            with pytest.raises(EdgeopsError) as caught:
                client.infer(MODEL, {"x": zero})
            assert caught.value.code == "E-INFER-VALUES"
        else:
            assert np.isinf(client.infer(MODEL, {"x": zero})["y"]).all()
        np.testing.assert_array_equal(client.infer(MODEL, {"x": X})["y"], (X + 1) / X)
    _, _, body = exchange(rig, post(infer_body(data=[0, 0, 0, 0])))
    document = json.loads(body)
    if policy == "flag":
        assert document["parameters"] == {"non_finite": True}
    counted = sum(window.errors.get("E-INFER-VALUES", 0) for window in rig.counted_to_the_end())
    assert counted == (0 if policy == "pass" else 2)


def test_what_was_served_is_counted_on_the_bundles_bins(rig: ServingRig, bundle):
    rig.serve(bundle)
    with InferenceClient(rig.url) as client:
        for _ in range(70):
            client.infer(MODEL, {"x": np.array([[-1, 1, 6, 20]], np.float32)})
        with pytest.raises(EdgeopsError):
            client.infer(MODEL, {"x": X[0]})
    windows = [window for window in rig.counted_to_the_end() if window.requests or window.errors]
    assert sum(window.requests for window in windows) == 70
    assert sum(window.latency_ms.count for window in windows) == 70
    assert [sum(counts) for counts in zip(*(w.inputs["x"] for w in windows), strict=True)] == [70, 70, 70, 70]
    # y = x + 1: 0, 2, 7, 21; the edges are 0, 5, 10.
    assert [sum(counts) for counts in zip(*(w.outputs["y"] for w in windows), strict=True)] == [0, 140, 70, 70]
    assert sum(window.errors.get("E-RUNTIME-INPUT", 0) for window in windows) == 1
