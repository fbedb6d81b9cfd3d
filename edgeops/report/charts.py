"""The report's pictures as inline SVG: each has a title for who cannot see it, and colours come from the page. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from edgeops.report.markup import Html, metric, number, share, tag, visible
from edgeops.report.model import CandidateRow, Classes, Estimate, Matrix, Quality, Spread

WIDTH = 340
_LABEL = 16
_ROW = 24


class _Scale(NamedTuple):
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        at = (value - self.low) / span if span else 0.5
        return self.start + min(1.0, max(0.0, at)) * (self.end - self.start)


def quality(told: Quality) -> Html:
    """Draw source and artifact with their confidence intervals on one axis."""
    rows = (("handed over", told.source, "source"), ("artifact", told.artifact, "artifact"))
    bounds = [bound for _, one, _ in rows for bound in (one.low, one.value, one.high) if bound is not None]
    margin = max(max(bounds) - min(bounds), 1e-3) * 0.15
    top = 1.0 if told.metric == "accuracy" else math.inf
    scale = _Scale(max(0.0, min(bounds) - margin), min(top, max(bounds) + margin), 96, WIDTH - 14)
    said = _percent if told.metric != "mae" else number
    parts = [_axis(scale, 72, 12, said)]
    for place, (name, one, style) in enumerate(rows):
        y = 26 + place * 28
        parts += [_text(name, 88, y + 4, "end"), _interval(one, scale, y, style)]
    words = "; ".join(f"{name} {metric(told.metric, one.value)}" for name, one, _ in rows)
    return _svg(WIDTH, 92, f"{told.metric} with {told.confidence:.0%} intervals: {words}", parts)


def recalls(told: Classes) -> Html:
    """Draw each class's recall: a ring for the model that was handed over, a dot for the artifact."""
    known = [row for row in told.rows if row.artifact_recall is not None or row.source_recall is not None]
    values = [one for row in known for one in (row.artifact_recall, row.source_recall) if one is not None]
    low = math.floor(min(values, default=0.0) * 10) / 10 if min(values, default=0.0) < 1 else 0.9
    scale = _Scale(low, 1.0, 116, WIDTH - 14)
    bottom = 10 + len(known) * _ROW
    parts = [_axis(scale, bottom, 8, _percent)]
    for place, row in enumerate(known):
        y = 20 + place * _ROW
        parts.append(_text(_short(row.label), 108, y + 4, "end", row.label))
        ends = [scale(one) for one in (row.source_recall, row.artifact_recall) if one is not None]
        parts.append(tag("line", x1=min(ends), x2=max(ends), y1=y, y2=y, class_="thin"))
        if row.source_recall is not None:
            parts.append(tag("circle", cx=scale(row.source_recall), cy=y, r=6, class_="source ring"))
        if row.artifact_recall is not None:
            parts.append(tag("circle", cx=scale(row.artifact_recall), cy=y, r=3.5, class_="artifact"))
    said = "; ".join(
        f"{visible(row.label, 60)} {share(row.source_recall)} → {share(row.artifact_recall)}" for row in known
    )
    return _svg(WIDTH, bottom + 22, f"recall of each class, handed over → artifact: {said}", parts)


def matrix(told: Matrix) -> Html:
    """Draw the confusion matrix: a row per true class, shades by the share of the row."""
    cell = 34 if len(told.labels) <= 12 else 26
    left, top = 112, 92
    size = cell * len(told.labels)
    parts: list[Html] = [
        _text("decided", left + size / 2, 12, "middle"),
        _text("true", 4, top + size / 2, "start"),
    ]
    for place, label in enumerate(told.labels):
        middle = cell * place + cell / 2
        parts.append(_text(_short(label, 12), left - 8, top + middle + 4, "end", label))
        turn = f"rotate(-45 {left + middle:.6g} {top - 8})"
        parts.append(_text(_short(label, 12), left + middle, top - 8, "start", label, transform=turn))
    for row, counts in enumerate(told.counts):
        whole = sum(counts)
        for column, count in enumerate(counts):
            part = count / whole if whole else 0.0
            x, y = left + cell * column, top + cell * row
            style = "right" if row == column else "mistake"
            parts.append(tag("rect", x=x, y=y, width=cell - 2, height=cell - 2, rx=3, class_="empty"))
            if count:
                # A single mistake among thousands is still to be seen.
                shade = 0.18 + 0.82 * part
                parts.append(
                    tag("rect", x=x, y=y, width=cell - 2, height=cell - 2, rx=3, class_=style, fill_opacity=shade)
                )
                dark = " inverse" if shade > 0.6 else ""
                parts.append(
                    tag("text", str(count), x=x + cell / 2 - 1, y=y + cell / 2 + 3, text_anchor="middle",
                        class_=f"count{dark}")
                )  # fmt: skip
    wrong = sum(sum(row) for row in told.counts) - sum(row[place] for place, row in enumerate(told.counts))
    width = left + size + 60
    return _svg(width, top + size + 6, f"confusion matrix of {len(told.labels)} classes: {wrong} mistakes", parts)


