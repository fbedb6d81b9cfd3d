"""Which devices a rollout is for: by name, or by what they are."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from edgeops.contracts.deployment import DeploymentState
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.release import Release
from edgeops.contracts.topics import SELF_UNIT
from edgeops.contracts.wire import Declared, decode
from edgeops.control.groups import manage as groups
from edgeops.control.models import Device, Rollout, RolloutMember, RolloutProfile
from edgeops.control.rollout.order import Candidate


class Selection(Declared, frozen=True, kw_only=True):
    """All devices that the release has a bundle for, narrowed by all that is given.

    Args:
        devices: Names.
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


def selected(session: Session, selection: Selection, devices: Sequence[Device], now_s: float) -> list[Device]:
    """Return those devices that are selected.

    Raises:
        EdgeopsError: E-QUERY or E-GROUP; the query cannot be read, or the group is not there.
    """
    chosen = [
        device
        for device in devices
        if (not selection.devices or device.connection in selection.devices)
        and (not selection.profiles or device.profile in selection.profiles)
        and all(device.labels.get(key) == value for key, value in selection.labels.items())
    ]
    if selection.where:
        names = set(groups.found(session, chosen, selection.where, now_s))
        chosen = [device for device in chosen if device.connection in names]
    if selection.group:
        names = set(groups.members(session, groups.group(session, selection.group), now_s))
        chosen = [device for device in chosen if device.connection in names]
    return chosen


def candidates(session: Session, release: Release, selection: Selection, now_s: float) -> list[Candidate]:
    """Return the devices that a selection means.

    Raises:
        EdgeopsError: E-DEVICE-UNKNOWN; a named device is not enrolled. E-ROLLOUT-INVALID; the release has no bundle
            for a named device. E-QUERY or E-GROUP.
    """
    bundled = {target.profile for target in release.targets}
    devices = session.scalars(select(Device).where(Device.revoked_at_s.is_(None))).all()
    by_name = {device.connection: device for device in devices}
    for name in selection.devices:
        if name not in by_name:
            raise EdgeopsError("E-DEVICE-UNKNOWN", f"there is no device {name!r}", "See `edgeops device list`.")
        if by_name[name].profile not in bundled:
            raise EdgeopsError(
                "E-ROLLOUT-INVALID",
                f"{release.model} {release.version} has no bundle for {name}'s profile {by_name[name].profile}",
                f"It has bundles for: {', '.join(sorted(bundled))}.",
            )
    return [
        Candidate(device.connection, SELF_UNIT, device.profile)
        for device in selected(session, selection, [one for one in devices if one.profile in bundled], now_s)
    ]


def profiles_of(session: Session, rollout_id: int) -> list[str]:
    """Return the profiles that a rollout has a bundle for and that no gate stopped."""
    found = select(RolloutProfile.profile).where(
        RolloutProfile.rollout_id == rollout_id, RolloutProfile.stopped_at_s.is_(None)
    )
    return list(session.scalars(found))


def new_member(rollout: Rollout, position: int, device: Candidate | Device) -> RolloutMember:
    """Return the row of a unit that waits for its group."""
    return RolloutMember(
        rollout_id=rollout.id,
        connection=device.connection,
        unit=device.unit if isinstance(device, Candidate) else SELF_UNIT,
        position=position,
        profile=device.profile,
        component=rollout.model,
        generation=None,
        first_generation=None,
        attempts=0,
        reached=False,
        state=DeploymentState.IDLE,
        step=0,
        code=None,
        detail="",
        changed_at_s=None,
    )
