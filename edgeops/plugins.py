"""The one reader of entry points; built-ins come through the same door as anybody's plugin."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from edgeops.contracts.errors import EdgeopsError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Group = Literal["edgeops.backends", "edgeops.passes", "edgeops.profiles", "edgeops.flashers", "edgeops.commands"]

# Group and name → value, as another process of this machine found them.
_told: dict[tuple[Group, str], str] = {}


@functools.cache
def found(group: Group) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name, without loading any.

    Raises:
        EdgeopsError: E-PLUGIN; two packages claim one name.
    """
    # Here, and not above: with what it imports it takes 3 MiB, which a worker need not have (`tell`).
    from importlib.metadata import entry_points

    by_name: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        other = by_name.setdefault(point.name, point)
        if other.value != point.value:
            raise EdgeopsError(
                "E-PLUGIN", f"{group}: {point.name!r} is both {other.value} and {point.value}", "Uninstall one of them."
            )
    return by_name


def values(group: Group) -> dict[str, str]:
    """Return name → value of a group's entry points; empty where two packages claim one name: `load` says so."""
    try:
        return {name: point.value for name, point in found(group).items()}
    except EdgeopsError:
        return {}


def tell(group: Group, told: Mapping[str, str]) -> None:
    """Have `load` take what `values` gave in another process, so that this one need not look for it."""
    _told.update({(group, name): value for name, value in told.items()})


def load(group: Group, name: str) -> Any:
    """Import one entry point.

    Raises:
        EdgeopsError: E-PLUGIN; there is none of this name, or its module cannot be imported.
    """
    told = _told.get((group, name))
    if told is not None:
        try:
            return _imported(told)
        except (ImportError, AttributeError):
            # It may have moved since: whoever told it began earlier than this process.
            del _told[group, name]
    point = found(group).get(name)
    if point is None:
        known = ", ".join(sorted(found(group))) or "none"
        raise EdgeopsError("E-PLUGIN", f"{group}: no {name!r}; found: {known}", "Install the package that has it.")
    try:
        return _imported(point.value)
    except (ImportError, AttributeError) as error:
        raise EdgeopsError(
            "E-PLUGIN", f"{group}: {name!r} ({point.value}): {error}", "Reinstall its package."
        ) from error


def _imported(value: str) -> Any:
    """Return the object of an entry point: `module:attributes`; extras in brackets, an old form, say nothing."""
    module, _, attributes = value.partition("[")[0].replace(" ", "").partition(":")
    return functools.reduce(getattr, filter(None, attributes.split(".")), importlib.import_module(module))
