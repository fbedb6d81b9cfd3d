"""What rigs of boards found, as parts of a page and of a text. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from edgeops.contracts.rigs import BoardResult, CheckResult, RigResult, Verdict
from edgeops.report.markup import Html, number, tag

_SIGNS = {Verdict.PASSED: "✓", Verdict.FAILED: "✗", Verdict.BROKEN: "!", Verdict.SKIPPED: "–"}
_LOOKS = {Verdict.PASSED: "verdict good", Verdict.FAILED: "verdict bad", Verdict.BROKEN: "verdict bad"}


def section(rigs: Sequence[RigResult]) -> Html | None:
    """Show what rigs found of a release; None where none ran it."""
    if not rigs:
        return None
    return tag(
        "section",
        tag("h2", "On boards", id="boards"),
        [
            (
                tag("p", f"Measured on rig {rig.rig}, run {rig.run}, signed by the rig."),
                [board(one) for one in rig.boards],
            )
            for rig in rigs
        ],
    )


def board(one: BoardResult, place: str | None = None) -> Html:
    """Show one board: what it is, its checks, and the end of its console where something did not pass."""
    facts = {
        "kind": one.kind, "profile": one.profile, "model": f"{one.model} {one.release}".rstrip(), "bundle": one.digest,
        "power is cut by": one.cut, "latency and memory": "judged" if one.timing else "shown, not judged: emulated",
    }  # fmt: skip
    rows = [
        tag("tr", tag("td", _verdict(check)), tag("td", check.check), tag("td", check.said, _figures(check)),
            tag("td", f"{check.duration_s:.1f} s", class_="n"))
        for check in one.checks
    ]  # fmt: skip
    columns = tag("tr", [tag("th", name) for name in ("", "check", "found", "took")])
    return tag(
        "section",
        tag("h3", one.board),
        tag("dl", [(tag("dt", name), tag("dd", value)) for name, value in facts.items() if value], class_="facts"),
        tag("div", tag("table", tag("thead", columns), tag("tbody", rows)), class_="scroll", tabindex="0"),
        (tag("h4", "End of the console"), tag("pre", one.console)) if one.console else None,
        id=place,
    )


def rows(rigs: Sequence[RigResult]) -> list[tuple[str, str, str, str, str]]:
    """Return rig, board, check, verdict and what was found, for a text's table."""
    return [
        (rig.rig, one.board, check.check, check.verdict.value, check.said)
        for rig in rigs
        for one in rig.boards
        for check in one.checks
    ]


def _verdict(check: CheckResult) -> Html:
    words = f"{_SIGNS[check.verdict]} {check.verdict.value}" + (f" {check.code}" if check.code else "")
    return tag("span", words, class_=_LOOKS.get(check.verdict, "soft"))


def _figures(check: CheckResult) -> Html | None:
    given = {name: value for name, value in check.figures.items() if value is not None}
    if not given:
        return None
    words = [f"{name} {number(value) if isinstance(value, float) else value}" for name, value in given.items()]
    return tag("div", "; ".join(words), class_="soft")
