"""A registry with rigs and devices, and what the rigs say; for tests that need no broker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from registry_fleet import FLEET, add_devices, obey_all, open_registry, release
from securesystemslib.signer import CryptoSigner
from sqlalchemy import select

from edgeops.contracts.deployment import Presence
from edgeops.contracts.enrolment import ConnectionKind, EnrolmentToken, EnrolRequest
from edgeops.contracts.rig_runs import ROLLOUT_FEATURE, RigAnswer, RigBoard, RigCommand, RigDoing, RigReport
from edgeops.contracts.rigs import RIG_RESULT_TYPE, BoardResult, CheckResult, RigResult, Verdict
from edgeops.contracts.topics import parse_topic, presence_topic, unit_topic
from edgeops.contracts.wire import encode
from edgeops.control import enrolment
from edgeops.control.database import Database
from edgeops.control.enrolment import FirstTrust, TokenScope, issue_token
from edgeops.control.ingest.worker import Ingest
from edgeops.control.models import Device, RigRun, Rollout
from edgeops.control.rigs import runs
from edgeops.control.rollout import manage
from edgeops.control.rollout.decide import Action
from edgeops.control.rollout.execute import Step, advance
from edgeops.control.rollout.policy import Gates, Policy
from edgeops.control.rollout.selection import Selection
from edgeops.transport.mqtt import Message
from edgeops.trust import envelopes, keys
from edgeops.trust import reported as statements
from edgeops.trust.authority import FleetAuthority
from edgeops.trust.device import DeviceIdentity

NOW = 1_800_000_000.0
BOARDS = {"nuc": "intel-nuc", "pi": "raspberry-pi-4"}


class Link:
    """What would go to the broker."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def publish(self, topic: str, payload: bytes) -> object:
        self.sent.append(topic)
        return payload


