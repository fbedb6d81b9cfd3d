"""The one reader of entry points; built-ins come through the same door as anybody's plugin."""

from __future__ import annotations

import functools
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from edgeops.contracts.errors import EdgeopsError

Group = Literal["edgeops.backends", "edgeops.passes", "edgeops.profiles", "edgeops.flashers", "edgeops.commands"]


@functools.cache
def found(group: Group) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name, without loading any.

    Raises:
        EdgeopsError: E-PLUGIN; two packages claim one name.
    """
    by_name: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        other = by_name.setdefault(point.name, point)
        if other.value != point.value:
            raise EdgeopsError(
                "E-PLUGIN", f"{group}: {point.name!r} is both {other.value} and {point.value}", "Uninstall one of them."
            )
    return by_name


def load(group: Group, name: str) -> Any:
    """Import one entry point.

    Raises:
        EdgeopsError: E-PLUGIN; there is none of this name, or its module cannot be imported.
    """
    point = found(group).get(name)
    if point is None:
        known = ", ".join(sorted(found(group))) or "none"
        raise EdgeopsError("E-PLUGIN", f"{group}: no {name!r}; found: {known}", "Install the package that has it.")
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise EdgeopsError(
            "E-PLUGIN", f"{group}: {name!r} ({point.value}): {error}", "Reinstall its package."
        ) from error
