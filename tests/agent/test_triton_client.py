"""The local endpoint as the public client of the Open Inference Protocol sees it: `tritonclient[http]`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from adder_bundles import MODEL
from serving_rig import ServingRig
from tritonclient.utils import InferenceServerException

X = np.array([[1, 2, 3, 4]], np.float32)


@pytest.fixture
def client(served: ServingRig) -> Iterator[Any]:
    client = triton.InferenceServerClient(served.url.removeprefix("http://"), concurrency=4)
    yield client
    client.close()


def given(tensor: np.ndarray, *, binary: bool = True, datatype: str = "FP32") -> list[Any]:
    made = triton.InferInput("x", list(tensor.shape), datatype)
    made.set_data_from_numpy(tensor, binary_data=binary)
    return [made]


def test_health_and_metadata_are_found(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1.0.0")
    assert not client.is_model_ready("other")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    described = client.get_model_metadata(MODEL)
    assert described["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [1, 4]}]
    assert described["versions"] == ["1.0.0"]


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("wanted", [True, False, None])
def test_tensors_go_either_way_as_binary_or_json(client: Any, asked: bool, wanted: bool | None) -> None:
    outputs = None if wanted is None else [triton.InferRequestedOutput("y", binary_data=wanted)]
    result = client.infer(MODEL, given(X, binary=asked), outputs=outputs, request_id="r7")
    np.testing.assert_array_equal(result.as_numpy("y"), X + 1)
    assert result.get_response()["id"] == "r7"
    assert result.get_response()["model_version"] == "1.0.0"


def test_requests_at_once_get_their_own_answers(client: Any) -> None:
    asked = [client.async_infer(MODEL, given(X * number)) for number in range(20)]
    for number, one in enumerate(asked):
        np.testing.assert_array_equal(one.get_result().as_numpy("y"), X * number + 1)


@pytest.mark.parametrize(
    ("feeds", "code"),
    [
        (lambda: given(X[:, :3].copy()), "E-RUNTIME-INPUT"),
        (lambda: given(X.astype(np.float64), datatype="FP64"), "E-RUNTIME-INPUT"),
        (lambda: [*given(X), *given(X)], "E-RUNTIME-INPUT"),
        (list, "E-RUNTIME-INPUT"),
    ],
    ids=["shape", "datatype", "twice", "none"],
)
def test_what_is_wrong_is_said_with_its_code_and_the_client_goes_on(client: Any, feeds: Any, code: str) -> None:
    with pytest.raises(InferenceServerException, match=code) as caught:
        client.infer(MODEL, feeds())
    assert caught.value.status() == "400"
    np.testing.assert_array_equal(client.infer(MODEL, given(X)).as_numpy("y"), X + 1)


def test_a_compressed_request_is_refused_not_guessed(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="E-INFER-REQUEST"):
        client.infer(MODEL, given(X), request_compression_algorithm="gzip")
