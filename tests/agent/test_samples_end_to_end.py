"""An operator types the command; a real control plane signs it, and a real agent gives its inputs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from adder_bundles import MODEL
from served_fleet import Serving, run, wait_for
from test_sigkill import Device, release, serving

from edgeops.client.inference import InferenceClient
from edgeops.client.rollout_resources import RolloutWish
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rollouts import RolloutState

__all__ = ["serving"]
pytestmark = pytest.mark.timeout(600)
NAME = "line-1"


@pytest.fixture
def device(serving: Serving, tmp_path: Path) -> Iterator[Device]:
    made = Device(serving, tmp_path, NAME)
    made.start()
    wait_for(lambda: list(serving.api.devices()), "the device does not join")
    wish = RolloutWish(model=MODEL, version=release(serving, tmp_path, 1), start=True)
    rollout = serving.api.create_rollout(wish).id
    wait_for(lambda: serving.api.rollout(rollout).state == RolloutState.SUCCEEDED, "the release did not arrive")
    yield made
    made.stop()


def test_inputs_come_to_the_operator_and_all_of_it_is_noted(serving: Serving, device: Device, tmp_path: Path) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(3, 1, 4)
    asked = run(serving, "device", "samples", NAME, MODEL, "--count", "3", "--within-s", "600", "--json")
    facts = json.loads((device.state / "agent.json").read_text())
    wait_for(lambda: serving.api.samples_state(NAME, asked["id"]).state == "accepted", "it is not taken up")
    with InferenceClient(facts["endpoints"][MODEL]) as client:
        for row in rows:
            client.infer(MODEL, {"x": row})
    out = tmp_path / "inputs"
    done = run(serving, "device", "samples", NAME, "--fetch", asked["id"], "--out", str(out), "--json")
    assert (done["state"], done["detail"]) == ("done", "3 requests")
    told = json.loads((out / "samples.json").read_text())
    assert [sample["release"] for sample in told] == ["1.1.0"] * 3
    assert np.array_equal([np.load(out / sample["inputs"]["x"]) for sample in told], rows)
    assert asked["id"] in run(serving, "device", "samples", NAME)
    actions = [entry.action for entry in serving.api.audit() if entry.action.startswith("samples")]
    assert actions == ["samples.fetch", "samples.ask"]
    with pytest.raises(EdgeopsError) as caught:
        run(serving, "device", "samples", NAME, "no-such-model", "--out", str(tmp_path / "other"))
    assert caught.value.code == "E-INFER-MODEL"
    with pytest.raises(EdgeopsError) as caught:
        run(serving, "device", "samples", NAME, "--fetch", "0a1b")
    assert caught.value.code == "E-COMMAND-UNKNOWN"
