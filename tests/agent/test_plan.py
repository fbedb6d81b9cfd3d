"""What a desired state means for a component."""

from __future__ import annotations

import msgspec
import pytest

from edgeops.agent.plan import Wish, event_at_start, event_for, repair_at_start
from edgeops.agent.states import MAX_ATTEMPTS, Effect, Event
from edgeops.agent.store import ComponentRecord
from edgeops.contracts.deployment import Component, ComponentKind, DeploymentState, Slot

OLD = Slot(release="1.0.0", digest="sha256:old", number=1)
NEW = Component(name="m", kind=ComponentKind.MODEL, release="1.1.0", target="m/1.1.0/p.edgeops", digest="sha256:new")
BACK = Component(name="m", kind=ComponentKind.MODEL, release="1.0.0", target="m/1.0.0/p.edgeops", digest="sha256:old")


def record(
    state: DeploymentState, want: Component | None = NEW, generation: int = 5, attempts: int = 1
) -> ComponentRecord:
    return ComponentRecord(name="m", state=state, want=want, generation=generation, attempts=attempts)


def test_a_new_release_is_wanted_once():
    assert event_for(record(DeploymentState.CONFIRMED, BACK, 4), Wish(NEW, 5), OLD) is Event.WANTED
    assert event_for(record(DeploymentState.DOWNLOADING), Wish(NEW, 5), OLD) is None


def test_what_runs_already_satisfies_at_once():
    assert event_for(record(DeploymentState.FAILED), Wish(BACK, 6), OLD) is Event.SATISFIED
    assert event_for(record(DeploymentState.TRIAL), Wish(BACK, 6), OLD) is Event.SATISFIED
    assert event_for(record(DeploymentState.CONFIRMED, BACK, 6), Wish(BACK, 6), OLD) is None


def test_the_same_bytes_under_another_version_go_the_whole_way():
    """Otherwise the device would serve 1.0.1 and go on saying 1.0.0."""
    relabelled = msgspec.structs.replace(BACK, release="1.0.1", target="m/1.0.1/p.edgeops")
    assert event_for(record(DeploymentState.CONFIRMED, BACK, 6), Wish(relabelled, 7), OLD) is Event.WANTED
    assert event_for(record(DeploymentState.DOWNLOADING, BACK, 6), Wish(relabelled, 7), None) is Event.WANTED


def test_another_components_generation_does_not_disturb_this_one():
    for state in (DeploymentState.HELD, DeploymentState.SELF_TEST, DeploymentState.TRIAL):
        assert event_for(record(state), Wish(NEW, 6), OLD) is Event.RENEWED


@pytest.mark.parametrize("state", [DeploymentState.FAILED, DeploymentState.REJECTED])
def test_what_failed_is_not_tried_again_until_the_generation_changes(state: DeploymentState):
    assert event_for(record(state), Wish(NEW, 5), OLD) is None
    assert event_for(record(state), Wish(NEW, 6), OLD) is Event.WANTED


def test_a_lost_bundle_is_fetched_again_within_the_budget():
    assert event_for(record(DeploymentState.CONFIRMED), Wish(NEW, 5), None) is Event.WANTED
    assert event_for(record(DeploymentState.CONFIRMED, attempts=MAX_ATTEMPTS), Wish(NEW, 5), None) is None


def test_a_component_that_is_not_desired_is_removed_once():
    assert event_for(record(DeploymentState.CONFIRMED), Wish(None, 6), OLD) is Event.UNWANTED
    assert event_for(ComponentRecord(name="m"), Wish(None, 6), None) is None


def test_a_bundle_that_kills_the_device_again_and_again_is_given_up():
    """The stated budget: after MAX_ATTEMPTS starts in self-test or trial the device goes back by itself."""
    assert event_at_start(record(DeploymentState.TRIAL, attempts=MAX_ATTEMPTS - 1)) is Event.RESTARTED
    assert event_at_start(record(DeploymentState.TRIAL, attempts=MAX_ATTEMPTS)) is Event.UNHEALTHY
    assert event_at_start(record(DeploymentState.SELF_TEST, attempts=MAX_ATTEMPTS)) is Event.TEST_FAILED
    assert event_at_start(record(DeploymentState.DOWNLOADING, attempts=99)) is Event.RESTARTED


NEW_SLOT = Slot(release="1.1.0", digest="sha256:new", number=2)


@pytest.mark.parametrize(
    ("state", "want", "effect"),
    [
        (DeploymentState.TRIAL, NEW, None),
        (DeploymentState.CONFIRMED, NEW, Effect.CONFIRM),
        (DeploymentState.CONFIRMED, BACK, Effect.REVERT),
        (DeploymentState.DOWNLOADING, NEW, Effect.GIVE_WAY),
        (DeploymentState.ROLLING_BACK, NEW, Effect.REVERT),
        (DeploymentState.IDLE, None, Effect.REVERT),
    ],
)
def test_a_trial_that_was_over_when_the_power_was_cut_ends_as_it_was_decided(
    state: DeploymentState, want: Component | None, effect: Effect | None
):
    assert repair_at_start(record(state, want), NEW_SLOT) is effect
    assert repair_at_start(record(state, want), None) is None
