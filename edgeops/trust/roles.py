"""The roles of the TUF repository: their names, who they delegate to, how long they hold, and their hash bins."""

from __future__ import annotations

import datetime
import re
from typing import NamedTuple

from tuf.api.metadata import DelegatedRole, Delegations, Key, SuccinctRoles, Targets

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.names import check_name

ROOT, TARGETS, SNAPSHOT, TIMESTAMP = "root", "targets", "snapshot", "timestamp"
DESIRED = "desired-state"
DESIRED_PATHS = ["desired-state/*"]

DAY_S = 86400.0
# An attacker who holds back news is noticed when the timestamp expires; the control plane signs it anew well before.
LIFETIME_S = {ROOT: 365 * DAY_S, TARGETS: 365 * DAY_S, SNAPSHOT: 30 * DAY_S, TIMESTAMP: 7 * DAY_S}
MODEL_LIFETIME_S = 365 * DAY_S

_TARGET_PATH = re.compile(r"([a-z0-9][a-z0-9._-]{0,62})/[a-z0-9][a-z0-9._-]{0,62}/[a-z0-9][a-z0-9._-]{0,95}")
FIRST_BITS = 4
MAX_BITS = 16
TARGETS_PER_BIN = 128


class Bins(NamedTuple):
    """The hash bins of one model: 2^bits roles, each with the targets whose path's SHA-256 begins with its number."""

    model: str
    bits: int

    def succinct(self, keyids: list[str], threshold: int) -> SuccinctRoles:
        """Return the bins as TUF's succinct delegation (TAP 15)."""
        return SuccinctRoles(keyids, threshold, self.bits, bin_prefix(self.model))


def model_role(model: str) -> str:
    """Return the role that may publish a model.

    Raises:
        EdgeopsError: E-NAME.
    """
    return f"model-{check_name(model, 'model')}"


def model_of(role: str) -> str | None:
    """Return the model that a role may publish, or None: it is another role."""
    return role.removeprefix("model-") if role.startswith("model-") else None


def model_of_bin(name: str) -> str:
    """Return the model that a bin belongs to."""
    return name.removeprefix("bins-").rpartition("-")[0]


def model_of_path(path: str) -> str:
    """Return the model that a target belongs to.

    Raises:
        EdgeopsError: E-RELEASE-INVALID; not a path of the form model/version/file.
    """
    match = _TARGET_PATH.fullmatch(path)
    if match is None:
        raise EdgeopsError("E-RELEASE-INVALID", f"target {path[:120]!r} is not model/version/file")
    return match[1]


def bin_prefix(model: str) -> str:
    """Return the prefix of a model's bins. No bin has the name of another model's bin: a number holds no hyphen."""
    return f"bins-{model}"


def bits_for(targets: int, present: int = FIRST_BITS) -> int:
    """Return how many bits of bins hold this many targets; never fewer than there are.

    A device downloads one bin per lookup, and the snapshot with a line per bin: doubling the bins when they hold
    `TARGETS_PER_BIN` on average keeps both small.
    """
    bits = present
    while bits < MAX_BITS and targets > TARGETS_PER_BIN << bits:
        bits += 1
    return bits


def delegate_model(model: str, keys: list[Key], threshold: int) -> DelegatedRole:
    """Return the delegation of one model: its role may sign `model/*/*` and nobody else may."""
    return DelegatedRole(model_role(model), [key.keyid for key in keys], threshold, True, paths=[f"{model}/*/*"])


def first_delegations(desired: Key) -> Delegations:
    """Return the delegations of a new repository: only the key that signs desired state."""
    role = DelegatedRole(DESIRED, [desired.keyid], 1, True, paths=DESIRED_PATHS)
    return Delegations({desired.keyid: desired}, roles={DESIRED: role})


def bin_delegations(bins: Bins, keys: list[Key], threshold: int) -> Delegations:
    """Return the delegations of a model's role: its bins, signed by its own keys."""
    return Delegations(
        {key.keyid: key for key in keys}, succinct_roles=bins.succinct([key.keyid for key in keys], threshold)
    )


def delegated_roles(targets: Targets) -> dict[str, DelegatedRole]:
    """Return the roles that the top targets role delegates, by name.

    Raises:
        EdgeopsError: E-TRUST-METADATA; there are none, as every repository of edgeops has.
    """
    if targets.delegations is None or targets.delegations.roles is None:
        raise EdgeopsError("E-TRUST-METADATA", "targets metadata delegates no roles")
    return targets.delegations.roles


def succinct_roles(targets: Targets) -> SuccinctRoles:
    """Return the hash bins that a model's role delegates.

    Raises:
        EdgeopsError: E-TRUST-METADATA; there are none, as every model of edgeops has.
    """
    if targets.delegations is None or targets.delegations.succinct_roles is None:
        raise EdgeopsError("E-TRUST-METADATA", "a model's metadata has no hash bins")
    return targets.delegations.succinct_roles


def delegated_keys(targets: Targets) -> dict[str, Key]:
    """Return the keys of all roles that this role delegates, by key id.

    Raises:
        EdgeopsError: E-TRUST-METADATA; it delegates nothing.
    """
    if targets.delegations is None:
        raise EdgeopsError("E-TRUST-METADATA", "metadata without delegations")
    return targets.delegations.keys


def expiry(now_s: float, lifetime_s: float) -> datetime.datetime:
    """Return when what is signed now expires, in whole seconds."""
    return datetime.datetime.fromtimestamp(int(now_s + lifetime_s), tz=datetime.timezone.utc)


def is_due(expires: datetime.datetime, lifetime_s: float, now_s: float) -> bool:
    """Return whether less than half of a role's life is left: time to sign it anew."""
    return expires.timestamp() - now_s < lifetime_s / 2
