"""Where edgeops keeps what can be made again: downloads, toolchains, compiled passes."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return the cache folder: `$EDGEOPS_CACHE`, or `~/.cache/edgeops`. It may not exist yet."""
    return Path(os.environ.get("EDGEOPS_CACHE") or Path.home() / ".cache" / "edgeops")
