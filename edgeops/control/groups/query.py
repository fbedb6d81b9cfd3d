"""The query language of dynamic groups. Text in, a predicate over facts out; errors name line and column. Pure.

profile = raspberry-pi-4 and label.site in (berlin, "new york") and not release.lines >= 2.0.0
health = failing or seen > 2d
"""

from __future__ import annotations

import fnmatch
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lark import Lark, Token, Transformer, UnexpectedInput, UnexpectedToken, v_args
from lark.exceptions import VisitError
from packaging.version import InvalidVersion, Version

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.topics import SELF_UNIT

MAX_CHARACTERS = 2000
MAX_DEPTH = 50

_GRAMMAR = r"""
    start: either
    ?either: both (_OR both)*
    ?both: term (_AND term)*
    ?term: _NOT term           -> negated
         | "(" either ")"
         | WORD OPERATOR value -> compared
         | WORD _IN "(" value ("," value)* ")" -> one_of
         | WORD                -> flag
    value: WORD | STRING
    OPERATOR: "=" | "!=" | "<=" | "<" | ">=" | ">" | "~"
    _OR.2: /or\b(?![.-])/i
    _AND.2: /and\b(?![.-])/i
    _NOT.2: /not\b(?![.-])/i
    _IN.2: /in\b(?![.-])/i
    WORD: /[A-Za-z0-9_*][A-Za-z0-9_.+:*-]*/
    STRING: /"[^"\n]*"/
    %ignore /\s+/
"""


class Facts(NamedTuple):
    """What is known of one unit.

    Args:
        name: Its connection, or `connection/unit` behind a gateway.
        profile: Its device profile.
        connection: The device that speaks for it: itself, or its gateway.
        unit: `self`, or its name behind the gateway.
        labels: Its labels.
        attributes: What it says that it is: operating system, processor and the like.
        capabilities: Runtime → version, as it says.
        agent: Version of its agent; empty: unknown.
        online: Whether it is connected.
        health: `ok`, `cloned`, `failing`, `stale` or `offline`.
        seen_s: Seconds since it was last heard; infinite: never.
        releases: Model → version that serves.
        states: Model → state of its deployment.
    """

    name: str
    profile: str
    connection: str = ""
    unit: str = SELF_UNIT
    labels: Mapping[str, str] = {}
    attributes: Mapping[str, str] = {}
    capabilities: Mapping[str, str] = {}
    agent: str = ""
    online: bool = False
    health: str = "ok"
    seen_s: float = float("inf")
    releases: Mapping[str, str] = {}
    states: Mapping[str, str] = {}


Predicate = Callable[[Facts], bool]
_Reader = Callable[[Facts], "str | float | bool | None"]

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
HEALTH = ("ok", "cloned", "failing", "stale", "offline")


def parse(text: str) -> Predicate:
    """Read a query.

    Raises:
        EdgeopsError: E-QUERY; names line, column, what was found and what was expected there.
    """
    if len(text) > MAX_CHARACTERS:
        raise EdgeopsError("E-QUERY", f"{len(text)} characters", f"A query has at most {MAX_CHARACTERS}.")
    if text.count("(") + text.lower().count("not") > MAX_DEPTH:
        raise EdgeopsError("E-QUERY", "too many parentheses and negations", f"A query has at most {MAX_DEPTH}.")
    try:
        tree = _parser().parse(text)
        predicate: Predicate = _Compiler().transform(tree)
    except UnexpectedInput as error:
        raise _unexpected(text, error) from error
    except VisitError as error:
        if isinstance(error.orig_exc, EdgeopsError):
            raise error.orig_exc from error
        raise
    return predicate


@functools.cache
def _parser() -> Lark:
    return Lark(_GRAMMAR, parser="lalr", propagate_positions=True)


