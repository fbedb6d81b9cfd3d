"""Which units a rollout is for, devices and those behind them: by name, or by what they are."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from edgeops.contracts.deployment import DeploymentState
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.release import Release
from edgeops.contracts.wire import Declared, decode
from edgeops.control.groups import manage as groups
from edgeops.control.models import Rollout, RolloutMember, RolloutProfile
from edgeops.control.rollout.order import Candidate
from edgeops.control.units import Subject, enrolled, meant


class Selection(Declared, frozen=True, kw_only=True):
    """All devices that the release has a bundle for, narrowed by all that is given.

    Args:
        devices: Names of devices, each with the units behind it, or of single units.
        profiles: Profiles, any of them.
        labels: Labels, all of them.
        where: A query; a device that joins later must fulfil it too.
        group: A named group; for who joins later, as it is then.
    """

    devices: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    where: str = ""
    group: str = ""


def selection_text(selection: Selection) -> bytes:
    """Return the form in which a selection rests in a row."""
    return msgspec.json.encode(selection, order="sorted")


def read_selection(data: bytes) -> Selection:
    """Read it back.

    Raises:
        EdgeopsError: E-WIRE-MALFORMED.
    """
    return decode(data, Selection, what="rollout selection")


def selected(session: Session, selection: Selection, subjects: Sequence[Subject], now_s: float) -> list[Subject]:
    """Return those units that are selected by what they are, not by name.

    Raises:
        EdgeopsError: E-QUERY or E-GROUP; the query cannot be read, or the group is not there.
    """
    chosen = [
        subject
        for subject in subjects
        if (not selection.profiles or subject.profile in selection.profiles)
        and all(subject.labels.get(key) == value for key, value in selection.labels.items())
    ]
    if selection.where:
        names = set(groups.found(chosen, selection.where, now_s))
        chosen = [subject for subject in chosen if subject.name in names]
    if selection.group:
        names = set(groups.members(session, groups.group(session, selection.group), now_s))
        chosen = [subject for subject in chosen if subject.name in names]
    return chosen


def candidates(session: Session, release: Release, selection: Selection, now_s: float) -> list[Candidate]:
    """Return the units that a selection means, of those that the release has a bundle for.

    Raises:
        EdgeopsError: E-DEVICE-UNKNOWN; a named device is not enrolled. E-ROLLOUT-INVALID; the release has no bundle
            for a named device. E-QUERY or E-GROUP.
    """
    bundled = {target.profile for target in release.targets}
    everyone = enrolled(session)
    named = meant(everyone, selection.devices) if selection.devices else everyone
    usable = [one for one in named if one.profile in bundled]
    for name in selection.devices:
        profiles = {one.profile for one in meant(named, [name])}
        if profiles.isdisjoint(bundled):
            raise EdgeopsError(
                "E-ROLLOUT-INVALID",
                f"{release.model} {release.version} has no bundle for {name}'s profile {', '.join(sorted(profiles))}",
                f"It has bundles for: {', '.join(sorted(bundled))}.",
            )
    return [
        Candidate(one.unit.connection, one.unit.unit, one.profile)
        for one in selected(session, selection, usable, now_s)
    ]


def profiles_of(session: Session, rollout_id: int) -> list[str]:
    """Return the profiles that a rollout has a bundle for and that no gate stopped."""
    found = select(RolloutProfile.profile).where(
        RolloutProfile.rollout_id == rollout_id, RolloutProfile.stopped_at_s.is_(None)
    )
    return list(session.scalars(found))


def new_member(rollout: Rollout, position: int, candidate: Candidate, *, arm: str = "") -> RolloutMember:
    """Return the row of a unit that waits for its group."""
    return RolloutMember(
        rollout_id=rollout.id,
        connection=candidate.connection,
        unit=candidate.unit,
        position=position,
        profile=candidate.profile,
        component=rollout.model,
        generation=None,
        first_generation=None,
        attempts=0,
        arm=arm,
        reached=False,
        state=DeploymentState.IDLE,
        step=0,
        code=None,
        detail="",
        changed_at_s=None,
    )
