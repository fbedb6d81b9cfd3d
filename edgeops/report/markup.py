"""HTML that escapes by itself: whatever is not made here is text, and what a reader could not see is shown. Pure."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable
from typing import TypeAlias

MAX_TEXT = 4000
# Line ends are white space in HTML; everything else of these categories is invisible or turns text around.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_VOID = frozenset({"meta", "img", "br", "col"})


class Html(str):
    """Text that is HTML."""

    __slots__ = ()


Child: TypeAlias = "str | Iterable[Child] | None"


def tag(name: str, /, *children: Child, **attributes: str | float | None) -> Html:
    """Return an element.

    Args:
        name: Its name.
        children: Text, which is escaped; `Html`, which is not; or iterables of both. None is nothing.
        attributes: `class_` is class, other underscores are hyphens; None leaves one out. `Html` is not escaped.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{value if isinstance(value, Html) else escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{''.join(_flat(children))}</{name}>")


def escape(text: str) -> str:
    """Return text for HTML, between tags or in a quoted attribute."""
    return html.escape(visible(text), quote=True)


def visible(text: str, most: int = MAX_TEXT) -> str:
    """Return text in which control and formatting characters are written out, of at most `most` characters."""
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return "".join(
        f"\\u{ord(letter):04x}" if letter not in "\n\t" and unicodedata.category(letter) in _HIDDEN else letter
        for letter in cut
    )


def number(value: float | None, digits: int = 4) -> str:
    """Return a figure with so many significant digits; "–" where there is none."""
    if value is None:
        return "–"
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}g}"
    return f"{value:.{digits}g}"


def amount(value: float | None, unit: str) -> str:
    """Return a figure with its unit; small sizes in KiB; "–" where there is none."""
    if value is None:
        return "–"
    if unit == "MiB" and 0 < value < 1:
        value, unit = value * 1024, "KiB"
    return f"{number(value)} {unit}".rstrip()


def share(value: float | None) -> str:
    """Return a share as a percentage with one digit; "–" where there is none."""
    return "–" if value is None else f"{value:.1%}"


def metric(name: str, value: float | None) -> str:
    """Return a value of the task's metric: an accuracy as a percentage, an error as it is."""
    return number(value) if value is None or name == "mae" else f"{value:.2%}"


def _flat(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if isinstance(child, Html):
            yield child
        elif isinstance(child, str):
            yield escape(child)
        elif child is not None:
            yield from _flat(child)


def _plain(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"
