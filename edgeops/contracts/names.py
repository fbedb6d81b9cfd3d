"""Names that appear in topics, paths and tables: one alphabet, checked at every door."""

from __future__ import annotations

import re

from edgeops.contracts.errors import EdgeopsError

# No '/', '+', '#', '.'-only or leading '-' name can pass: safe in MQTT topics, file names and URLs alike.
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_VERSION = re.compile(r"(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})(-[0-9a-z.-]{1,32})?")


def check_name(value: str, what: str) -> str:
    """Return `value` if it is a valid name: 1 to 63 of a-z, 0-9, '.', '_', '-', beginning with a letter or digit.

    Raises:
        EdgeopsError: E-NAME.
    """
    if not _NAME.fullmatch(value):
        raise EdgeopsError(
            "E-NAME",
            f"{what} {value[:80]!r} is not a valid name",
            "Use 1 to 63 of a-z, 0-9, '.', '_', '-', beginning with a letter or digit.",
        )
    return value


def check_version(value: str, what: str = "version") -> str:
    """Return `value` if it is a semantic version: MAJOR.MINOR.PATCH[-PRERELEASE].

    Raises:
        EdgeopsError: E-NAME.
    """
    if not _VERSION.fullmatch(value):
        raise EdgeopsError("E-NAME", f"{what} {value[:80]!r} is not MAJOR.MINOR.PATCH", "For example 1.4.0.")
    return value
