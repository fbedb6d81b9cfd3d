"""Results as JUnit XML, the form that every CI shows: a gate is a test case, and one that fails says its figures.

What measures or decides makes `Case`s; `document` writes them. Pure.

Source: the schema of Jenkins' xUnit plugin, junit-10.xsd: element names, and the order within them.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from typing import NamedTuple
from xml.etree import ElementTree

# What XML 1.0 cannot hold, escaped or not.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Outcome(enum.Enum):
    """How a case ended: `FAILED` is a gate's no, `ERROR` is what could not be carried out."""

    PASSED = "passed"
    FAILED = "failure"
    ERROR = "error"
    SKIPPED = "skipped"


class Case(NamedTuple):
    """One test case.

    Args:
        suite: What it belongs to, such as `compile.raspberry-pi-4`.
        name: What was asked, such as a gate.
        outcome: How it ended.
        message: Its figures in one line.
        detail: More, in lines.
        kind: The error's code, or the gate's kind.
        seconds: How long it took, where that is known.
    """

    suite: str
    name: str
    outcome: Outcome
    message: str = ""
    detail: str = ""
    kind: str = ""
    seconds: float = 0.0


def document(cases: Sequence[Case], name: str) -> bytes:
    """Return the XML document of some cases, suites in the order in which they first appear."""
    root = ElementTree.Element("testsuites", {"name": _text(name), **_counts(cases)})
    for suite in dict.fromkeys(case.suite for case in cases):
        own = [case for case in cases if case.suite == suite]
        element = ElementTree.SubElement(root, "testsuite", {"name": _text(suite), **_counts(own)})
        for case in own:
            _write(element, case)
    ElementTree.indent(root)
    data: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return data + b"\n"


def _write(suite: ElementTree.Element, case: Case) -> None:
    attributes = {"classname": _text(case.suite), "name": _text(case.name), "time": f"{case.seconds:.3f}"}
    element = ElementTree.SubElement(suite, "testcase", attributes)
    if case.outcome is Outcome.PASSED:
        if case.message:
            ElementTree.SubElement(element, "system-out").text = _text(case.message)
        return
    said = {"message": _text(case.message)}
    if case.outcome is not Outcome.SKIPPED:
        said["type"] = _text(case.kind or case.outcome.value)
    result = ElementTree.SubElement(element, case.outcome.value, said)
    result.text = _text(case.detail or case.message)


def _counts(cases: Sequence[Case]) -> dict[str, str]:
    def number(outcome: Outcome) -> str:
        return str(sum(case.outcome is outcome for case in cases))

    return {
        "tests": str(len(cases)),
        "failures": number(Outcome.FAILED),
        "errors": number(Outcome.ERROR),
        "skipped": number(Outcome.SKIPPED),
        "time": f"{sum(case.seconds for case in cases):.3f}",
    }


def _text(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
