"""The report as one HTML page: no script, no request, nothing but what is in the file. Pure."""

from __future__ import annotations

from edgeops.report import sections
from edgeops.report.gather import moment
from edgeops.report.markup import Html, tag
from edgeops.report.model import Report
from edgeops.report.style import CSS

# Nothing may be loaded or run, whatever a name or a label says.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(report: Report) -> str:
    """Return the whole page."""
    title = f"{report.model} {report.version}".rstrip()
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content=f"edgeops {report.edgeops}"),
        tag("title", f"{title}: model report"),
        tag("style", Html(CSS)),
    )
    places = [("hand-over", "Hand-over")]
    places += [(f"profile-{number}", one.profile) for number, one in enumerate(report.profiles)]
    places.append(("lineage", "Lineage"))
    header = tag(
        "header",
        tag("p", "Model report", class_="kicker"),
        tag("h1", title),
        tag("p", sections.abstract(report)),
        tag("nav", [tag("a", words, href=f"#{place}") for place, words in places], aria_label="Sections"),
    )
    main = tag(
        "main",
        sections.cards(report),
        sections.handed_over(report),
        [sections.profile(one, f"profile-{number}") for number, one in enumerate(report.profiles)],
        sections.lineage(report),
    )
    made = (
        f"Made by edgeops {report.edgeops}, {moment(report.made_at_s)}. Nothing in this page is loaded from elsewhere."
    )
    footer = tag("footer", tag("p", made))
    return f"<!doctype html>\n{tag('html', head, tag('body', header, main, footer), lang='en')}\n"
