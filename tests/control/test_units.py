"""Units behind gateways: in the registry, in groups, in rollouts, in telemetry, and over a real broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_device import FakeDevice, join
from registry_fleet import MODEL, PROFILES, SpeakingDevice, add_devices, open_registry, release
from served_fleet import BROKERS, Serving, make_release, run, wait_for
from sqlalchemy import select

from edgeops.client.rollout_resources import RolloutWish
from edgeops.contracts.deployment import DeploymentState, Presence
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rollouts import RolloutState
from edgeops.control import labelling
from edgeops.control.api import views
from edgeops.control.database import Database
from edgeops.control.groups import manage as groups
from edgeops.control.groups.facts import facts_of
from edgeops.control.ingest.history import Asked, merged
from edgeops.control.models import Device, Rollout, RolloutMember
from edgeops.control.monitoring.alerts import Thresholds, alerts, look
from edgeops.control.rollout import manage
from edgeops.control.rollout.decide import Action
from edgeops.control.rollout.execute import advance
from edgeops.control.rollout.followers import take_in_followers
from edgeops.control.rollout.policy import Gates, Policy
from edgeops.control.rollout.selection import Selection
from edgeops.control.units import enrolled
from edgeops.trust.publisher import Publisher

NOW = 1_000_000.0
MCU = "cortex-m4"
ONE = release("1.0.0", profiles=(MCU,))
ALL = Policy(groups=("100%",), gates=Gates(timeout_s=100))


def behind(database: Database, gateway: str, unit: str, profile: str = MCU) -> SpeakingDevice:
    """A unit behind a gateway that has said what it is."""
    one = SpeakingDevice(database, gateway, unit=unit, profile=profile)
    one.report((), observed=0, now_s=NOW)
    return one


@pytest.fixture
def database(registry_url: Path | str) -> Iterator[Database]:
    """Two gateways: two units behind the first, one behind the second."""
    opened = open_registry(registry_url)
    add_devices(opened, 2, prefix="gw")
    yield opened
    opened.close()


@pytest.fixture
def units(database: Database) -> dict[str, SpeakingDevice]:
    names = (("gw-000", "mcu-1"), ("gw-000", "mcu-2"), ("gw-001", "mcu-1"))
    return {f"{gateway}/{unit}": behind(database, gateway, unit) for gateway, unit in names}


def desired(database: Database) -> dict[str, str]:
    with database.read() as session:
        return {one.name: one.unit.desired_components.decode() for one in enrolled(session)}


def states(database: Database, rollout: int) -> dict[str, str]:
    with database.read() as session:
        rows = session.scalars(select(RolloutMember).where(RolloutMember.rollout_id == rollout))
        return {f"{row.connection}/{row.unit}": row.state for row in rows}


def state_of(database: Database, rollout: int) -> str:
    with database.read() as session:
        return session.get_one(Rollout, rollout).state


def settle(database: Database, rollout: int, now_s: float = NOW) -> Action | None:
    last = None
    while (step := advance(database, rollout, now_s)) is not None:
        last = step.decision.action
        if last is Action.WAIT:
            break
    return last


def test_a_unit_is_known_by_what_it_says_and_its_gateway_stays_what_it_is(
    database: Database, units: dict[str, SpeakingDevice]
) -> None:
    units["gw-000/mcu-1"].attributes, units["gw-000/mcu-1"].capabilities = {"board": "mps2"}, {"mcu": "1.4.0"}
    units["gw-000/mcu-1"].report((), observed=0, now_s=NOW)
    labelling.set_labels(database, "gw-000/mcu-1", {"line": "3"}, actor="op", now_s=NOW)
    labelling.set_labels(database, "gw-000", {"line": "1", "hall": "2"}, actor="op", now_s=NOW)
    with database.read() as session:
        facts = facts_of(enrolled(session), NOW)
        gateway = session.get_one(Device, "gw-000")
        page = views.device_page(session, after="", limit=9, profile=None, online=None, where="", now_s=NOW)
    assert sorted(facts) == ["gw-000", "gw-000/mcu-1", "gw-000/mcu-2", "gw-001", "gw-001/mcu-1"]
    one = facts["gw-000/mcu-1"]
    assert (one.profile, one.connection, one.unit) == (MCU, "gw-000", "mcu-1")
    assert (one.attributes, one.capabilities) == ({"board": "mps2"}, {"mcu": "1.4.0"})
    assert one.labels == {"line": "3", "hall": "2", "site": "b"}
    assert facts["gw-000/mcu-2"].labels["line"] == "1"
    assert (facts["gw-000"].profile, gateway.profile, gateway.agent_version) == (PROFILES[0], PROFILES[0], "")
    shown = {unit.unit: unit for unit in page.items[0].units}
    assert (shown["mcu-1"].profile, shown["mcu-1"].labels, shown["self"].profile) == (MCU, {"line": "3"}, PROFILES[0])


QUERIES = [
    ("profile = cortex-m4", ["gw-000/mcu-1", "gw-000/mcu-2", "gw-001/mcu-1"]),
    ("connection = gw-000", ["gw-000", "gw-000/mcu-1", "gw-000/mcu-2"]),
    ("unit = self", ["gw-000", "gw-001"]),
    ('name = "gw-000/mcu-2"', ["gw-000/mcu-2"]),
    ("attribute.board = mps2 and capability.mcu >= 1.3", ["gw-000/mcu-1"]),
    ("capability.mcu < 1.3", []),
]


def test_a_query_finds_units(database: Database, units: dict[str, SpeakingDevice]) -> None:
    units["gw-000/mcu-1"].attributes, units["gw-000/mcu-1"].capabilities = {"board": "mps2"}, {"mcu": "1.4.0"}
    units["gw-000/mcu-1"].report((), observed=0, now_s=NOW)
    with database.read() as session:
        everyone = enrolled(session)
    for query, found in QUERIES:
        assert groups.found(everyone, query, NOW) == found, query
    groups.create(database, "some", query="profile = cortex-m4", actor="op", now_s=NOW)
    groups.create(database, "named", devices=["gw-000/mcu-2", "gw-001"], actor="op", now_s=NOW)
    with database.read() as session:
        assert groups.members(session, groups.group(session, "some"), NOW) == sorted(units)
        # A device that is named stands for all that is behind it.
        named = groups.members(session, groups.group(session, "named"), NOW)
    assert named == ["gw-000/mcu-2", "gw-001", "gw-001/mcu-1"]


def test_a_rollout_reaches_the_units_of_its_profile_and_nobody_else(
    database: Database, units: dict[str, SpeakingDevice]
) -> None:
    rollout = manage.create(database, ONE, ALL, Selection(), actor="op", now_s=NOW, start=True)
    settle(database, rollout)
    assert {name for name, wanted in desired(database).items() if wanted != "[]"} == set(units)
    for unit in units.values():
        unit.obey(NOW)
    settle(database, rollout)
    assert state_of(database, rollout) == RolloutState.SUCCEEDED
    assert set(states(database, rollout).values()) == {DeploymentState.CONFIRMED}
    second = manage.create(
        database, release("1.1.0", 2, (MCU,)), ALL, Selection(devices=("gw-000",)), actor="op", now_s=NOW, start=True
    )
    settle(database, second)
    assert set(states(database, second)) == {"gw-000/mcu-1", "gw-000/mcu-2"}
    manage.revert(database, second, actor="op", now_s=NOW)
    assert [part.release for part in units["gw-000/mcu-1"].desired()[1]] == ["1.0.0"]
    named = Selection(devices=("gw-001/mcu-1",))
    third = manage.create(database, release("1.2.0", 3, (MCU,)), ALL, named, actor="op", now_s=NOW)
    assert set(states(database, third)) == {"gw-001/mcu-1"}
    with pytest.raises(EdgeopsError, match="gw-001/mcu-9"):
        manage.create(database, ONE, ALL, Selection(devices=("gw-001/mcu-9",)), actor="op", now_s=NOW)


def test_a_unit_that_fails_stops_its_profile_alone(database: Database, units: dict[str, SpeakingDevice]) -> None:
    both = release("1.0.0", profiles=(MCU, *PROFILES))
    rollout = manage.create(
        database, both, Policy(groups=("100%",), gates=Gates(failure_max=0.5, success_min=0.5, timeout_s=100)),
        Selection(), actor="op", now_s=NOW, start=True,
    )  # fmt: skip
    settle(database, rollout)
    for name in ("gw-000", "gw-001"):
        SpeakingDevice(database, name).obey(NOW)
    for name, unit in units.items():
        bad = name != "gw-000/mcu-1"
        unit.obey(NOW, state=DeploymentState.FAILED if bad else DeploymentState.CONFIRMED, code="E-MCU-BLOB")
    settle(database, rollout)
    with database.read() as session:
        view = views.rollout_by_id(session, rollout)
    assert list(view.stopped_profiles) == [MCU]
    assert "E-MCU-BLOB ×2" in view.stopped_profiles[MCU]


def test_a_unit_that_is_unplugged_is_silent_though_its_gateway_speaks(
    database: Database, units: dict[str, SpeakingDevice]
) -> None:
    """It neither passes the gate nor times out: only its own word makes a unit reached."""
    rollout = manage.create(database, ONE, ALL, Selection(), actor="op", now_s=NOW, start=True)
    settle(database, rollout)
    units["gw-000/mcu-1"].obey(NOW)
    for name in ("gw-000", "gw-001"):
        SpeakingDevice(database, name).say(Presence(online=True, boot_id="b"), NOW + 1)
        SpeakingDevice(database, name).report((), observed=0, now_s=NOW + 1)
    settle(database, rollout, NOW + 101)
    assert state_of(database, rollout) == RolloutState.SUCCEEDED
    assert states(database, rollout) == {"gw-000/mcu-1": "confirmed", "gw-000/mcu-2": "idle", "gw-001/mcu-1": "idle"}
    units["gw-000/mcu-2"].obey(NOW + 1e6)
    assert states(database, rollout)["gw-000/mcu-2"] == "confirmed"


def test_a_unit_that_is_plugged_in_later_gets_what_its_like_got(
    database: Database, units: dict[str, SpeakingDevice]
) -> None:
    rollout = manage.create(database, ONE, ALL, Selection(), actor="op", now_s=NOW, start=True)
    settle(database, rollout)
    for unit in units.values():
        unit.obey(NOW)
    settle(database, rollout)
    new = SpeakingDevice(database, "gw-001", unit="mcu-7", profile=MCU)
    other = SpeakingDevice(database, "gw-001", unit="probe", profile="cortex-m0")
    for one in (new, other):
        one.report((), observed=0, now_s=NOW + 5)
    assert take_in_followers(database, NOW + 6)
    assert [part.release for part in new.desired()[1]] == ["1.0.0"]
    assert other.desired() == (0, ())


def test_telemetry_of_a_unit_counts_for_its_own_profile(database: Database, units: dict[str, SpeakingDevice]) -> None:
    units["gw-000/mcu-1"].served("1.0.0", [5.0] * 10, now_s=NOW, errors={})
    units["gw-000/mcu-2"].served("1.0.0", [50.0] * 10, now_s=NOW, errors={})
    SpeakingDevice(database, "gw-000").served("1.0.0", [1.0] * 10, now_s=NOW, errors={})
    asked = Asked(model=MODEL, since_s=0.0, until_s=NOW + 1e6)
    with database.read() as session:
        everywhere = merged(session, asked)
        one = merged(session, asked._replace(units={("gw-000", "mcu-1")}))
    assert {place.profile: traffic.requests for place, traffic in everywhere.items()} == {MCU: 20, PROFILES[0]: 10}
    assert [(place.profile, traffic.requests, traffic.latency_ms.maximum) for place, traffic in one.items()] == [
        (MCU, 10, 5.0)
    ]


def test_alerts_name_the_unit_and_a_lost_gateway_is_told_once(
    database: Database, units: dict[str, SpeakingDevice]
) -> None:
    rollout = manage.create(database, ONE, ALL, Selection(), actor="op", now_s=NOW, start=True)
    settle(database, rollout)
    units["gw-000/mcu-1"].obey(NOW, state=DeploymentState.FAILED)
    SpeakingDevice(database, "gw-001").say(Presence(online=False, boot_id="b"), NOW)
    with database.read() as session:
        found = look(session, NOW + 7200)
    told = {(alert.name, dict(alert.labels)["device"]) for alert in alerts(found, Thresholds(), NOW + 7200)}
    assert {one for one in told if one[0] != "EdgeopsCertificateExpiring"} == {
        ("EdgeopsDeviceFailing", "gw-000/mcu-1"),
        ("EdgeopsDeviceStuck", "gw-000/mcu-2"),
        ("EdgeopsDeviceOffline", "gw-001"),
    }


def test_pages_of_members_hold_every_unit_once(database: Database) -> None:
    for number in range(9):
        behind(database, "gw-000", f"mcu-{number}")
        behind(database, "gw-001", f"mcu-{number}")
    rollout = manage.create(database, ONE, ALL, Selection(), actor="op", now_s=NOW)
    seen: list[tuple[str, str]] = []
    after: str | None = ""
    while after is not None:
        with database.read() as session:
            page = views.member_page(session, rollout, after=after, limit=4)
        seen += [(member.connection, member.unit) for member in page.items]
        after = page.next
    assert len(seen) == len(set(seen)) == 18


def test_history_says_what_a_unit_was_to_run_and_how_that_went(
    database: Database, units: dict[str, SpeakingDevice]
) -> None:
    for number, (version, end) in enumerate((("1.0.0", "confirmed"), ("1.1.0", "failed")), 1):
        made = release(version, number, (MCU,))
        rollout = manage.create(database, made, ALL, Selection(), actor="op", now_s=NOW + number, start=True)
        settle(database, rollout, NOW + number)
        for unit in units.values():
            unit.obey(NOW + number, state=DeploymentState(end))
    with database.read() as session:
        newest = views.history_page(session, "gw-000", "mcu-1", before=1 << 53, limit=1)
        rest = views.history_page(session, "gw-000", "mcu-1", before=newest.next or 0, limit=9)
        with pytest.raises(EdgeopsError, match="no unit"):
            views.history_page(session, "gw-000", "mcu-9", before=9, limit=9)
    (last,), (first,) = newest.items, rest.items
    assert (last.cause, last.at_s, last.outcomes) == ("rollout 2", NOW + 2, {"rollout 2": "failed E-TRIAL"})
    assert ([part.release for part in first.components], first.outcomes) == (["1.0.0"], {"rollout 1": "confirmed"})


def test_labels_that_are_none_or_of_nobody_are_refused_and_nothing_changes(database: Database) -> None:
    for name, labels, code in (
        ("gw-000", {"Not A Name": "x"}, "E-NAME"),
        ("gw-000", {"site": "not a name!"}, "E-NAME"),
        ("gw-009", {"site": "x"}, "E-DEVICE-UNKNOWN"),
        ("gw-000/mcu-9", {"site": "x"}, "E-DEVICE-UNKNOWN"),
        ("gw-000", {f"k{number}": "v" for number in range(40)}, "E-CONFIG"),
    ):
        with pytest.raises(EdgeopsError) as refused:
            labelling.set_labels(database, name, labels, actor="op", now_s=NOW)
        assert refused.value.code == code
    with database.read() as session:
        assert session.get_one(Device, "gw-000").labels == {"site": "b"}
    labelling.set_labels(database, "gw-000", {"site": None, "hall": "4"}, actor="op", now_s=NOW)
    with database.read() as session:
        assert session.get_one(Device, "gw-000").labels == {"hall": "4"}


def test_a_profile_that_is_no_name_is_refused(database: Database) -> None:
    from edgeops.contracts.deployment import Reported
    from edgeops.control.ingest.statements import check_statement

    said = Reported(
        fleet="f1", connection="gw-000", unit="mcu-1", boot_id="b", seq=1, at_s=0.0, agent_version="", profile="",
        observed_generation=0, components=(),
    )  # fmt: skip
    with pytest.raises(EdgeopsError, match="profile"):
        check_statement(said)


@pytest.mark.parametrize("broker", BROKERS[-1:])
def test_a_gateways_units_take_part_over_a_real_broker(home: Path, tmp_path: Path, broker: str) -> None:
    """Desired state comes on each unit's own topic; the commands show units by name."""
    make_release(home, "2.0.0", ("raspberry-pi-4", MCU))
    make_release(home, "2.1.0", (MCU,))
    serving = Serving(home, broker)
    serving.start()
    try:
        token = serving.api.create_token(profile="raspberry-pi-4")
        joined = join(tmp_path / "gw", token.token, profile="raspberry-pi-4", name="gw")
        key = Publisher(home).desired_signer().public_key
        gateway = FakeDevice(
            tmp_path / "gw", joined, key, refuses=("2.1.0",), behind={"mcu-1": MCU, "mcu-2": MCU}
        ).start()
        try:
            wait_for(lambda: len(serving.api.device("gw").units) == 3, "its units are not known")
            wait_for(lambda: serving.api.fleet().profiles.get(MCU) == 2, "their profile is not known")
            made = serving.api.create_rollout(RolloutWish(model=MODEL, version="2.0.0", start=True))
            through(serving, made.id, RolloutState.SUCCEEDED)
            assert {unit: wanted.components[0].release for unit, wanted in gateway.desired_behind.items()} == {
                "mcu-1": "2.0.0", "mcu-2": "2.0.0",
            }  # fmt: skip
            listed = run(serving, "device", "list").splitlines()
            assert [line.split("\t")[:6:5] for line in listed[1:]] == [
                ["gw", "confirmed"], ["gw/mcu-1", "confirmed"], ["gw/mcu-2", "confirmed"],
            ]  # fmt: skip
            assert run(serving, "device", "label", "gw/mcu-2", "line=4") == "gw/mcu-2: line=4\n"
            bad = run(
                serving, "rollout", "create", MODEL, "2.1.0", "--where", "label.line = 4", "--start", "--json"
            )  # fmt: skip
            through(serving, bad["id"], RolloutState.STOPPED)
            assert "gw/mcu-2" in run(serving, "rollout", "explain", str(bad["id"]))
            assert "failed E-SELFTEST-GOLDEN" in run(serving, "device", "history", "gw/mcu-2")
            assert "2 units behind them" in run(serving, "fleet", "status")
        finally:
            gateway.stop()
    finally:
        serving.stop()


def through(serving: Serving, rollout: int, state: RolloutState) -> None:
    wait_for(lambda: serving.api.rollout(rollout).state == state, f"{serving.api.rollout(rollout)}")
