"""How a rollout asks a rig to run a release, and what a rig says: of itself, and in answer."""

from __future__ import annotations

import msgspec

from edgeops.contracts.wire import Wire

# DSSE payload types.
RIG_COMMAND_TYPE = "application/vnd.edgeops.rig-command+json"
RIG_ANSWER_TYPE = "application/vnd.edgeops.rig-answer+json"
RIG_REPORT_TYPE = "application/vnd.edgeops.rig-report+json"

# What a rig says in `RigReport.features` if it runs releases for rollouts.
ROLLOUT_FEATURE = "rollout"
MAX_BUNDLES = 64
MAX_BOARDS = 256
# How long a rig may be asked for; it remembers for so long what it has answered.
MAX_VALID_S = 7 * 86400.0


class RigBundle(Wire, frozen=True, kw_only=True):
    """A bundle of the release: for which profile, its TUF target path, and its digest."""

    profile: str
    target: str
    digest: str


class RigCommand(Wire, frozen=True, kw_only=True):
    """Asks one rig to run a release on its boards, signed by the key of desired state.

    Args:
        fleet: The fleet.
        connection: The rig that is meant, and no other.
        unit: `self`.
        id: Of this command: the rig answers it once, however often it comes, and its result names it.
        issued_at_s: Control plane's clock.
        expires_at_s: Nothing is begun after this.
        rollout: Which rollout waits for it.
        attempt: How often that rollout has asked this rig, from 1: a higher one takes the place of a lower one.
        model: The model.
        version: The release.
        bundles: What to run: each on every board of its profile.
    """

    fleet: str
    connection: str
    unit: str
    id: str
    issued_at_s: float
    expires_at_s: float
    rollout: int
    attempt: int
    model: str
    version: str
    bundles: tuple[RigBundle, ...]
    schema_version: int = msgspec.field(default=1, name="schema")


class RigAnswer(Wire, frozen=True, kw_only=True):
    """A rig's answer, signed by the key of its connection.

    Args:
        fleet: The fleet.
        connection: The rig.
        unit: `self`.
        id: The command.
        statement: Its result (`contracts.rigs.RigResult`) in an envelope that the rig's own key signed; empty: it
            ran nothing.
        code: Why it ran nothing.
        what: The cause.
    """

    fleet: str
    connection: str
    unit: str
    id: str
    statement: str = ""
    code: str = ""
    what: str = ""
    schema_version: int = msgspec.field(default=1, name="schema")


class RigBoard(Wire, frozen=True, kw_only=True):
    """A board that a rig has."""

    name: str
    kind: str
    profile: str


class RigDoing(Wire, frozen=True, kw_only=True):
    """What a rig does for a command now, or what it waits for, in a line."""

    id: str
    said: str


class RigReport(Wire, frozen=True, kw_only=True):
    """What a rig says of itself, signed by the key of its connection.

    Args:
        fleet: The fleet.
        connection: The rig.
        unit: `self`.
        boot_id: Of this life of its daemon.
        seq: Counts its reports.
        at_s: Its clock.
        version: Its edgeops.
        boards: What it has.
        features: What it knows that older ones do not.
        doing: What it does now; None: nothing.
    """

    fleet: str
    connection: str
    unit: str
    boot_id: str
    seq: int
    at_s: float
    version: str
    boards: tuple[RigBoard, ...]
    features: tuple[str, ...] = ()
    doing: RigDoing | None = None
    schema_version: int = msgspec.field(default=1, name="schema")
