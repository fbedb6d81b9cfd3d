"""A rig before a control plane that is split over one PostgreSQL: two workers roll out, and one of them dies."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
from served_fleet import wait_for
from standing_rig import StandingRig
from test_roles import Worker, needs_mosquitto, on_postgresql

from edgeops.contracts.rollouts import RolloutState
from hil.reservation import Reservation

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the bundle is for x86-64: run it there"),
]


@needs_mosquitto
@on_postgresql
def test_two_workers_ask_a_rig_once_and_the_death_of_the_one_that_sent_it_is_no_matter(
    tmp_path: Path, registry_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = StandingRig(tmp_path, {"1.0.0": {}}, serve=("--role", "api", "--database", registry_url))
    monkeypatch.setenv("EDGEOPS_CACHE", rig.environment["EDGEOPS_CACHE"])
    workers = [Worker(rig.home, role, registry_url) for role in ("ingest", "rollout", "rollout")]
    try:
        rig.start()
        rig.trust_key()
        with Reservation("local"):
            rollout = rig.roll_out("1.0.0")
            wait_for(lambda: "in use" in rig.rig_of(rollout).said, "the rig was not asked")
            workers[1].end(kill=True)
        assert rig.ended(rollout).state == RolloutState.SUCCEEDED
        assert [(one.attempt, one.verdict) for one in rig.api.rollout_rigs(rollout)] == [(1, "passed")]
        acts = [entry.action for entry in rig.api.audit(100) if entry.subject == f"rollout/{rollout}"]
        assert (acts.count("rollout.ask-rigs"), acts.count("rollout.rig-verdict")) == (1, 1)
        assert rig.device.generations == [1]
    finally:
        for worker in workers:
            worker.end(kill=True)
        rig.close()
