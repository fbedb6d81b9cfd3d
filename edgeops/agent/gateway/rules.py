"""The microcontrollers that `agent.toml` declares."""

from __future__ import annotations

from typing import Annotated

import msgspec

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.names import check_name
from edgeops.contracts.topics import SELF_UNIT
from edgeops.contracts.wire import Declared
from edgeops.profiles import registry

RUNTIME = "mcu"


class McuRules(Declared, frozen=True, kw_only=True):
    """One microcontroller on a serial line of this device.

    Args:
        name: The unit's name.
        port: A device file that stays the same, such as one of /dev/serial/by-id, or `socket://host:port`.
        profile: Its device profile.
        baud_rate: Of the line.
        install_within_s: An update that has not arrived by then, through noise and resets, has failed.
    """

    name: str
    port: Annotated[str, msgspec.Meta(min_length=1)]
    profile: str
    baud_rate: Annotated[int, msgspec.Meta(ge=300, le=4_000_000)] = 115200
    install_within_s: Annotated[float, msgspec.Meta(ge=1, le=86400)] = 1800.0


def check(rules: tuple[McuRules, ...]) -> None:
    """Check what single keys cannot show.

    Raises:
        EdgeopsError: E-CONFIG; a name or port appears twice, a name is none or `self`, or a profile is unknown, or no
            microcontroller's.
    """
    for what, values in (("name", [one.name for one in rules]), ("port", [one.port for one in rules])):
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise EdgeopsError("E-CONFIG", f"agent.toml: mcu: the {what} {twice[0]!r} appears twice")
    for one in rules:
        try:
            check_name(one.name, "unit")
            processor(one.profile)
        except EdgeopsError as error:
            raise EdgeopsError("E-CONFIG", f"agent.toml: mcu {one.name!r}: {error.what}", error.next_step) from error
        if one.name == SELF_UNIT:
            raise EdgeopsError("E-CONFIG", f"agent.toml: mcu: {SELF_UNIT!r} is this device itself", "Choose a name.")


def processor(profile: str) -> str:
    """Return the processor of a microcontroller's profile, as its runtime's option `cpu` says.

    Raises:
        EdgeopsError: E-PROFILE-UNKNOWN. E-CONFIG; it is no microcontroller's.
    """
    found = next((runtime for runtime in registry.load(profile).runtimes if runtime.name == RUNTIME), None)
    if found is None or "cpu" not in found.options:
        raise EdgeopsError("E-CONFIG", f"profile {profile} is no microcontroller's", "Name one with runtime mcu.")
    return found.options["cpu"]
