"""Words of rollouts that the control plane and its clients share."""

from __future__ import annotations

from edgeops.contracts.wire import WireEnum


class RolloutState(WireEnum):
    """Where a rollout stands."""

    DRAFT = "draft"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    ABORTED = "aborted"
    SUPERSEDED = "superseded"
    REVERTED = "reverted"
    SUCCEEDED = "succeeded"
    UNKNOWN = "unknown"


ENDED_STATES = frozenset(
    {
        RolloutState.STOPPED,
        RolloutState.ABORTED,
        RolloutState.SUPERSEDED,
        RolloutState.REVERTED,
        RolloutState.SUCCEEDED,
    }
)
