"""The runtimes that this machine knows, found through the plugin door."""

from __future__ import annotations

import functools

from edgeops import plugins
from edgeops.contracts.errors import EdgeopsError
from edgeops.runtimes.protocol import Backend


@functools.cache
def backend(name: str) -> Backend:
    """Return a backend by its name in profiles and manifests.

    Raises:
        EdgeopsError: E-PLUGIN; there is none of this name, or it cannot be imported.
    """
    made: Backend = plugins.load("edgeops.backends", name)()
    if made.name != name:
        raise EdgeopsError("E-PLUGIN", f"edgeops.backends: {name!r} calls itself {made.name!r}")
    return made


def backends() -> dict[str, Backend]:
    """Return all backends by name, whether they can be used here or not."""
    return {name: backend(name) for name in sorted(plugins.found("edgeops.backends"))}


def capabilities() -> dict[str, str]:
    """Return name → version of the runtimes that can be used here."""
    versions = {name: entry.available().version for name, entry in backends().items()}
    return {name: version for name, version in versions.items() if version is not None}
