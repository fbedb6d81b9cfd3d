"""The report in a real browser: nothing is asked of a network, nothing runs, and it fits narrow and wide screens."""

from __future__ import annotations

import html
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_samples import hostile, piece, plain

from edgeops.report import markup
from edgeops.report.gather import gather
from edgeops.report.page import page

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
pytestmark = [
    pytest.mark.web,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="the program chromium is not installed"),
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(chromium: Any, folder: Path, say: Any, width: int, scheme: str) -> tuple[Any, list[str], list[str]]:
    """Open a report; return the page, what it asked for, and what it complained of."""
    folder.mkdir(exist_ok=True)
    file = folder / "report.html"
    file.write_text(page(gather([piece(folder / "bundle", say)], made_at_s=1.8e9)))
    view = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    asked: list[str] = []
    said: list[str] = []
    view.on("request", lambda request: asked.append(request.url))
    view.on("console", lambda message: said.append(message.text))
    view.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    view.goto(file.as_uri())
    view.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    return view, [url for url in asked if not url.startswith("data:") and url != file.as_uri()], said


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_asks_for_nothing_and_fits_the_screen(chromium: Any, tmp_path: Path, width: int, scheme: str):
    view, asked, said = opened(chromium, tmp_path, plain, width, scheme)
    assert (asked, said) == ([], [])
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    assert view.evaluate("Array.from(document.images).every(one => one.complete && one.naturalWidth > 0)")
    paper, ink = view.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    bright = [sum(int(part) for part in colour[4:-1].split(",")) / 765 for colour in (paper, ink)]
    assert (bright[0] > bright[1]) is (scheme == "light")
    assert abs(bright[0] - bright[1]) > 0.7


def test_what_a_model_says_runs_nowhere(chromium: Any, tmp_path: Path):
    view, asked, said = opened(chromium, tmp_path, hostile, 1280, "light")
    assert (asked, said) == ([], [])
    assert view.evaluate("document.scripts.length") == 0
    assert view.evaluate("document.documentElement.scrollWidth") <= 1280


def test_a_page_that_does_not_escape_is_seen_and_stopped_by_its_policy(
    chromium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Negative control: it has scripts and asks for pictures, and still the page's own policy lets nothing happen."""
    monkeypatch.setattr(markup, "escape", lambda text: text if "evil" in text else html.escape(text))
    view, asked, said = opened(chromium, tmp_path, hostile, 1280, "light")
    assert view.evaluate("document.scripts.length") > 0
    assert asked
    assert said
    assert all("Content Security Policy" in line for line in said), said
