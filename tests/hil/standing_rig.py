"""A served fleet with one device, and a rig's daemon before it; for tests of group 0 with real parts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil
from adder_bundles import MODEL, small_bundle
from fake_device import FakeDevice, join
from served_fleet import BROKERS, Serving, wait_for

from edgeops.client.api import Api
from edgeops.client.rollout_resources import RolloutInfo, RolloutRigInfo, RolloutWish
from edgeops.contracts.rollouts import ENDED_STATES, RolloutState
from edgeops.releases import assemble, publish, rig_results
from edgeops.releases.bundles import seal
from edgeops.trust.founding import make_fleet
from edgeops.trust.publisher import Publisher

PROFILE = "generic-x86-64"
RIG = """name = "bench"
title = "A bench"

[[boards]]
name = "here"
kind = "local"
profile = "generic-x86-64"
"""
QUICK = ("--check", "golden", "--runs", "5")


def publish_adder(home: Path, folder: Path, version: str, *, more: Sequence[Path] = (), **made: Any) -> None:
    """Publish a release of a model that adds, for this machine, with more bundles of it."""
    whole = small_bundle(folder / version, profile=PROFILE, **made)
    bundle = seal(whole.directory, msgspec.structs.replace(whole.manifest, arch="x86_64"))
    assemble.create(home, [bundle.directory, *more], version=version)
    publish.publish(home, MODEL, version)


class StandingRig:
    """`edgeops serve`, a device that confirms all it is given, and `edgeops hil serve`.

    Args:
        folder: A new folder.
        releases: Version → how its bundle is made.
        options: Of the daemon.
        boards: Of the rig, beside this machine.
        serve: Further options of `edgeops serve`.
    """

    def __init__(
        self,
        folder: Path,
        releases: dict[str, dict[str, Any]],
        options: tuple[str, ...] = QUICK,
        boards: str = "",
        serve: tuple[str, ...] = (),
    ) -> None:
        self.folder, self.options, self.home = folder, options, folder / "home"
        make_fleet(self.home, "f1")
        for version, made in releases.items():
            publish_adder(self.home, folder / "bundles", version, **made)
        # No rollout of this fleet goes around the rig.
        self.serving = Serving(self.home, BROKERS[-1], "--rig", "bench", *serve)
        self.serving.start()
        self.daemon: subprocess.Popen[bytes] | None = None
        (folder / "bench.toml").write_text(RIG + boards)
        # Locks of boards lie in the cache: no other test's run, and no person's, is in the way.
        places = {"EDGEOPS_RIG_KEYS": folder / "keys", "EDGEOPS_CACHE": folder / "cache"}
        self.environment = {**os.environ, **{name: str(place) for name, place in places.items()}}
        self.token = self.api.create_token(name="bench", kind="rig").token
        device = join(folder / "device", self.api.create_token(profile=PROFILE).token, profile=PROFILE, name="edge-1")
        key = Publisher(self.home).desired_signer().public_key
        self.device = FakeDevice(folder / "device", device, key).start()

    @property
    def api(self) -> Api:
        return self.serving.api

    def trust_key(self) -> None:
        pem = self.folder / "bench.pem"
        pem.write_bytes(self.edgeops("hil", "key", str(self.folder / "bench.toml")))
        rig_results.trust(self.home, "bench", pem)

    def edgeops(self, *words: str, status: int = 0) -> bytes:
        done = subprocess.run(
            [sys.executable, "-m", "edgeops", *words], env=self.environment, capture_output=True, check=False
        )
        assert done.returncode == status, (done.stdout, done.stderr)
        return done.stdout + done.stderr

    def start(self) -> subprocess.Popen[bytes]:
        command = ["hil", "serve", str(self.folder / "bench.toml"), "--state", str(self.folder / "state")]
        self.daemon = subprocess.Popen(
            [sys.executable, "-m", "edgeops", *command, "--token", self.token, "--verbose", *self.options],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "daemon.log").open("ab"),
        )
        wait_for(lambda: any(rig.online and rig.boards for rig in self.api.rigs()), "the rig does not come")
        return self.daemon

    def roll_out(self, version: str, **wish: Any) -> int:
        made = RolloutWish(model=MODEL, version=version, start=True, **wish)
        return self.api.create_rollout(made).id

    def rig_of(self, rollout_id: int) -> RolloutRigInfo:
        return self.api.rollout(rollout_id).rigs[0]

    def ended(self, rollout_id: int, within_s: float = 0.0) -> RolloutInfo:
        def rests() -> RolloutInfo | None:
            rollout = self.api.rollout(rollout_id)
            return rollout if rollout.state in ENDED_STATES or rollout.state == RolloutState.PAUSED else None

        deadline_s = time.monotonic() + within_s
        while rests() is None and time.monotonic() < deadline_s:
            time.sleep(0.2)
        found: RolloutInfo = wait_for(rests, "the rollout does not rest")
        return found

    def run_process(self) -> psutil.Process:
        """The process that runs a release now."""
        assert self.daemon is not None
        daemon = psutil.Process(self.daemon.pid)
        found: list[psutil.Process] = wait_for(daemon.children, "no run has begun")
        return found[0]

    def close(self) -> None:
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.terminate()
            self.daemon.wait(60)
        self.device.stop()
        self.serving.stop()
