"""The MQTT topics, one place for both ends. See docs/reference/topics.md."""

from __future__ import annotations

from typing import NamedTuple

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.names import check_name

PREFIX = "eo/v1"
DOWN_LEAVES = ("desired", "cmd")
UP_LEAVES = ("reported", "progress", "telemetry", "log", "res")
SELF_UNIT = "self"


class UnitTopic(NamedTuple):
    """A parsed topic of one unit: `eo/v1/{fleet}/d/{connection}/{unit}/{leaf}[/{id}]`."""

    fleet: str
    connection: str
    unit: str
    leaf: str
    id: str | None


def unit_topic(fleet: str, connection: str, unit: str, leaf: str, id: str | None = None) -> str:
    """Return the topic of one unit; `id` only for `cmd` and `res`.

    Raises:
        EdgeopsError: E-NAME; a part is not a valid name. E-TOPIC; no such leaf.
    """
    if leaf not in DOWN_LEAVES + UP_LEAVES or (id is not None) != (leaf in ("cmd", "res")):
        raise EdgeopsError("E-TOPIC", f"no topic {leaf!r} with id {id!r}")
    parts = [check_name(fleet, "fleet"), "d", check_name(connection, "connection"), check_name(unit, "unit"), leaf]
    if id is not None:
        parts.append(check_name(id, "command id"))
    return "/".join((PREFIX, *parts))


def presence_topic(fleet: str, connection: str) -> str:
    """Return the retained presence topic of one connection."""
    return f"{PREFIX}/{check_name(fleet, 'fleet')}/d/{check_name(connection, 'connection')}/presence"


def device_filters(fleet: str, connection: str) -> list[str]:
    """Return the filters that a device subscribes to: only its own desired state and commands."""
    own = f"{PREFIX}/{check_name(fleet, 'fleet')}/d/{check_name(connection, 'connection')}"
    return [f"{own}/+/desired", f"{own}/+/cmd/+"]


# What several workers may take in, each a part of it. The rest is small, and its order or its last word counts.
SHARED_LEAVES = ("progress", "telemetry")


def control_filters(fleet: str) -> list[str]:
    """Return the filters that the control plane subscribes to: everything that devices write."""
    devices = f"{PREFIX}/{check_name(fleet, 'fleet')}/d/+"
    return [
        *(f"{devices}/+/{leaf}" for leaf in ("reported", "progress", "telemetry", "log")),
        f"{devices}/+/res/+",
        f"{devices}/presence",
    ]


def parse_topic(topic: str) -> UnitTopic:
    """Parse a topic of a unit, or the presence topic (unit `self`, leaf `presence`).

    Raises:
        EdgeopsError: E-TOPIC; not a topic of edgeops, or a part is not a valid name.
    """
    parts = topic.split("/")
    try:
        if parts[:2] != PREFIX.split("/") or parts[3] != "d":
            raise IndexError
        fleet, connection = check_name(parts[2], "fleet"), check_name(parts[4], "connection")
        if len(parts) == 6 and parts[5] == "presence":
            return UnitTopic(fleet, connection, SELF_UNIT, "presence", None)
        unit, leaf = check_name(parts[5], "unit"), parts[6]
        if leaf in ("cmd", "res") and len(parts) == 8:
            return UnitTopic(fleet, connection, unit, leaf, check_name(parts[7], "command id"))
        if leaf in DOWN_LEAVES + UP_LEAVES and leaf not in ("cmd", "res") and len(parts) == 7:
            return UnitTopic(fleet, connection, unit, leaf, None)
        raise IndexError
    except (IndexError, EdgeopsError) as error:
        raise EdgeopsError("E-TOPIC", f"{topic[:120]!r} is not a topic of edgeops") from error
