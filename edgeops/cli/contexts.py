"""Where other machines' control planes are: a folder per context, with what a client needs of a fleet's home."""

from __future__ import annotations

import os
from pathlib import Path

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.names import check_name
from edgeops.contracts.wire import Wire, encode


class _Serving(Wire, frozen=True, kw_only=True):
    api: str


def contexts_dir() -> Path:
    """Return the folder of all contexts: `$XDG_CONFIG_HOME/edgeops/contexts`."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "edgeops" / "contexts"


def context_folder(name: str) -> Path:
    """Return the folder of a context.

    Raises:
        EdgeopsError: E-NAME; not a name. E-CONFIG; there is none of this name.
    """
    check_name(name, "context")
    folder = contexts_dir() / name
    if not folder.is_dir():
        known = ", ".join(names()) or "none"
        raise EdgeopsError("E-CONFIG", f"there is no context {name}; there are: {known}", "See `edgeops context add`.")
    return folder


def names() -> list[str]:
    """Return the names of all contexts."""
    folder = contexts_dir()
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def add(name: str, url: str, ca_pem: bytes, token: str) -> Path:
    """Write a context, or write it again; only this user can read it.

    Raises:
        EdgeopsError: E-NAME; not a name. E-CONFIG; no HTTPS URL. E-DISK-FULL or E-DISK-WRITE.
    """
    from edgeops import durable

    check_name(name, "context")
    if not url.startswith("https://"):
        raise EdgeopsError("E-CONFIG", f"{url!r} is not an https URL", "Give the `api` of the fleet's serve.json.")
    folder = contexts_dir() / name
    (folder / "ca").mkdir(mode=0o700, parents=True, exist_ok=True)
    durable.write_file(folder / "ca" / "ca.pem", ca_pem)
    durable.write_file(folder / "api.token", token.strip().encode() + b"\n", mode=0o600)
    # Last: a folder with an address is a whole one.
    durable.write_file(folder / "serve.json", encode(_Serving(api=url.rstrip("/"))))
    return folder


def remove(name: str) -> None:
    """Forget a context, its token too.

    Raises:
        EdgeopsError: E-NAME or E-CONFIG; there is none of this name.
    """
    from edgeops import durable

    durable.remove_tree(context_folder(name))
