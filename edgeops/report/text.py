"""The report as Markdown, for a pull request or a terminal. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from edgeops.report import rigs
from edgeops.report.gather import FAILED, moment
from edgeops.report.markup import amount, metric, number, share, visible
from edgeops.report.model import Change, Fact, ProfileReport, Report
from edgeops.report.sections import abstract, between

# What Markdown or the HTML in it would take for markup.
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~&$]|:(?=//)|(?<=www)\.)")


def markdown(report: Report) -> str:
    """Return the report; pictures are left to the page."""
    lines = [f"# Model report: {_safe(f'{report.model} {report.version}'.rstrip())}", "", _safe(abstract(report)), ""]
    lines += _table(
        ("profile", "result", "runtime", "metric", "latency, median", "size", "memory"),
        (_summary(one) for one in report.profiles),
    )
    lines += ["## What was handed over", "", *_facts(report.handed_over)]
    for one in report.profiles:
        lines += _profile(one)
    if report.rigs:
        lines += ["## On boards", ""]
        lines += _table(("rig", "board", "check", "result", "found"), rigs.rows(report.rigs))
    lines += ["## Lineage", "", *_facts(report.lineage)]
    for one in report.profiles:
        lines += [f"### {_safe(one.profile)}", "", *_facts(one.lineage)]
    lines.append(f"Made by edgeops {_safe(report.edgeops)}, {_safe(moment(report.made_at_s))}.")
    return "\n".join(lines) + "\n"


def _summary(one: ProfileReport) -> Sequence[str]:
    figures = {figure.what.partition(", peak")[0].partition(", arena")[0]: figure for figure in one.figures}
    told = one.quality
    quality = "" if told is None else f"{told.metric} {metric(told.metric, told.artifact.value)}"

    def said(what: str) -> str:
        figure = figures.get(what)
        return "" if figure is None else amount(figure.value, figure.unit)

    head = (one.profile, one.verdict, f"{one.runtime}, {one.precision}", quality)
    return (*head, said("latency, median"), said("size"), said("memory"))


def _profile(one: ProfileReport) -> list[str]:
    lines = [f"## {_safe(one.profile)}", "", f"**{_safe(one.verdict)}**: {_safe(one.reason)}", "", *_facts(one.facts)]
    told = one.differences
    if told is not None:
        lines += [f"### Against {_safe(told.against)}", ""]
        lines += ["The very same bundle.", ""] if told.same else []
        lines += _table(("what", "now", "with this", ""), (_change(change) for change in told.changes))
    if one.quality is not None:
        name = one.quality.metric
        lines += [f"### Quality on {one.quality.samples} samples, {one.quality.confidence:.0%} intervals", ""]
        lines += _table(
            ("", name, "interval"),
            (
                (what, metric(name, value.value), between(name, value).strip(" ()"))
                for what, value in (
                    ("handed over", one.quality.source),
                    ("artifact", one.quality.artifact),
                    ("drop", one.quality.drop),
                )
            ),
        )
    if one.classes is not None:
        lines += _table(
            ("class", "samples", "recall, handed over", "recall, artifact"),
            (
                (row.label, str(row.support), share(row.source_recall), share(row.artifact_recall))
                for row in one.classes.rows
            ),
        )
        lines += _table(
            ("true", "decided", "times"),
            ((mistake.truth, mistake.decided, str(mistake.count)) for mistake in one.classes.mistakes),
        )
    lines += _table(
        ("output", "step", "cosine", "SQNR, dB", "largest difference", "same class"),
        (
            (
                row.output,
                row.step,
                number(row.cosine, 6),
                number(row.sqnr_db),
                number(row.max_abs),
                share(row.agreement),
            )
            for row in one.apart
        ),
    )
    lines += _table(
        ("figure", "value", "budget", "how it was obtained"),
        (
            (figure.what, amount(figure.value, figure.unit), amount(figure.limit, figure.unit), figure.how)
            for figure in one.figures
        ),
    )
    failed = [gate for gate in one.gates if not gate.passed and gate.binding]
    if one.verdict == FAILED and failed:
        lines += ["### Gates that failed", ""]
        lines += _table(
            ("gate", "measured", "limit", "detail"),
            ((gate.gate, number(gate.measured), number(gate.limit), gate.detail) for gate in failed),
        )
    lines += _table(
        ("candidate", "KiB", "median ms", "error", "Pareto", "result", "why"),
        (
            (row.scheme, f"{row.size_bytes / 1024:.0f}", number(row.latency_ms), number(row.error, 2),
             "yes" if row.pareto else "", "chosen" if row.chosen else "passes" if row.passed else "fails", row.reason)
            for row in one.candidates
        ),
    )  # fmt: skip
    return lines


def _change(one: Change) -> Sequence[str]:
    better = "" if one.better is None else "better" if one.better else "worse"
    return one.what, one.before, one.after, "clients see it" if one.breaking else better


def _facts(facts: Sequence[Fact]) -> list[str]:
    return _table(("what", "is"), ((fact.what, fact.value) for fact in facts))


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table and an empty line; nothing where there are no rows."""
    body = [f"| {' | '.join(_safe(cell) for cell in row)} |" for row in rows]
    if not body:
        return []
    return [f"| {' | '.join(_safe(name) for name in columns)} |", "|" + "---|" * len(columns), *body, ""]


def _safe(text: str) -> str:
    """Return text on one line in which nothing is markup."""
    return _SPECIAL.sub(r"\\\1", " ".join(visible(text).split()))
