"""Where a control plane is found: the address that it binds, and the name by which devices reach it."""

from __future__ import annotations

import ipaddress
import re

from edgeops.contracts.errors import EdgeopsError

_NAME = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*"
)


def check_addresses(host: str, advertise: str | None) -> None:
    """Refuse what no device could reach: enrolment tokens and certificates carry it.

    Args:
        host: What is bound.
        advertise: By which name or address devices come; None: by `host`.

    Raises:
        EdgeopsError: E-CONFIG.
    """
    for option, value in (("--host", host), ("--advertise", advertise)):
        if value is not None and not (_is_address(value) or _NAME.fullmatch(value)):
            raise EdgeopsError(
                "E-CONFIG", f"{option} {value[:80]!r} is no name and no address", "Give one of this machine."
            )
    if _is_everywhere(advertise or host):
        raise EdgeopsError(
            "E-CONFIG",
            f"{advertise or host} is every address of this machine, and none that a device could go to",
            "Say by which name or address devices reach it: --advertise.",
        )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_everywhere(text: str) -> bool:
    return text == "0" or (_is_address(text) and ipaddress.ip_address(text).is_unspecified)