def pareto(rows: Sequence[CandidateRow]) -> tuple[Html, ...]:
    """Draw latency against size, and latency against error: filled where no other candidate is better in everything."""
    drawn = [row for row in rows if row.latency_ms is not None and row.size_bytes > 0]
    if not drawn:
        return ()
    panels = [_panel(drawn, "size, KiB", lambda row: row.size_bytes / 1024, "latency and size")]
    if any(row.error is not None for row in drawn):
        far = [row for row in drawn if row.error is not None]
        panels.append(_panel(far, "error, 1 − cosine", lambda row: max(row.error or 0.0, 1e-7), "latency and error"))
    return tuple(panels)


def spread(told: Spread) -> Html:
    """Draw a histogram; the first and the last bar hold everything beyond the edges."""
    width, height, left = WIDTH, 104, 10
    most = max(told.counts, default=0) or 1
    step = (width - 2 * left) / max(1, len(told.counts))
    whole = sum(told.counts)
    parts: list[Html] = []
    for place, count in enumerate(told.counts):
        tall = 74 * count / most
        beyond = place in (0, len(told.counts) - 1)
        parts.append(
            tag("rect", x=left + step * place + 1, y=82 - tall, width=max(1.0, step - 2), height=tall,
                class_="beyond" if beyond else "bar")
        )  # fmt: skip
    parts.append(tag("line", x1=left, x2=width - left, y1=82, y2=82, class_="axis"))
    if told.edges:
        parts.append(_text(f"< {number(told.edges[0])}", left, 98, "start"))
        parts.append(_text(f"≥ {number(told.edges[-1])}", width - left, 98, "end"))
    title = f"{told.role} {visible(told.tensor, 60)}: {whole} values"
    if told.edges:
        title += f", {share(told.counts[0] / whole if whole else None)} below {number(told.edges[0])}"
        title += f", {share(told.counts[-1] / whole if whole else None)} from {number(told.edges[-1])} on"
    return _svg(width, height, title, parts)


def trace(lines: Sequence[Sequence[float]], title: str) -> Html:
    """Draw a sample's lines, one per channel."""
    values = [value for line in lines for value in line] or [0.0]
    parts = []
    for place, line in enumerate(lines):
        x = _Scale(0, max(1, len(line) - 1), 2, 158)
        y = _Scale(min(values), max(values), 94, 2)
        points = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in enumerate(line))
        parts.append(tag("polyline", points=points, class_=f"line channel-{place % 4}"))
    return _svg(160, 96, title, parts)


def _panel(rows: Sequence[CandidateRow], name: str, value: Callable[[CandidateRow], float], title: str) -> Html:
    xs, ys = [row.latency_ms or 0.0 for row in rows], [value(row) for row in rows]
    x, y = _log_scale(xs, 52, WIDTH - 16), _log_scale(ys, 196, 18)
    parts = [_text(name, 4, 10, "start"), _text("latency, median ms", WIDTH - 16, 238, "end")]
    for at in _ticks(xs):
        place = x(math.log10(at))
        parts += [
            tag("line", x1=place, x2=place, y1=18, y2=200, class_="grid"),
            _text(number(at, 2), place, 216, "middle"),
        ]
    for at in _ticks(ys):
        place = y(math.log10(at))
        parts += [
            tag("line", x1=48, x2=WIDTH - 10, y1=place, y2=place, class_="grid"),
            _text(number(at, 2), 44, place + 4, "end"),
        ]
    for row, across, up in zip(rows, xs, ys, strict=True):
        parts.append(_mark(row, x(math.log10(across)), y(math.log10(up)), f"{number(across)} ms, {number(up)}"))
    said = "; ".join(
        f"{visible(row.scheme, 60)} {number(a)} ms, {number(b)}" for row, a, b in zip(rows, xs, ys, strict=True)
    )
    return _svg(WIDTH, 244, f"{title} of {len(rows)} candidates: {said}", parts)