@v_args(inline=True)
class _Compiler(Transformer[Token, Predicate]):
    """Makes predicates, and checks that fields exist and are compared as what they are."""

    def start(self, inner: Predicate) -> Predicate:
        return inner

    def either(self, *parts: Predicate) -> Predicate:
        return lambda facts: any(part(facts) for part in parts)

    def both(self, *parts: Predicate) -> Predicate:
        return lambda facts: all(part(facts) for part in parts)

    def negated(self, part: Predicate) -> Predicate:
        return lambda facts: not part(facts)

    def value(self, token: Token) -> Token:
        return token.update(value=token.value[1:-1]) if token.type == "STRING" else token

    def flag(self, field: Token) -> Predicate:
        if field.value != "online":
            raise _at(field, f"{field.value!r} is not a yes or no", "Compare it: field = value.")
        return lambda facts: facts.online

    def one_of(self, field: Token, *values: Token) -> Predicate:
        parts = [_comparison(field, "=", value) for value in values]
        return lambda facts: any(part(facts) for part in parts)

    def compared(self, field: Token, sign: Token, value: Token) -> Predicate:
        return _comparison(field, sign.value, value)


def _comparison(field: Token, sign: str, value: Token) -> Predicate:
    kind, _, key = field.value.partition(".")
    if kind in ("agent", "release", "capability") and sign in _ORDER:
        return _version_order(_reader(field, kind, key), sign, value)
    if kind == "seen" and not key:
        return _duration_order(field, sign, value)
    if sign in _ORDER:
        raise _at(field, f"{field.value!r} has no order", "Compare it with =, != or ~.")
    read = _reader(field, kind, key)
    if kind == "health" and sign in ("=", "!=") and value.value not in HEALTH:
        raise _at(value, f"{value.value!r} is no health", f"It is one of: {', '.join(HEALTH)}.")
    wanted = value.value
    if sign == "~":
        return lambda facts: fnmatch.fnmatchcase(str(read(facts) or ""), wanted)
    same = sign == "="
    return lambda facts: (read(facts) == wanted) == same


def _reader(field: Token, kind: str, key: str) -> _Reader:
    plain: dict[str, _Reader] = {
        "name": lambda facts: facts.name,
        "profile": lambda facts: facts.profile,
        "connection": lambda facts: facts.connection,
        "unit": lambda facts: facts.unit,
        "agent": lambda facts: facts.agent,
        "health": lambda facts: facts.health,
    }
    keyed: dict[str, _Reader] = {
        "label": lambda facts: facts.labels.get(key),
        "attribute": lambda facts: facts.attributes.get(key),
        "capability": lambda facts: facts.capabilities.get(key),
        "release": lambda facts: facts.releases.get(key),
        "state": lambda facts: facts.states.get(key),
    }
    if kind in plain and not key:
        return plain[kind]
    if kind in keyed and key:
        return keyed[kind]
    raise _at(
        field,
        f"there is no field {field.value!r}",
        "Fields: name, profile, connection, unit, label.KEY, attribute.KEY, capability.RUNTIME, agent, online, health, "
        "seen, release.MODEL, state.MODEL.",
    )


def _version_order(read: _Reader, sign: str, value: Token) -> Predicate:
    try:
        limit = Version(value.value)
    except InvalidVersion:
        raise _at(value, f"{value.value!r} is not a version", "Write one such as 1.4.0.") from None
    compare = _ORDER[sign]

    def check(facts: Facts) -> bool:
        try:
            return compare(Version(str(read(facts) or "")), limit)
        except InvalidVersion:
            return False  # a device without a version, or with one of another form, is in no order

    return check


def _duration_order(field: Token, sign: str, value: Token) -> Predicate:
    number, unit = value.value[:-1], value.value[-1:]
    if sign not in _ORDER or unit not in _SECONDS or not number.isdecimal() or len(number) > 6:
        raise _at(field, f"seen {sign} {value.value} cannot be read", "Write for example: seen > 2d (s, m, h or d).")
    limit_s, compare = int(number) * _SECONDS[unit], _ORDER[sign]
    return lambda facts: compare(facts.seen_s, limit_s)


def _unexpected(text: str, error: UnexpectedInput) -> EdgeopsError:
    ended = isinstance(error, UnexpectedToken) and error.token.type == "$END"
    found = text[error.pos_in_stream or 0 :].split()[:1]
    if ended or not found:
        what = "at the end: something is missing"
    else:
        what = f"line {error.line}, column {error.column}: {found[0][:40]!r} is not expected"
    return EdgeopsError("E-QUERY", what, "Write for example: profile = raspberry-pi-4 and label.site in (a, b).")


def _at(token: Token, what: str, next_step: str) -> EdgeopsError:
    return EdgeopsError("E-QUERY", f"line {token.line}, column {token.column}: {what}", next_step)
