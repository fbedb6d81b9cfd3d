"""The query language of groups: what it finds, and that its errors name the place."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeops.contracts.errors import EdgeopsError
from edgeops.control.groups.query import MAX_CHARACTERS, MAX_DEPTH, Facts, parse

PI = Facts(
    name="pi-1", profile="raspberry-pi-4", labels={"site": "new york", "or": "x"}, agent="0.9.1", online=True,
    health="ok", seen_s=30.0, releases={"lines": "1.10.0"}, states={"lines": "confirmed"},
)  # fmt: skip
NUC = Facts(name="nuc-7", profile="intel-nuc", labels={"site": "berlin"}, health="failing", seen_s=200_000.0)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("profile = raspberry-pi-4", "pi"),
        ("profile != raspberry-pi-4", "nuc"),
        ('label.site = "new york"', "pi"),
        ("label.site in (berlin, paris)", "nuc"),
        ("label.none = x", ""),
        ("label.none != x", "pi nuc"),
        ("online", "pi"),
        ("not online", "nuc"),
        ("name ~ pi-*", "pi"),
        ("agent >= 0.9.1", "pi"),
        ("agent < 1.0", "pi"),
        ("release.lines > 1.9.0", "pi"),
        ("release.lines = 1.10.0 and online", "pi"),
        ("release.other >= 0", ""),
        ("state.lines = confirmed", "pi"),
        ("health = failing or seen < 1m", "pi nuc"),
        ("seen > 2d", "nuc"),
        ("online or profile = intel-nuc and health = ok", "pi"),
        ("(online or profile = intel-nuc) and not health = ok", "nuc"),
        ("NOT (online AND health = ok)", "nuc"),
        ("label.or = x", "pi"),
        ("name in (pi-1, nuc-7)", "pi nuc"),
        ("profile = notebook or profile = intel-nuc", "nuc"),
        ("not not online", "pi"),
    ],
)
def test_a_query_finds_what_it_says(text: str, found: str) -> None:
    predicate = parse(text)
    assert " ".join(name for name, facts in (("pi", PI), ("nuc", NUC)) if predicate(facts)) == found


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("profile = ", "at the end", "missing"),
        ("", "at the end", "missing"),
        ("profile == x", "column 10", "'=' is not expected"),
        ("online and\nprofil = x", "line 2, column 1", "no field 'profil'"),
        ("(online", "at the end", "missing"),
        ("online)", "column 7", "')' is not expected"),
        ("health = sick", "column 10", "'sick' is no health"),
        ("profile < b", "column 1", "has no order"),
        ("release.lines < new", "column 17", "is not a version"),
        ("seen > soon", "column 1", "cannot be read"),
        ("seen = 2d", "column 1", "cannot be read"),
        ("label = x", "column 1", "no field 'label'"),
        ("name.x = y", "column 1", "no field 'name.x'"),
        ("profile", "column 1", "not a yes or no"),
        ("name = a b", "column 10", "'b' is not expected"),
        ("name = a; drop table devices", "column 9", "';"),
    ],
)
def test_an_error_names_the_place_and_the_cause(text: str, place: str, says: str) -> None:
    with pytest.raises(EdgeopsError) as refused:
        parse(text)
    assert refused.value.code == "E-QUERY"
    assert place in refused.value.what
    assert says in refused.value.what


@pytest.mark.parametrize(
    "text", ["(" * 500 + "online" + ")" * 500, "not " * 400 + "online", "x" * (MAX_CHARACTERS + 1)]
)
def test_a_query_that_is_built_to_exhaust_is_refused(text: str) -> None:
    with pytest.raises(EdgeopsError, match="at most"):
        parse(text)


def test_the_deepest_query_that_is_allowed_is_answered() -> None:
    assert parse("(" * MAX_DEPTH + "online" + ")" * MAX_DEPTH)(PI)


WORDS = ["(", ")", "and", "or", "not", "in", "=", "!=", "~", "<", ",", "name", "online", "label.a", "seen", "1", "2d"]


@settings(deadline=None)
@given(st.text(max_size=60) | st.lists(st.sampled_from(WORDS)).map(" ".join))
def test_any_text_is_a_query_or_is_refused(text: str) -> None:
    try:
        predicate = parse(text)
    except EdgeopsError as error:
        code = error.code
    else:
        code = "E-QUERY" if predicate(PI) in (True, False) else "neither"
    assert code == "E-QUERY"
