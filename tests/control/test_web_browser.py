"""The web page in a real browser: it signs in, follows a rollout by itself, and runs nothing that it shows."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served_fleet import BROKERS, MODEL, PROFILES, Fleet, Serving, wait_for

from edgeops.client.rollout_resources import RolloutWish
from edgeops.contracts.deployment import Failure

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
pytestmark = [
    pytest.mark.web,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="the program chromium is not installed"),
]

HOSTILE = "<img src=x onerror=\"document.title='ran'\"><script>document.title='ran'</script>{{ 7 * 191 }}"
_CARELESS = """
from nicegui import ui
from edgeops.control.web import pages
careful = pages._table
def careless(names, **options):
    table = careful(names, **options)
    if "failure" in names:
        table.add_slot("body-cell-failure", '<q-td :props="props"><span v-html="props.value"></span></q-td>')
    return table
pages._table = careless
from edgeops.cli import main
main()
"""


class Careless(Serving):
    """A control plane whose page shows what a device says as HTML."""

    def command(self) -> list[str]:
        return [sys.executable, "-c", _CARELESS]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def paged(home: Path, request: pytest.FixtureRequest) -> Iterator[Serving]:
    serving = getattr(request, "param", Serving)(home, BROKERS[-1], "--web")
    serving.start()
    yield serving
    serving.stop()


@pytest.fixture
def fleet(paged: Serving, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(paged, tmp_path / "devices", refuses=("1.2.0",))
    yield fleet
    fleet.stop()


@pytest.fixture
def page(chromium: Any, paged: Serving) -> Iterator[Any]:
    """A page whose reader has signed in as a viewer by the form."""
    context = chromium.new_context(ignore_https_errors=True, base_url=paged.ready["api"])
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.goto("/ui/")
    page.get_by_label("API token").fill(paged.api.create_api_token("viewer", "viewer", valid_s=3600.0).token)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("f1: Fleet").wait_for()
    yield page
    context.close()


def test_it_shows_the_fleet_and_nothing_goes_wrong_in_the_browser(page: Any, paged: Serving, fleet: Fleet) -> None:
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto("/ui/")
    page.get_by_text("3 devices, 3 online").wait_for()
    page.get_by_role("link", name="Devices").click()
    for profile in PROFILES:
        page.get_by_role("cell", name=f"{profile}-1", exact=True).wait_for()
    page.get_by_role("cell", name="intel-nuc-1", exact=True).click()
    page.get_by_text("intel-nuc, online").wait_for()
    page.goto("/ui/devices")
    page.get_by_label("Query").fill("profile = jetson-orin-nano")
    page.get_by_label("Query").press("Enter")
    page.wait_for_url("**/devices?where=profile*jetson-orin-nano")
    page.get_by_role("cell", name="jetson-orin-nano-1").wait_for()
    assert page.get_by_role("cell", name="intel-nuc-1").count() == 0
    page.goto("/ui/devices?where=profile%20%3D%20intel-nuc")
    page.get_by_role("cell", name="intel-nuc-1").wait_for()
    assert page.get_by_role("cell", name="raspberry-pi-4-1").count() == 0
    page.goto("/ui/devices?where=%3D")
    page.get_by_text("E-QUERY").wait_for()
    page.get_by_role("link", name="Releases").click()
    page.get_by_role("cell", name=f"{MODEL} 1.2.0").wait_for()
    assert not complaints


def test_a_rollout_goes_on_before_the_readers_eyes(page: Any, paged: Serving, fleet: Fleet) -> None:
    for device in fleet.devices.values():
        device.asleep = True
    rollout = paged.api.create_rollout(RolloutWish(model=MODEL, version="1.0.0", start=True))
    page.goto(f"/ui/rollouts/{rollout.id}")
    page.get_by_text("is running: 0 of 3 devices").wait_for()
    page.evaluate("window.sameDocument = true")
    for done, device in enumerate(fleet.devices.values(), start=1):
        device.wait_generation(1)
        device.obey()
        page.get_by_text(re.compile(rf"is \w+: {done} of 3 devices")).wait_for()
    page.get_by_text("is succeeded: 3 of 3 devices").wait_for()
    assert page.evaluate("window.sameDocument"), "the page was loaded anew"


def test_whose_token_is_revoked_sees_no_more(page: Any, paged: Serving) -> None:
    paged.api.revoke_api_token("viewer")
    page.get_by_label("API token").wait_for()
    assert page.url.endswith("/ui/sign-in")
    page.goto("/ui/devices")
    page.get_by_label("API token").wait_for()


def say_hostile(paged: Serving, fleet: Fleet, page: Any) -> None:
    """Have a device's report hold HTML, and look at the device."""
    device = fleet.devices["intel-nuc-1"]
    device.failure = Failure(code="E-SELFTEST-GOLDEN", what=HOSTILE, release="", at_s=0.0)
    paged.api.create_rollout(RolloutWish(model=MODEL, version="1.2.0", start=True))

    def told() -> bool:
        units = paged.api.device("intel-nuc-1").units
        return any(part.failure is not None for unit in units for part in unit.components)

    wait_for(told, "it did not fail")
    page.goto("/ui/devices/intel-nuc-1")


def test_what_a_device_says_is_text(page: Any, paged: Serving, fleet: Fleet) -> None:
    say_hostile(paged, fleet, page)
    page.get_by_text("{{ 7 * 191 }}").wait_for()
    page.wait_for_timeout(500)
    assert page.title() != "ran"
    assert page.locator("td img, td script").count() == 0


@pytest.mark.parametrize("paged", [Careless], indirect=True)
def test_shown_as_html_it_would_run(page: Any, paged: Serving, fleet: Fleet) -> None:
    """The control: what the device said does run in a page that does not escape it."""
    say_hostile(paged, fleet, page)
    page.wait_for_function("document.title == 'ran'")
