"""A real worker serves a model whose inputs may have any size: the agent's steps bring them to one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from adder_bundles import MODEL, VECTORS
from serving_rig import ServingRig

from edgeops.client.inference import InferenceClient, SocketClient
from edgeops.contracts.bundle import MANIFEST_NAME
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.handover import Cast, Reshape, Resize
from edgeops.contracts.tensors import TensorSpec
from edgeops.releases.bundles import Bundle, seal
from edgeops.runtimes.steps import apply

STEPS = (Cast(), Resize(height=2, width=2, interpolation="linear", antialias=True), Reshape(shape=(1, 4)))


@pytest.fixture(scope="module")
def varying(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The adder of four numbers, for pictures of any size."""
    folder = Path(shutil.copytree(bundle.directory, tmp_path_factory.mktemp("varying") / "bundle"))
    (folder / MANIFEST_NAME).unlink()
    pictures = np.random.default_rng(2).integers(0, 255, (VECTORS, 1, 6, 5, 1), dtype=np.uint8)
    np.save(folder / "golden" / "x.npy", pictures)
    np.save(folder / "golden" / "y.npy", np.stack([apply(STEPS, one) + np.float32(1) for one in pictures]))
    (binding,) = bundle.manifest.input_bindings
    bound = TensorSpec(name="x", dtype="float32", shape=(1, 4))
    return seal(
        folder,
        msgspec.structs.replace(
            bundle.manifest,
            inputs=(TensorSpec(name="x", dtype="uint8", shape=(1, -1, -1, 1)),),
            input_bindings=(msgspec.structs.replace(binding, bound=bound),),
            agent_steps={"x": STEPS},
            files={},
        ),
    )


@pytest.fixture(scope="module")
def serving(varying: Bundle) -> Iterator[ServingRig]:
    rig = ServingRig()
    rig.swap(varying, "1.0.0")
    yield rig
    rig.close()


@pytest.mark.parametrize("size", [(2, 2), (6, 5), (31, 7), (480, 640)])
def test_a_picture_of_any_size_is_answered_over_http(serving: ServingRig, size: tuple[int, int]):
    picture = np.random.default_rng(3).integers(0, 255, (1, *size, 1), dtype=np.uint8)
    with InferenceClient(serving.url) as client:
        answer = client.infer(MODEL, {"x": picture})["y"]
    np.testing.assert_allclose(answer, apply(STEPS, picture) + 1, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 0, 5, 1), (1, 5, 5, 3), (2, 5, 5, 1), (1, 2800, 3000, 1)])
def test_a_picture_that_does_not_fit_is_refused_and_the_next_is_answered(serving: ServingRig, shape: tuple[int, ...]):
    with InferenceClient(serving.url) as client:
        with pytest.raises(EdgeopsError) as caught:
            client.infer(MODEL, {"x": np.zeros(shape, np.uint8)})
        assert caught.value.code in ("E-RUNTIME-INPUT", "E-INFER-REQUEST")
        assert client.infer(MODEL, {"x": np.zeros((1, 3, 3, 1), np.uint8)})["y"].tolist() == [[1, 1, 1, 1]]


def test_the_unix_socket_says_to_ask_over_http(serving: ServingRig):
    with pytest.raises(EdgeopsError, match="ask over HTTP") as caught:
        SocketClient(Path(serving.socket.removeprefix("unix:")))
    assert caught.value.code == "E-INFER-MODEL"
