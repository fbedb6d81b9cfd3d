"""A set of two real bundles on a real agent: what fails in one keeps, or takes back, the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from adder_bundles import MODEL, small_bundle
from fake_fleet import Agent, FakeFleet, wait_for

from edgeops.client.inference import InferenceClient
from edgeops.contracts.deployment import Component, DeploymentState
from edgeops.contracts.errors import EdgeopsError

pytestmark = pytest.mark.timeout(600)
OTHER = "second"


class Scene:
    """A device that serves release 1.1.0 of both models, which add 1."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.fleet = FakeFleet(folder / "fleet")
        self.agent = Agent(self.fleet, folder / "device", "--confirm-after-s", "1").start()
        self.fleet.desire(self.release(MODEL, 1), self.release(OTHER, 1))
        self.wait(DeploymentState.CONFIRMED, DeploymentState.CONFIRMED)

    def release(self, model: str, number: int, *, lie: float = 0.0, divide: bool = False) -> Component:
        folder = self._folder / f"{model}-{number}"
        bundle = small_bundle(folder, add=float(number), lie=lie, divide=divide, model=model)
        return self.fleet.publish(bundle, f"1.{number}.0", number)

    def wait(self, state: DeploymentState, other: DeploymentState) -> None:
        self.fleet.wait_state(state, name=MODEL)
        self.fleet.wait_state(other, name=OTHER)

    def added(self) -> tuple[float, float]:
        return self.agent.added(MODEL), self.agent.added(OTHER)

    def codes(self) -> list[str | None]:
        reports = [self.fleet.component(name) for name in (MODEL, OTHER)]
        return [
            report.failure.code if report is not None and report.failure is not None else None for report in reports
        ]

    def close(self) -> None:
        self.agent.stop()
        self.fleet.stop()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


def as_set(*components: Component) -> list[Component]:
    return [msgspec.structs.replace(component, set_name="reading") for component in components]


def test_a_set_of_real_bundles_switches_or_stays_as_one(scene: Scene):
    good, bad = scene.release(MODEL, 2), scene.release(OTHER, 2, lie=1.0)
    scene.fleet.desire(*as_set(good, bad))
    scene.wait(DeploymentState.FAILED, DeploymentState.FAILED)
    assert scene.codes() == ["E-SET", "E-SELFTEST-GOLDEN"]
    assert scene.added() == (1, 1)
    # Negative control: the same two without the set.
    scene.fleet.desire(good, bad)
    scene.wait(DeploymentState.CONFIRMED, DeploymentState.FAILED)
    assert scene.added() == (2, 1)
    scene.fleet.desire(*as_set(scene.release(MODEL, 3), scene.release(OTHER, 3)))
    scene.wait(DeploymentState.CONFIRMED, DeploymentState.CONFIRMED)
    assert scene.added() == (3, 3)


def test_a_bundle_that_fails_in_its_trial_takes_its_set_back(scene: Scene):
    scene.agent.stop()
    scene.agent.options = ("--confirm-after-s", "30")
    scene.agent.start()
    scene.fleet.desire(*as_set(scene.release(MODEL, 2), scene.release(OTHER, 2, divide=True)))
    scene.wait(DeploymentState.TRIAL, DeploymentState.TRIAL)
    wait_for(lambda: scene.agent.added(MODEL) == 2, "the new bundle does not serve")
    facts = scene.agent.facts()
    assert facts is not None
    with InferenceClient(facts["endpoints"][OTHER]) as client:
        wait_for(lambda: client.metadata(OTHER)["versions"] == ["1.2.0"], "the other new bundle does not serve")
        for _ in range(20):
            with pytest.raises(EdgeopsError):
                client.infer(OTHER, {"x": np.zeros((1, 4), np.float32)})
    scene.wait(DeploymentState.FAILED, DeploymentState.FAILED)
    assert scene.codes() == ["E-SET", "E-TRIAL"]
    assert scene.added() == (1, 1)
