"""Functions of the product with one check taken out: what a negative control is made of."""

from __future__ import annotations
import __future__

import inspect
import textwrap
from typing import Any

import pytest


def replace(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, check: str, instead: str = "") -> None:
    """Put other text in the place of one check of a function, for as long as a test runs.

    Args:
        monkeypatch: Takes it back.
        owner: The module or class.
        name: The function.
        check: The check's text: it must be there once, so that a control cannot outlive what it is of.
        instead: What stands there then.
    """
    function = vars(owner)[name]
    source = textwrap.dedent(inspect.getsource(function))
    assert function.__closure__ is None
    assert source.count(check) == 1, f"{check!r} is in {name} {source.count(check)} times"
    flags = __future__.annotations.compiler_flag
    made: dict[str, Any] = {}
    exec(
        compile(source.replace(check, instead), f"<{name} without {check}>", "exec", flags), function.__globals__, made
    )
    monkeypatch.setattr(owner, name, made[name])