class RigHouse:
    """Devices, the rigs `bench` and `lab` that have joined, and the worker that takes in what they say.

    Args:
        directory: For keys and certificates.
        registry: Where the registry is.
        like: One that was built: its registry has been copied, and its keys are used.
    """

    def __init__(
        self, directory: Path, registry: Path | str, *, devices: int = 6, like: RigHouse | None = None
    ) -> None:
        if like is not None:
            self.database, self.seq = Database(registry), like.seq
            self.authority, self.identities, self.rig_keys = like.authority, like.identities, dict(like.rig_keys)
            self._take_in()
            return
        self.database = open_registry(registry)
        add_devices(self.database, devices)
        self.authority = FleetAuthority.create(directory / "ca", FLEET)
        self.identities: dict[str, DeviceIdentity] = {}
        self.rig_keys: dict[str, CryptoSigner] = {}
        self.seq = 0
        self._take_in()
        for name in ("bench", "lab"):
            self.join(directory / name, name)
            self.report(name)
            self.online(name)

    def _take_in(self) -> None:
        self.ingest = Ingest(
            self.database, FLEET, lambda: None, rig_keys=lambda: {n: k.public_key for n, k in self.rig_keys.items()}
        )

    def join(self, directory: Path, name: str, **request: Any) -> None:
        trust = FirstTrust("https://x", FLEET, self.authority.ca_sha256, "0" * 64)
        scope = TokenScope(name=name, kind=ConnectionKind.RIG)
        token = issue_token(self.database, trust, scope, actor="test", now_s=NOW)
        identity = DeviceIdentity.create(directory)
        wish = EnrolRequest(
            secret=EnrolmentToken.from_text(token.text).secret, csr_pem=identity.csr_pem(name).decode(),
            **{"profile": "", "name": name, "kind": ConnectionKind.RIG, **request},
        )  # fmt: skip
        joined = enrolment.enrol(self.database, self.authority, wish, now_s=NOW)
        identity.install(joined.certificate_pem, self.authority.ca_pem)
        self.identities[name] = DeviceIdentity.load(directory)
        self.rig_keys[name] = keys.generate()

    def say(self, topic: str, payload: bytes, now_s: float = NOW) -> None:
        self.ingest.take([Message(topic, payload, False, lambda: None)], now_s=now_s)

    def online(self, name: str, is_online: bool = True, now_s: float = NOW) -> None:
        self.say(presence_topic(FLEET, name), encode(Presence(online=is_online, boot_id="b1")), now_s)

    def report(
        self, name: str, boards: dict[str, str] | None = None, *, doing: RigDoing | None = None, **more: Any
    ) -> tuple[str, bytes]:
        self.seq += 1
        said = RigReport(
            fleet=FLEET, connection=name, unit="self", at_s=NOW,
            boards=tuple(RigBoard(name=n, kind="local", profile=p) for n, p in (boards or BOARDS).items()), doing=doing,
            **{"boot_id": "b1", "seq": self.seq, "version": "0.1.0", "features": (ROLLOUT_FEATURE,), **more},
        )  # fmt: skip
        message = unit_topic(FLEET, name, "self", "reported"), statements.sign(said, self.identities[name].signer)
        self.say(*message)
        return message

    # Rollouts

    def begin(self, *rigs: str, version: str = "1.0.0", **policy: Any) -> int:
        made = Policy(
            groups=("34%", "100%"), gates=Gates(timeout_s=100), rigs=rigs or ("bench",),
            **{"rig_timeout_s": 1000.0, **policy},
        )  # fmt: skip
        return manage.create(
            self.database, release(version, int(version[0])), made, Selection(), actor="test", now_s=NOW, start=True,
            trusted_rigs=self.rig_keys,
        )  # fmt: skip

    def step(self, rollout_id: int, now_s: float = NOW) -> Step:
        """Take all steps that can be taken now; return the last."""
        while True:
            step = advance(self.database, rollout_id, now_s)
            assert step is not None, "the rollout does not run"
            if step.decision.action not in (Action.ASK_RIGS, Action.START_GROUP):
                return step

    def settle(self, rollout_id: int, now_s: float = NOW) -> None:
        """As `step`, and have devices confirm, until the rollout rests."""
        while (step := advance(self.database, rollout_id, now_s)) is not None:
            if step.decision.action is Action.WAIT and not obey_all(self.database, now_s):
                return

    def sent(self, now_s: float = NOW) -> list[str]:
        """The commands that go out now: ids."""
        link = Link()
        runs.send_waiting(self.database, FLEET, encode, link, now_s)  # type: ignore[arg-type]
        return [parse_topic(topic).id or "" for topic in link.sent]

    def run_of(self, name: str = "bench", rollout_id: int = 1) -> RigRun:
        with self.database.read() as session:
            return runs.newest(session, rollout_id)[name]

    def all_runs(self) -> list[RigRun]:
        with self.database.read() as session:
            return list(session.scalars(select(RigRun).order_by(RigRun.created_at_s, RigRun.attempt)))

    def command(self, run: RigRun) -> RigCommand:
        with self.database.read() as session:
            return runs.command_of(run, session.get_one(Rollout, run.rollout_id), FLEET)

    def rejected(self, name: str = "bench") -> tuple[int, str]:
        with self.database.read() as session:
            device = session.get_one(Device, name)
            return device.rejected_messages, device.rejected_last

    # Answers

    def result(self, run: RigRun, verdicts: dict[str, Verdict] | None = None, **changes: Any) -> RigResult:
        command = self.command(run)
        digests = {bundle.profile: bundle.digest for bundle in command.bundles}
        given = verdicts or dict.fromkeys((n for n, p in BOARDS.items() if p in digests), Verdict.PASSED)
        boards = tuple(board(name, command, verdict) for name, verdict in given.items())
        found = RigResult(
            rig=run.connection, run="r1", at_s=NOW, duration_s=1.0, edgeops="0.1.0", host="h", boards=boards,
            fleet=FLEET, command=run.id,
        )  # fmt: skip
        return msgspec.structs.replace(found, **changes)

    def answer(
        self,
        run: RigRun,
        result: RigResult | bytes | None,
        *,
        by: str = "",
        signed_by: CryptoSigner | None = None,
        **changes: Any,
    ) -> tuple[str, bytes]:
        name = by or run.connection
        if isinstance(result, RigResult):
            result = envelopes.seal(encode(result), RIG_RESULT_TYPE, signed_by or self.rig_keys[name])
        said = RigAnswer(fleet=FLEET, connection=name, unit="self", id=run.id, statement=(result or b"").decode())
        said = msgspec.structs.replace(said, **changes)
        return unit_topic(FLEET, name, "self", "res", run.id), statements.sign(said, self.identities[name].signer)

    def passes(self, name: str = "bench", rollout_id: int = 1) -> tuple[str, bytes]:
        run = self.run_of(name, rollout_id)
        message = self.answer(run, self.result(run))
        self.say(*message)
        return message


def board(name: str, command: RigCommand, verdict: Verdict, profile: str = "") -> BoardResult:
    profile = profile or BOARDS[name]
    bundle = next(one for one in command.bundles if one.profile == profile)
    check = CheckResult(check="golden", verdict=verdict, said="outputs differ by 3", code="E-SELFTEST-GOLDEN")
    return BoardResult(
        board=name, kind="local", profile=profile, model=command.model, release=command.version, digest=bundle.digest,
        checks=(CheckResult(check="boot", verdict=Verdict.PASSED, said="it answers"), check),
    )  # fmt: skip
