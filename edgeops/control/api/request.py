"""What all bodies of requests have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


def _has_nul(value: Any) -> bool:
    left = [value]
    while left:  # no recursion: a client decides how deep it is
        one = left.pop()
        if isinstance(one, str):
            if "\0" in one:
                return True
        elif isinstance(one, dict):
            left += [*one, *one.values()]
        elif isinstance(one, list):
            left += one
    return False


class Request(BaseModel):
    """What a client sends: unknown fields are refused, and the character that PostgreSQL's text cannot hold."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _check_text(cls, given: Any) -> Any:
        if _has_nul(given):
            raise ValueError("a text holds the character NUL")
        return given
