"""What an operator sees of each device at a glance."""

from __future__ import annotations

import msgspec
import pytest

from edgeops.cli.device import COLUMNS, _rows
from edgeops.client.resources import DeviceInfo, UnitInfo

UNIT = UnitInfo(
    unit="self", desired_generation=1, observed_generation=1, published=True, reported_at_s=1.0, stale_s=None,
    refused=None, components=(),
)  # fmt: skip
DEVICE = DeviceInfo(
    connection="line-1", profile="intel-nuc", labels={}, agent_version="0.1.0", online=True, enrolled_at_s=0.0,
    revoked_at_s=None, certificate_until_s=None, certificate_renewed_at_s=None, cloned_since_s=None, last_seen_s=None,
    rejected_messages=0, rejected_last="", units=(UNIT,),
)  # fmt: skip
STALE = (msgspec.structs.replace(UNIT, stale_s=3600.0),)


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, "yes"),
        ({"online": False}, "no"),
        ({"units": STALE}, "yes, stale"),
        ({"units": STALE, "online": False}, "no, stale"),
        ({"units": STALE, "cloned_since_s": 1.0}, "cloned"),
        ({"units": STALE, "revoked_at_s": 1.0}, "revoked"),
    ],
)
def test_a_frozen_device_is_seen_in_the_list(changes: dict[str, object], shown: str) -> None:
    (row,) = _rows(msgspec.structs.replace(DEVICE, **changes))
    assert dict(zip(COLUMNS, row, strict=True))["online"] == shown