def _mark(row: CandidateRow, x: float, y: float, figures: str) -> Html:
    words = [row.scheme, figures, "chosen" if row.chosen else "passes" if row.passed else "fails"]
    title = tag("title", ", ".join((*words, "on the Pareto front") if row.pareto else words))
    style = "good" if row.passed else "bad"
    if not row.passed:
        cross = f"M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10"
        shape = tag("path", title, d=cross, class_=f"{style} cross")
    else:
        shape = tag("circle", title, cx=x, cy=y, r=5.5, class_=style if row.pareto else f"{style} ring")
    if not row.chosen:
        return shape
    anchor = "end" if x > WIDTH * 0.6 else "start"
    aside = _text(_short(row.scheme, 26), x + (-12 if anchor == "end" else 12), y + 4, anchor, row.scheme)
    return tag("g", tag("circle", cx=x, cy=y, r=10, class_="chosen"), shape, aside)


def _log_scale(values: Sequence[float], start: float, end: float) -> _Scale:
    logs = [math.log10(value) for value in values if value > 0] or [0.0]
    low, high = min(logs), max(logs)
    margin = max(0.08, (high - low) * 0.1)
    return _Scale(low - margin, high + margin, start, end)


def _ticks(values: Sequence[float]) -> list[float]:
    """Return one, two and five times powers of ten within the values, at most five of them."""
    good = [value for value in values if value > 0] or [1.0]
    low, high = math.log10(min(good)) - 0.08, math.log10(max(good)) + 0.08
    powers = range(math.floor(low), math.ceil(high) + 1)
    found = [
        factor * 10.0**power for power in powers for factor in (1, 2, 5) if low <= math.log10(factor) + power <= high
    ]
    if len(found) < 2:
        # Too near each other for round numbers.
        found = [float(f"{10 ** (low + (high - low) * part):.2g}") for part in (0.1, 0.5, 0.9)]
    if len(found) > 5:
        found = [one for one in found if f"{one:e}"[0] == "1"] or found
        found = found[:: math.ceil(len(found) / 5)]
    return list(dict.fromkeys(found))


def _axis(scale: _Scale, y: float, top: float, said: Callable[[float], str]) -> Html:
    parts = []
    for step in range(5):
        value = scale.low + (scale.high - scale.low) * step / 4
        place = scale(value)
        parts.append(tag("line", x1=place, x2=place, y1=top, y2=y, class_="grid"))
        if step % 2 == 0:
            anchor = "middle" if step < 4 else "end"
            parts.append(_text(said(value), place + (6 if anchor == "end" else 0), y + 15, anchor))
    return tag("g", parts)


def _percent(value: float) -> str:
    return f"{value * 100:.3g}%"


def _interval(one: Estimate, scale: _Scale, y: float, style: str) -> Html:
    parts = []
    if one.low is not None and one.high is not None:
        low, high = scale(one.low), scale(one.high)
        parts += [
            tag("line", x1=low, x2=high, y1=y, y2=y, class_=f"{style} stroke"),
            *(tag("line", x1=end, x2=end, y1=y - 5, y2=y + 5, class_=f"{style} stroke") for end in (low, high)),
        ]
    return tag("g", parts, tag("circle", cx=scale(one.value), cy=y, r=5, class_=style))


def _short(text: str, most: int = _LABEL) -> str:
    shown = visible(text)
    # Labels that are long often differ at their ends.
    tail = most // 3
    return shown if len(shown) <= most else f"{shown[: most - tail - 1]}…{shown[-tail:]}"


def _text(text: str, x: float, y: float, anchor: str, whole: str = "", *, transform: str | None = None) -> Html:
    hint = tag("title", whole) if whole and whole != text else None
    return tag("text", hint, text, x=x, y=y, text_anchor=anchor, transform=transform)


def _svg(width: float, height: float, title: str, parts: Sequence[Html]) -> Html:
    return tag(
        "svg", tag("title", title), parts,
        role="img", width=width, height=height, viewBox=f"0 0 {width:.6g} {height:.6g}",
    )  # fmt: skip
