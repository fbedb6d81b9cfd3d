"""A run's result as an HTML page for people, and as JUnit XML for CI. Pure."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from edgeops.report.markup import Html, number, tag, visible
from edgeops.report.page import document
from hil.results import BoardResult, CheckResult, RigResult, Verdict

_SIGNS = {Verdict.PASSED: "✓", Verdict.FAILED: "✗", Verdict.BROKEN: "!", Verdict.SKIPPED: "–"}
_LOOKS = {Verdict.PASSED: "verdict good", Verdict.FAILED: "verdict bad", Verdict.BROKEN: "verdict bad"}


def to_html(result: RigResult) -> str:
    """Return one self-contained page."""
    return document(
        title=f"Rig {result.rig}: {result.verdict.value}",
        kicker="Hardware-in-the-loop run",
        heading=f"Rig {result.rig}: {result.verdict.value}",
        abstract=_abstract(result),
        places=[(f"board-{index}", board.board) for index, board in enumerate(result.boards)],
        sections=[_board(board, f"board-{index}") for index, board in enumerate(result.boards)],
        version=result.edgeops,
        made_at_s=result.at_s,
    )


def _abstract(result: RigResult) -> str:
    passed = sum(board.verdict is Verdict.PASSED for board in result.boards)
    took = f"in {result.duration_s:.0f} s on {result.host}"
    return f"{passed} of {len(result.boards)} boards passed, {took}. Run {result.run}."


def _board(board: BoardResult, place: str) -> Html:
    facts = {
        "kind": board.kind, "profile": board.profile, "model": f"{board.model} {board.release}".rstrip(),
        "bundle": board.digest, "power is cut by": board.cut,
        "latency and memory": "judged" if board.timing else "shown, not judged: emulated",
    }  # fmt: skip
    rows = [
        tag("tr", tag("td", _verdict(check)), tag("td", check.check), tag("td", check.said, _figures(check)),
            tag("td", f"{check.duration_s:.1f} s", class_="n"))
        for check in board.checks
    ]  # fmt: skip
    columns = tag("tr", [tag("th", name) for name in ("", "check", "found", "took")])
    return tag(
        "section",
        tag("h2", board.board),
        tag("dl", [(tag("dt", name), tag("dd", value)) for name, value in facts.items() if value]),
        tag("div", tag("table", tag("thead", columns), tag("tbody", rows)), class_="scroll", tabindex="0"),
        (tag("h3", "End of the console"), tag("pre", board.console)) if board.console else None,
        id=place,
    )


def _verdict(check: CheckResult) -> Html:
    words = f"{_SIGNS[check.verdict]} {check.verdict.value}" + (f" {check.code}" if check.code else "")
    return tag("span", words, class_=_LOOKS.get(check.verdict, "soft"))


def _figures(check: CheckResult) -> Html | None:
    given = {name: value for name, value in check.figures.items() if value is not None}
    if not given:
        return None
    words = [f"{name} {number(value) if isinstance(value, float) else value}" for name, value in given.items()]
    return tag("div", "; ".join(words), class_="soft")


def to_junit(result: RigResult) -> str:
    """Return JUnit XML: a suite per board, a case per check. What could not be found out is an error, not a failure."""
    top = ET.Element("testsuites", name=f"rig {result.rig}", time=f"{result.duration_s:.3f}")
    for board in result.boards:
        counts = {verdict: sum(check.verdict is verdict for check in board.checks) for verdict in Verdict}
        suite = ET.SubElement(
            top,
            "testsuite",
            name=f"{result.rig}.{board.board}",
            tests=str(len(board.checks)),
            failures=str(counts[Verdict.FAILED]),
            errors=str(counts[Verdict.BROKEN]),
            skipped=str(counts[Verdict.SKIPPED]),
            time=f"{sum(check.duration_s for check in board.checks):.3f}",
        )
        for check in board.checks:
            _case(suite, board, check)
    return ET.tostring(top, encoding="unicode", xml_declaration=True)


def _case(suite: ET.Element, board: BoardResult, check: CheckResult) -> None:
    case = ET.SubElement(
        suite, "testcase", classname=f"{board.board}.{board.profile}", name=check.check, time=f"{check.duration_s:.3f}"
    )
    figures = "\n".join(f"{name}: {value}" for name, value in check.figures.items())
    kinds = {Verdict.FAILED: "failure", Verdict.BROKEN: "error", Verdict.SKIPPED: "skipped"}
    if check.verdict in kinds:
        found = ET.SubElement(case, kinds[check.verdict], message=visible(check.said))
        if check.code:
            found.set("type", check.code)
        found.text = visible(figures)
    elif figures:
        ET.SubElement(case, "system-out").text = visible(figures)
