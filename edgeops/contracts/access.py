"""Words of access that the control plane and its clients share: who may do what."""

from __future__ import annotations

import enum

from edgeops.contracts.wire import WireEnum


class Permission(enum.Enum):
    """One kind of thing that an API token may allow."""

    READ = "read"
    PROPOSE = "propose"
    ENROLL = "enroll"
    ROLL_OUT = "roll-out"
    ADMINISTER = "administer"


class Role(WireEnum):
    """What a token's bearer is to the fleet."""

    VIEWER = "viewer"
    DATA_SCIENTIST = "data-scientist"
    ENGINEER = "engineer"
    OPERATOR = "operator"
    ADMIN = "admin"
    UNKNOWN = "unknown"


# A role that this version does not know may do nothing.
PERMISSIONS: dict[Role, frozenset[Permission]] = {
    Role.VIEWER: frozenset({Permission.READ}),
    Role.DATA_SCIENTIST: frozenset({Permission.READ, Permission.PROPOSE}),
    Role.ENGINEER: frozenset({Permission.READ, Permission.PROPOSE, Permission.ENROLL}),
    Role.OPERATOR: frozenset({Permission.READ, Permission.PROPOSE, Permission.ENROLL, Permission.ROLL_OUT}),
    Role.ADMIN: frozenset(Permission),
    Role.UNKNOWN: frozenset(),
}
