"""Where the firmware bridge keeps what it fetched and built: `$EDGEOPS_CACHE`, or `~/.cache/edgeops`."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from edgeops.contracts.errors import EdgeopsError


def cache_dir() -> Path:
    """Return the cache folder; it may not exist yet."""
    return Path(os.environ.get("EDGEOPS_CACHE") or Path.home() / ".cache" / "edgeops")


def keep(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Put a file into the cache at once: readers see all of it or none.

    Raises:
        EdgeopsError: E-DISK-WRITE.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.chmod(mode)
        temporary.rename(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise EdgeopsError(
            "E-DISK-WRITE", f"{path}: {error.strerror}", "Check the disk and its permissions."
        ) from error
