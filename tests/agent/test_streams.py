"""Models with state: the client carries it from call to call, whatever it reaches the model by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from adder_bundles import MODEL, small_bundle
from serving_rig import ServingRig

from edgeops.client.inference import InferenceModel, Stream, open_model
from edgeops.contracts.errors import EdgeopsError
from edgeops.releases.bundles import Bundle

ONES = np.ones((1, 4), np.float32)


@pytest.fixture(scope="module")
def summing(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """`y` = `x` + `sum`, where `next` = `y` is the next call's `sum`."""
    return small_bundle(tmp_path_factory.mktemp("bundle") / "summing", add=0.0, state=True)


@pytest.fixture(scope="module")
def running(summing: Bundle) -> Iterator[ServingRig]:
    rig = ServingRig()
    rig.serve(summing)
    yield rig
    rig.close()


@pytest.fixture(params=["http", "socket", "in process"])
def client(request: pytest.FixtureRequest, running: ServingRig, summing: Bundle) -> Iterator[InferenceModel]:
    address = {"http": running.url, "socket": running.socket, "in process": str(summing.directory)}[request.param]
    client = open_model(address)
    yield client
    client.close()


def test_a_streams_state_goes_from_call_to_call(client: InferenceModel) -> None:
    stream = Stream(client, MODEL)
    for expected in (1, 2, 3):
        answer = stream.infer({"x": ONES})
        assert list(answer) == ["y"]
        np.testing.assert_array_equal(answer["y"], expected * ONES)
    stream.reset()
    np.testing.assert_array_equal(stream.infer({"x": ONES})["y"], ONES)


def test_streams_of_one_model_do_not_mix(client: InferenceModel) -> None:
    one, other = Stream(client, MODEL), Stream(client, MODEL)
    one.infer({"x": ONES})
    np.testing.assert_array_equal(other.infer({"x": 5 * ONES})["y"], 5 * ONES)
    np.testing.assert_array_equal(one.infer({"x": ONES})["y"], 2 * ONES)


def test_a_call_that_fails_leaves_the_state_as_it_was(client: InferenceModel) -> None:
    stream = Stream(client, MODEL)
    stream.infer({"x": ONES})
    with pytest.raises(EdgeopsError) as caught:
        stream.infer({"x": ONES[:, :2]})
    assert caught.value.code == "E-RUNTIME-INPUT"
    np.testing.assert_array_equal(stream.infer({"x": ONES})["y"], 2 * ONES)


def test_a_model_without_state_is_no_stream(served: ServingRig) -> None:
    for address in (served.url, served.socket):
        client = open_model(address)
        with pytest.raises(EdgeopsError, match="no state"):
            Stream(client, MODEL)
        client.close()


@pytest.mark.full
def test_a_voice_detector_hears_the_same_as_in_plain_onnxruntime(tmp_path: Path) -> None:
    """silero-vad, an LSTM, compiled and served: 150 calls in a row against the model as its makers ship it."""
    import onnxruntime

    from benchmarks import models
    from benchmarks.models.silero_vad import _sound
    from edgeops import compiler
    from edgeops.releases.bundles import open_bundle

    folder = models.handover("silero-vad")
    compiler.compile(folder, ["generic-x86-64"], tmp_path / "built")
    bundle = open_bundle(tmp_path / "built" / "generic-x86-64" / "bundle")
    source = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    rate, state, context = np.array(16_000, np.int64), np.zeros((2, 1, 128), np.float32), np.zeros((1, 64), np.float32)
    rig = ServingRig()
    try:
        rig.serve(bundle)
        client = open_model(rig.socket)
        stream = Stream(client, "silero-vad")
        heard = []
        for chunk in _sound().reshape(-1, 1, 512)[:150]:
            x = np.concatenate([context, chunk], axis=1)
            expected, state = source.run(None, {"input": x, "state": state, "sr": rate})
            heard.append((expected.item(), stream.infer({"input": x, "sr": rate})["output"].item()))
            context = chunk[:, -64:]
        client.close()
    finally:
        rig.close()
    expected, got = np.array(heard).T
    assert np.corrcoef(expected, got)[0, 1] > 0.99
    assert ((expected > 0.5) == (got > 0.5)).mean() > 0.97
