"""The one place that gives a unit a new desired state: a generation above every one that was ever used."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from sqlalchemy import ScalarSelect, func, select
from sqlalchemy.orm import Session

from edgeops.contracts.deployment import Component
from edgeops.control.models import Generation, Unit

_COMPONENTS = msgspec.json.Decoder(tuple[Component, ...])


def components_of(unit: Unit) -> tuple[Component, ...]:
    """Return what the unit should hold."""
    return components_in(unit.desired_components)


def components_in(data: bytes) -> tuple[Component, ...]:
    """Return the components of a desired state as it rests in a row."""
    return _COMPONENTS.decode(data)


def newest_generation() -> ScalarSelect[int | None]:
    """Return a column for queries of units: the newest generation that a row's unit was ever given; NULL: none."""
    of_the_row = (Generation.connection == Unit.connection, Generation.unit == Unit.unit)
    return select(func.max(Generation.generation)).where(*of_the_row).correlate(Unit).scalar_subquery()


def assign(
    session: Session,
    unit: Unit,
    component: Component,
    *,
    cause: str,
    now_s: float,
    override_holds: bool = False,
    newest: int | None = None,
) -> int:
    """Give a unit a component in place of the one of that name, as a new generation, to be published after commit.

    Args:
        session: In a transaction that writes.
        unit: The unit.
        component: What it should hold.
        cause: For people.
        now_s: Clock.
        override_holds: It is not to wait for maintenance window, application, temperature and the like.
        newest: `newest_generation` of the unit, 0 where it has none; None: it is looked for.

    Returns:
        The generation. It is above all that the registry gave out and all that the device says it has seen, so that
        it rises also after the registry was restored from a backup.
    """
    others = (have for have in components_of(unit) if have.name != component.name)
    return reissue(
        session, unit, (*others, component), cause=cause, now_s=now_s, override_holds=override_holds, newest=newest
    )


def reissue(
    session: Session,
    unit: Unit,
    components: tuple[Component, ...],
    *,
    cause: str,
    now_s: float,
    override_holds: bool = False,
    newest: int | None = None,
) -> int:
    """Give a unit a whole desired state as a new generation; return the generation. Arguments as of `assign`."""
    if newest is None:
        newest = session.scalar(
            select(func.max(Generation.generation)).where(
                Generation.connection == unit.connection, Generation.unit == unit.unit
            )
        )
    generation = max(unit.desired_generation, unit.observed_generation, newest or 0) + 1
    data = msgspec.json.encode(components, order="sorted")
    session.add(
        Generation(
            connection=unit.connection,
            unit=unit.unit,
            generation=generation,
            components=data,
            cause=cause,
            created_at_s=now_s,
        )
    )
    unit.desired_generation = generation
    unit.desired_components = data
    unit.override_holds = override_holds
    unit.publish_wanted += 1
    return generation


def previous_component(
    session: Session, unit: Unit, name: str, *, below: int, but_not: Collection[str] = ()
) -> Component | None:
    """Return what a unit was to hold under a name before a generation; None: nothing.

    Args:
        session: A transaction.
        unit: The unit.
        name: Of the component.
        below: The generation.
        but_not: Releases that do not count: what the unit was to hold before those does.
    """
    while True:
        found = session.execute(
            select(Generation.generation, Generation.components)
            .where(
                Generation.connection == unit.connection, Generation.unit == unit.unit, Generation.generation < below
            )
            .order_by(Generation.generation.desc())
            .limit(1)
        ).one_or_none()
        if found is None:
            return None
        held = next((part for part in components_in(found.components) if part.name == name), None)
        if held is None or held.release not in but_not:
            return held
        below = found.generation


def new_unit(connection: str, unit: str, *, profile: str, now_s: float) -> Unit:
    """Return the row of a unit that has neither reported nor been told anything."""
    return Unit(
        connection=connection,
        unit=unit,
        profile=profile,
        labels={},
        added_at_s=now_s,
        boot_id="",
        seq=0,
        observed_generation=0,
        reported=None,
        reported_at_s=None,
        desired_generation=0,
        desired_components=b"[]",
        override_holds=False,
        publish_wanted=0,
        publish_done=0,
        published_at_s=None,
        published_until_s=None,
    )
