"""The page's sections. Pure."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from edgeops.report import charts
from edgeops.report.gather import FAILED, PASSED
from edgeops.report.markup import Child, Html, amount, metric, number, share, tag
from edgeops.report.model import (
    Change,
    Differences,
    Estimate,
    Fact,
    Figure,
    ProfileReport,
    Quality,
    Report,
    Sample,
    Spread,
)

_PROSE = ("how it was obtained", "detail", "why", "how measured")
_VERDICTS = {PASSED: ("good", "✓ passes all gates"), FAILED: ("bad", "✗ fails"), "unknown": ("soft", "? no evidence")}


def abstract(report: Report) -> str:
    """Say in a sentence what this is."""
    count = len(report.profiles)
    good = sum(one.verdict == PASSED for one in report.profiles)
    what = "1 device profile" if count == 1 else f"{count} device profiles"
    known = [one for one in report.profiles if one.verdict in (PASSED, FAILED)]
    if not known:
        return f"Bundles for {what}, without evidence of how they were made."
    return f"Compiled for {what}; {good} of {count} with a bundle that passes all of its gates."


def cards(report: Report) -> Html:
    """Give each profile a card with what matters most."""
    return tag("div", [_card(one, f"profile-{at}") for at, one in enumerate(report.profiles)], class_="cards")


def _card(one: ProfileReport, place: str) -> Html:
    rows: list[tuple[str, str]] = [("runtime", f"{one.runtime}, {one.precision}")]
    if one.quality is not None:
        told = one.quality
        was = metric(told.metric, told.source.value)
        rows.append((told.metric, f"{metric(told.metric, told.artifact.value)} (was {was})"))
    rows += [
        (figure.what, amount(figure.value, figure.unit))
        for figure in one.figures
        if not figure.what.startswith("float")
    ]
    return tag(
        "div",
        tag("h3", tag("a", one.profile, href=f"#{place}")),
        _verdict(one),
        tag("dl", [(tag("dt", what), tag("dd", value)) for what, value in rows]),
        class_="card",
    )


def handed_over(report: Report) -> Html:
    """Show what was handed over."""
    return tag("section", tag("h2", "What was handed over", id="hand-over"), _facts(report.handed_over, ("part", "is")))


def lineage(report: Report) -> Html:
    """Show where everything comes from."""
    rows = report.lineage or (Fact(what="hand-over", value="not told by the evidence"),)
    return tag(
        "section",
        tag("h2", "Lineage", id="lineage"),
        tag("p", "Digests name exact bytes: equal digests are equal files."),
        _facts(rows, ("what", "digest or value"), style="hash"),
        [
            (tag("h3", one.profile), tag("details", tag("summary", "Digests, host and tool versions"),
             _facts(one.lineage, ("what", "digest or value"), style="hash")))
            for one in report.profiles
        ],
    )  # fmt: skip


def profile(one: ProfileReport, place: str) -> Html:
    """Show all about one bundle."""
    return tag(
        "section",
        tag("h2", one.profile, id=place),
        _verdict(one),
        tag("p", one.reason),
        _facts(one.facts, ("bundle", "is")),
        _differences(one.differences),
        _quality(one),
        _classes(one),
        _apart(one),
        _figures(one.figures),
        _gates(one),
        _candidates(one),
        _worst(one.worst),
        _drift(one),
    )


def _verdict(one: ProfileReport) -> Html:
    style, words = _VERDICTS.get(one.verdict, _VERDICTS["unknown"])
    return tag("p", words, class_=f"verdict {style}")


def _quality(one: ProfileReport) -> Child:
    told = one.quality
    if told is None:
        none = "No labelled data was handed over: quality is judged by agreement with the model alone."
        return (tag("h3", "Quality"), tag("p", none)) if one.verdict in (PASSED, FAILED) else None
    return (
        tag("h3", f"Quality: {told.metric}"),
        tag("p", _quality_words(told)),
        _figure(
            charts.quality(told), f"{told.metric} on {told.samples} samples; bars: {told.confidence:.0%} intervals"
        ),
    )


def _quality_words(told: Quality) -> str:
    source, artifact, drop = (
        metric(told.metric, one.value) + between(told.metric, one) for one in (told.source, told.artifact, told.drop)
    )
    what = "The error grows, relative to the model's own, by" if told.metric == "mae" else "The drop is"
    return (
        f"The model that was handed over reaches {source}, the artifact {artifact}. "
        f"{what} {drop}, on the same {told.samples} samples."
    )


def _classes(one: ProfileReport) -> Child:
    told = one.classes
    if told is None:
        return None
    hidden = f" The {told.hidden} classes with the highest recall are not shown." if told.hidden else ""
    pictures = [
        _figure(charts.recalls(told), f"Recall of each class: ring, as handed over; dot, the artifact.{hidden}"),
        _figure(charts.matrix(told.matrix), "A row per true class, a column per decision of the artifact.")
        if told.matrix is not None
        else None,
    ]
    rows = [
        (row.label, str(row.support), share(row.source_recall), share(row.artifact_recall),
         share(row.source_precision), share(row.artifact_precision))
        for row in told.rows
    ]  # fmt: skip
    mistakes = [(mistake.truth, mistake.decided, str(mistake.count)) for mistake in told.mistakes]
    return (
        tag("h3", f"Classes of {told.output}"),
        tag("div", pictures, class_="charts"),
        tag(
            "details",
            tag("summary", "Figures of each class"),
            _table(("class", "samples", "recall, handed over", "recall, artifact", "precision, handed over",
                    "precision, artifact"), rows, numbers=(1, 2, 3, 4, 5)),
        ),
        (tag("h3", "Most frequent mistakes"), _table(("true", "decided", "times"), mistakes, numbers=(2,)))
        if mistakes
        else tag("p", "It takes no class for another on these samples."),
    )  # fmt: skip


def _apart(one: ProfileReport) -> Child:
    if not one.apart:
        return None
    rows = [
        (row.output, row.step, number(row.cosine, 6), number(row.sqnr_db), number(row.max_abs),
         number(row.agreement), str(row.samples))
        for row in one.apart
    ]  # fmt: skip
    return (
        tag("h3", "Float against quantized"),
        tag("p", "Conversion is the float artifact against the model that was handed over; quantization the artifact "
            "against the float artifact; both together is what devices see."),
        _table(("output", "step", "cosine", "SQNR, dB", "largest difference", "same class", "samples"), rows,
               numbers=(2, 3, 4, 5, 6)),
    )  # fmt: skip


def _figures(figures: Sequence[Figure]) -> Child:
    if not figures:
        return None
    rows = [(one.what, amount(one.value, one.unit), amount(one.limit, one.unit), one.how) for one in figures]
    return (
        tag("h3", "Latency, size and memory"),
        _table(("figure", "value", "budget", "how it was obtained"), rows, numbers=(1, 2)),
    )


def _gates(one: ProfileReport) -> Child:
    if not one.gates:
        return None
    rows: list[Sequence[Child]] = [
        (_mark(gate.passed, gate.binding), gate.gate, number(gate.measured), number(gate.limit), gate.detail)
        for gate in one.gates
    ]
    return (
        tag("h3", "Gates"),
        tag("details", tag("summary", f"{len(rows)} gates with their figures"),
            _table(("", "gate", "measured", "limit", "detail"), rows, numbers=(2, 3)),
            open="" if one.verdict == FAILED else None),
    )  # fmt: skip


def _candidates(one: ProfileReport) -> Child:
    if not one.candidates:
        return None
    pictures = charts.pareto(one.candidates)
    name = "mae" if one.quality is None else one.quality.metric
    key = (
        "Filled: no candidate is better in latency, size and error at once. Ring: passes. Cross: fails. The circled "
        "one was chosen. Both axes are logarithmic."
    )
    rows: list[Sequence[Child]] = [
        (row.scheme, f"{row.size_bytes / 1024:.0f}" if row.size_bytes else "–", number(row.latency_ms),
         "–" if row.ratio is None else f"{row.ratio:.2f} ×", number(row.error, 2), metric(name, row.metric),
         "yes" if row.pareto else "", _outcome(row.chosen, row.passed), row.reason, row.how)
        for row in one.candidates
    ]  # fmt: skip
    marked = frozenset(at for at, row in enumerate(one.candidates) if row.chosen)
    return (
        tag("h3", f"{len(rows)} candidates"),
        tag("div", [_figure(picture) for picture in pictures], class_="charts"),
        tag("p", key, class_="soft") if pictures else None,
        _table(("candidate", "KiB", "median ms", "of float", "error", "metric", "Pareto", "result", "why",
                "how measured"), rows, numbers=(1, 2, 3, 4, 5), chosen=marked),
    )  # fmt: skip


def _worst(samples: Sequence[Sample]) -> Child:
    if not samples:
        return None
    return (
        tag("h3", "Worst samples"),
        tag("p", "Where the artifact does worst, first what the model that was handed over does better."),
        tag("div", [_sample(one) for one in samples], class_="samples"),
    )


def _sample(one: Sample) -> Html:
    picture: Child = None
    if one.picture:
        data = base64.b64encode(one.picture).decode()
        picture = tag("img", src=Html(f"data:image/png;base64,{data}"), alt=f"sample {one.index}")
    elif one.trace:
        picture = charts.trace(one.trace, f"sample {one.index}")
    rows = [
        ("sample", str(one.index)),
        ("true", one.truth),
        ("handed over", one.source),
        ("artifact", one.artifact),
        ("sure", share(one.confidence) if one.confidence is not None else ""),
        ("error", number(one.error) if one.error is not None else ""),
        ("mistakes", str(one.wrong) if one.wrong > 1 else ""),
    ]
    listed = tag("dl", [(tag("dt", what), tag("dd", value)) for what, value in rows if value])
    return tag("div", picture, listed, tag("p", one.why, class_="soft") if one.why else None, class_="sample")


def _drift(one: ProfileReport) -> Child:
    if not one.drift:
        return None
    caption = "{} of {} samples; grey: all below the first edge, and from the last on"
    return (
        tag("h3", "Drift reference"),
        tag("p", "What devices' inputs, outputs and confidence are compared with in the field."),
        tag(
            "div",
            [
                _figure(charts.spread(spread), caption.format(_drifting(spread), one.drift_samples))
                for spread in one.drift
            ],
            class_="charts",
        ),
    )


def _drifting(spread: Spread) -> str:
    return spread.role if spread.role == spread.tensor else f"{spread.role} {spread.tensor}"


def _differences(told: Differences | None) -> Child:
    if told is None:
        return None
    head = tag("h3", f"Against {told.against}")
    if told.same:
        return head, tag("p", "The very same bundle: nothing changes on devices.")
    if not told.changes:
        return head, tag("p", "There is nothing to compare with.")
    rows: list[Sequence[Child]] = [(_change_mark(one), one.what, one.before, one.after) for one in told.changes]
    return (
        head,
        _table(("", "what", "now", "with this"), rows),
        tag("p", "Times and memory were measured at different moments.", class_="soft"),
    )


def _change_mark(one: Change) -> Html:
    if one.breaking:
        return tag("span", "✗ clients see it", class_="bad")
    if one.better is None:
        return tag("span", "changed", class_="soft")
    return tag("span", "✓ better" if one.better else "✗ worse", class_="good" if one.better else "bad")


def _mark(passed: bool, binding: bool) -> Html:
    if passed:
        return tag("span", "✓ passes", class_="good")
    return tag("span", "✗ fails", class_="bad") if binding else tag("span", "only informs", class_="soft")


def _outcome(chosen: bool, passed: bool) -> Html:
    if chosen:
        return tag("span", "✓ chosen", class_="good")
    return tag("span", "passes") if passed else tag("span", "✗ fails", class_="bad")


def _figure(picture: Html, caption: str = "") -> Html:
    return tag("figure", _scroll(picture), tag("figcaption", caption) if caption else None)


def _scroll(*children: Child) -> Html:
    # What is wider than the screen is moved by itself, by keyboard too.
    return tag("div", *children, class_="scroll", tabindex="0")


def _facts(facts: Sequence[Fact], columns: tuple[str, str], *, style: str = "long") -> Html:
    rows = [tag("tr", tag("td", one.what), tag("td", one.value, class_=style)) for one in facts]
    head = tag("thead", tag("tr", [tag("th", column, scope="col") for column in columns]))
    return _scroll(tag("table", head, tag("tbody", rows)))


def _table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Child]],
    *,
    numbers: Sequence[int] = (),
    chosen: frozenset[int] = frozenset(),
) -> Html:
    def style(at: int) -> str | None:
        return "n" if at in numbers else "long" if columns[at] in _PROSE else None

    head = tag("thead", tag("tr", [tag("th", name, scope="col", class_=style(at)) for at, name in enumerate(columns)]))
    body = [
        tag(
            "tr",
            [tag("td", cell, class_=style(at)) for at, cell in enumerate(row)],
            class_="chosen" if line in chosen else None,
        )
        for line, row in enumerate(rows)
    ]
    return _scroll(tag("table", head, tag("tbody", body)))


def between(name: str, one: Estimate) -> str:
    """Return the interval of an estimate in brackets; empty where it is not known."""
    return "" if one.low is None or one.high is None else f" ({metric(name, one.low)} to {metric(name, one.high)})"
