"""Topics: one grammar for both ends; nothing that is not of that grammar is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.topics import (
    DOWN_LEAVES,
    UP_LEAVES,
    UnitTopic,
    control_filters,
    device_filters,
    parse_topic,
    presence_topic,
    unit_topic,
)

names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)


@given(names, names, names, st.sampled_from(DOWN_LEAVES + UP_LEAVES), names)
def test_every_topic_that_is_written_is_read_back(fleet: str, connection: str, unit: str, leaf: str, id: str):
    with_id = id if leaf in ("cmd", "res") else None
    topic = unit_topic(fleet, connection, unit, leaf, with_id)
    assert parse_topic(topic) == UnitTopic(fleet, connection, unit, leaf, with_id)


@given(st.text(max_size=60).map(lambda tail: tail if tail.startswith("eo/") else f"eo/v1/demo/d/{tail}/x/y"))
def test_any_other_text_is_refused(text: str):
    with pytest.raises(EdgeopsError) as caught:
        parse_topic(text)
    assert caught.value.code == "E-TOPIC"


@pytest.mark.parametrize("name", ["+", "#", "a/b", "", "../x", "A", "-a", "é", "a" * 64, "a\0"])
def test_no_wildcard_or_separator_passes_as_a_name(name: str):
    with pytest.raises(EdgeopsError):
        unit_topic("demo", name, "self", "desired")
    with pytest.raises(EdgeopsError):
        presence_topic("demo", name)
    with pytest.raises(EdgeopsError):
        device_filters("demo", name)


def test_a_device_subscribes_to_nothing_that_devices_write():
    own = device_filters("demo", "pi-1")
    assert all("/d/pi-1/" in topic for topic in own)
    assert {topic.split("/")[6] for topic in own} == set(DOWN_LEAVES)
    assert not {topic.split("/")[6] for topic in control_filters("demo") if topic.count("/") > 5} & set(DOWN_LEAVES)
