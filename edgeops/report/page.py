"""The report as one HTML page: no script, no request, nothing but what is in the file. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from edgeops.report import rigs, sections
from edgeops.report.gather import moment
from edgeops.report.markup import Child, Html, tag
from edgeops.report.model import Report
from edgeops.report.style import CSS

# Nothing may be loaded or run, whatever a name or a label says.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(report: Report) -> str:
    """Return the whole page."""
    title = f"{report.model} {report.version}".rstrip()
    places = [("hand-over", "Hand-over")]
    places += [(f"profile-{number}", one.profile) for number, one in enumerate(report.profiles)]
    places += [("boards", "On boards")] if report.rigs else []
    places.append(("lineage", "Lineage"))
    return document(
        title=f"{title}: model report",
        kicker="Model report",
        heading=title,
        abstract=sections.abstract(report),
        places=places,
        sections=[
            sections.cards(report),
            sections.handed_over(report),
            *[sections.profile(one, f"profile-{number}") for number, one in enumerate(report.profiles)],
            rigs.section(report.rigs),
            sections.lineage(report),
        ],
        version=report.edgeops,
        made_at_s=report.made_at_s,
    )


def document(
    *,
    title: str,
    kicker: str,
    heading: str,
    abstract: Child,
    places: Sequence[tuple[str, str]],
    sections: Sequence[Child],
    version: str,
    made_at_s: float,
) -> str:
    """Return a page that looks and is shut off as all of edgeops' reports.

    Args:
        title: Of the window.
        kicker: What kind of report it is.
        heading: Of the page.
        abstract: What it says, in short.
        places: Sections to go to: id and words.
        sections: What it holds.
        version: Of edgeops.
        made_at_s: Unix time.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content=f"edgeops {version}"),
        tag("title", title),
        tag("style", Html(CSS)),
    )
    header = tag(
        "header",
        tag("p", kicker, class_="kicker"),
        tag("h1", heading),
        tag("p", abstract),
        tag("nav", [tag("a", words, href=f"#{place}") for place, words in places], aria_label="Sections"),
    )
    made = f"Made by edgeops {version}, {moment(made_at_s)}. Nothing in this page is loaded from elsewhere."
    footer = tag("footer", tag("p", made))
    body = tag("body", header, tag("main", sections), footer)
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"
