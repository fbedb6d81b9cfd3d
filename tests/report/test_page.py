"""The report's page and Markdown: whole, self-contained, and deaf to what models and labels say."""

from __future__ import annotations

import base64
import html
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest
from markdown_it import MarkdownIt
from report_samples import HOSTILE, hostile, piece, plain

from edgeops.compiler.pictures import png
from edgeops.report import charts, markup, text
from edgeops.report.gather import gather
from edgeops.report.markup import Html
from edgeops.report.page import page
from edgeops.report.text import markdown

RUNS = (
    "script",
    "link",
    "iframe",
    "object",
    "embed",
    "base",
    "form",
    "audio",
    "video",
    "use",
    "image",
    "foreignobject",
)


class Look(HTMLParser):
    """Every element of a page, and whatever in it would load or run something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()
        self.dangers: list[str] = []
        self.words: list[str] = []
        self._within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self._within = tag
        if tag in RUNS:
            self.dangers.append(f"<{tag}>")
        for name, value in attrs:
            value = value or ""
            harmless = {
                "src": value.startswith("data:image/png;base64,"),
                "href": value.startswith("#"),
                "style": False,
                "srcset": False,
            }
            if name.startswith("on") or not harmless.get(name, True):
                self.dangers.append(f"{name}={value[:40]}")

    def handle_data(self, data: str) -> None:
        if self._within == "style" and re.search(r"url\(|@import|expression", data):
            self.dangers.append("the style loads something")
        self.words.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._within = ""


def written(folder: Path, say=plain) -> str:
    return page(gather([piece(folder / "bundle", say)], made_at_s=1.8e9))


def test_page_tells_all_that_is_known(tmp_path: Path):
    words = " ".join(Look(written(tmp_path)).words)
    for told in (
        "adder", "model.onnx", "Add ×2", "95.00% (90.00% to 100.00%)", "90.00% (80.00% to 95.00%)",
        "recall of each class",
        "confusion matrix of 4 classes: 2 mistakes", "quantization", "conversion", "1.5 ms", "60 MiB",
        "measured on device pi-1, 50 runs", "measured on the compile host", "the device is aarch64", "latency and size",
        "counted: the artifact's files", "the model that was handed over does better here", "input x: 8 values",
        "sha256:aa", "onnx", "1.18", "int8",
    ):  # fmt: skip
        assert told in words, told
    assert Look(written(tmp_path / "2")).elements["img"] == 1


def test_page_loads_and_runs_nothing(tmp_path: Path):
    look = Look(written(tmp_path))
    assert look.dangers == []
    assert look.elements["svg"] >= 8
    assert "content=\"default-src 'none';" in html.unescape(written(tmp_path / "2"))


def test_hostile_texts_change_no_element_of_the_page(tmp_path: Path):
    """What a model, a label or a tool is called is text, wherever it is shown."""
    harmless, attacked = Look(written(tmp_path / "a")), Look(written(tmp_path / "b", hostile))
    harmless_tags, attacked_tags = harmless.elements, attacked.elements
    # Hints of what was cut short are the only elements that may be more.
    allowed = {"title", "tr", "td"}
    assert {tag: count for tag, count in attacked_tags.items() if tag not in allowed} == {
        tag: count for tag, count in harmless_tags.items() if tag not in allowed
    }
    assert attacked.dangers == []
    assert "\u202e" not in "".join(attacked.words)
    assert "\x00" not in "".join(attacked.words)
    assert sum("<script>" in words for words in attacked.words) > 10


def test_a_page_that_does_not_escape_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Negative control."""
    monkeypatch.setattr(markup, "escape", lambda text: text)
    assert "<script>" in Look(written(tmp_path, hostile)).dangers


def test_a_picture_is_in_the_page_whole(tmp_path: Path):
    """However long its bytes are in text: what is cut short for reading is not cut here."""
    one = piece(tmp_path)
    assert one.evidence is not None
    assert one.evidence.examination is not None
    noise = png(np.random.default_rng(1).integers(0, 255, (96, 96, 4)).astype(np.uint8))
    worst = (msgspec.structs.replace(one.evidence.examination.worst[0], picture=noise),)
    seen = msgspec.structs.replace(one.evidence.examination, worst=worst)
    told = one._replace(evidence=msgspec.structs.replace(one.evidence, examination=seen))
    (shown,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page(gather([told], made_at_s=1.0)))
    assert base64.b64decode(shown) == noise


def test_every_picture_has_a_title_for_who_cannot_see_it(tmp_path: Path):
    text = written(tmp_path)
    pictures = re.findall(r"<svg[^>]*>(<title>[^<]{8,})?", text)
    assert pictures
    assert all(pictures)
    assert all('role="img"' in start for start in re.findall(r"<svg[^>]*>", text))


def rendered(told: str) -> Look:
    return Look(MarkdownIt("commonmark", {"html": True}).enable("table").render(told))


def test_hostile_texts_are_text_in_markdown_too(tmp_path: Path):
    told = markdown(gather([piece(tmp_path / "a", hostile)], made_at_s=1.8e9))
    look = rendered(told)
    assert look.dangers == []
    assert not {"img", "a", "code"} & set(look.elements)
    assert (
        look.elements["table"] == rendered(markdown(gather([piece(tmp_path / "b")], made_at_s=1.8e9))).elements["table"]
    )


def test_markdown_that_does_not_escape_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Negative control."""
    monkeypatch.setattr(text, "_SPECIAL", re.compile("((?!))"))
    look = rendered(markdown(gather([piece(tmp_path, hostile)], made_at_s=1.8e9)))
    assert look.dangers
    assert {"img", "a"} & set(look.elements)


def test_what_a_reader_could_not_see_is_written_out():
    assert markup.visible("a\u202eb\x07c\u200bd") == "a\\u202eb\\u0007c\\u200bd"
    assert markup.visible("é 日本 ✓ \n") == "é 日本 ✓ \n"
    assert len(markup.visible("x" * 10**6)) == markup.MAX_TEXT
    assert markup.tag("td", HOSTILE, title=HOSTILE).count("<") == 2
    assert markup.tag("b", Html("<i></i>")) == "<b><i></i></b>"


def test_charts_hold_extremes():
    """Nothing to draw, equal values, one value, huge ones: a picture, and no division by zero."""
    from edgeops.report.model import CandidateRow, Estimate, Matrix, Quality, Spread

    row = CandidateRow(
        scheme="s", runtime="r", precision="p", size_bytes=1, latency_ms=1e-9, ratio=None, error=0.0, metric=None,
        pareto=True, passed=True, chosen=True, reason="", how="",
    )  # fmt: skip
    one = Estimate(value=1.0)
    drawn = [
        *charts.pareto([row]),
        *charts.pareto([row, row]),
        charts.quality(Quality(metric="mae", source=one, artifact=one, drop=one, confidence=0.95, samples=1)),
        charts.matrix(Matrix(labels=("a",), counts=((0,),))),
        charts.spread(Spread(tensor="x", role="input", edges=(), counts=(0,))),
        charts.spread(Spread(tensor="x", role="input", edges=(1e300,), counts=(10**18, 0))),
        charts.trace([[5.0]], "one point"),
    ]
    assert charts.pareto([]) == ()
    for picture in drawn:
        assert picture.startswith("<svg")
        assert not re.search(r"\b(nan|inf)\b", picture)
