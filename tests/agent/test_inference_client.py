"""The client over HTTP against servers that are none, or die while they answer: an error with a code, never another."""

from __future__ import annotations

import socket
import threading

import numpy as np
import pytest
from adder_bundles import MODEL
from serving_rig import ServingRig

from edgeops.client.inference import InferenceClient
from edgeops.contracts.errors import EdgeopsError

X = np.array([[1, 2, 3, 4]], np.float32)


class Web:
    """Answers each HTTP request on a connection of its own with what it is told to.

    Args:
        says: Its answers, one after the other; the last one again and again.
    """

    def __init__(self, *says: bytes) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._says = list(says)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            client, _ = self._listener.accept()
            with client:
                client.recv(1 << 16)
                client.sendall(self._says.pop(0) if len(self._says) > 1 else self._says[0])


@pytest.mark.parametrize(
    "says",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n\xff\xff\xff", b"HTTP/9.9 ?\r\n\r\n", b"", b"\x00" * 70000,
        b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n[]",
        b'HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n{"outputs":["x"]}',
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"[" * 100000,
    ],
    ids=["cut off", "a list", "not UTF-8", "another version", "nothing", "noise", "odd refusal", "odd output", "deep"],
)  # fmt: skip
def test_a_client_over_http_survives_what_is_no_server(says: bytes) -> None:
    client = InferenceClient(Web(says).url)
    for ask in (lambda: client.infer(MODEL, {"x": X}), lambda: client.states(MODEL)):
        with pytest.raises(EdgeopsError) as caught:
            ask()
        assert caught.value.code in ("E-NET-RESPONSE", "E-NET-UNREACHABLE")
    assert client.ready() is (b"200 OK" in says and b"100\r" not in says)


@pytest.mark.parametrize(
    ("url", "token"),
    [("http://h:99999", None), ("http://h:x", None), ("http://[::1", None), ("ftp://h", None), ("http://h", "a\nb")],
)
def test_an_address_or_token_that_is_none_is_told_at_once(url: str, token: str | None) -> None:
    with pytest.raises(EdgeopsError) as caught:
        InferenceClient(url, token=token)
    assert caught.value.code == "E-CONFIG"


@pytest.mark.parametrize("name", ["a b", "a\r\nHost: x", "größe", "../..", "a?b", ""])
def test_a_model_of_an_odd_name_is_not_here(served: ServingRig, name: str) -> None:
    with InferenceClient(served.url) as client:
        with pytest.raises(EdgeopsError) as caught:
            client.infer(name, {"x": X})
        assert caught.value.code == "E-INFER-MODEL"
        np.testing.assert_array_equal(client.infer(MODEL, {"x": X})["y"], X + 1)


GOOD = b'{"outputs":[{"name":"y","datatype":"FP32","shape":[1,4],"data":[2,3,4,5]}]}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(GOOD) + GOOD


def test_an_answer_that_was_cut_off_is_told_as_such_and_costs_that_request_only() -> None:
    """As by a worker that is killed while it answers."""
    with InferenceClient(Web(ANSWER, ANSWER[:-10], ANSWER).url) as client:
        np.testing.assert_array_equal(client.infer(MODEL, {"x": X})["y"], X + 1)
        with pytest.raises(EdgeopsError) as caught:
            client.infer(MODEL, {"x": X})
        assert caught.value.code == "E-NET-UNREACHABLE"
        np.testing.assert_array_equal(client.infer(MODEL, {"x": X})["y"], X + 1)
