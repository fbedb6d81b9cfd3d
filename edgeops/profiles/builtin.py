"""The profiles that come with edgeops: beside the package in a checkout, inside it in a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def builtin_profile_dir() -> Path:
    """Return the directory of the built-in profiles."""
    installed = _PACKAGE / "device_profiles"
    return installed if installed.is_dir() else _PACKAGE.parents[1] / "device_profiles"
