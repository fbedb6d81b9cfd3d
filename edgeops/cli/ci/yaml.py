"""Writes the little YAML that pipelines need: maps, lists, text; several lines as a block. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

Value: TypeAlias = "str | int | bool | Sequence[Value] | Mapping[str, Value]"

# Text that no version of YAML takes for anything else, unquoted.
_PLAIN = re.compile(r"[A-Za-z./_][A-Za-z0-9./_ ()+,=<>@-]*[A-Za-z0-9./_)+-]")
_WORDS = re.compile(r"(?i)(y|n|yes|no|on|off|true|false|null|~|nan|inf|\.inf|\.nan)")


def dump(value: Mapping[str, Value]) -> str:
    """Return a map as YAML, keys in their order, an empty line before each of the first level."""
    return "\n".join(_entry(key, item, 0) + "\n" for key, item in value.items())


def _entry(key: str, value: Value, depth: int) -> str:
    pad = "  " * depth
    head = f"{pad}{_text(key)}:"
    if isinstance(value, Mapping):
        lines = [_entry(name, item, depth + 1) for name, item in value.items()]
        return "\n".join([head, *lines]) if lines else f"{head} {{}}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        lines = [_item(item, depth + 1) for item in value]
        return "\n".join([head, *lines]) if lines else f"{head} []"
    return f"{head} {_scalar(value, depth + 1)}"


def _item(value: Value, depth: int) -> str:
    pad = "  " * depth
    if isinstance(value, Mapping):
        lines = "\n".join(_entry(name, item, depth + 1) for name, item in value.items())
        return f"{pad}- {lines.lstrip()}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        raise TypeError("pipelines have no lists in lists")
    return f"{pad}- {_scalar(value, depth + 1)}"


def _scalar(value: str | int | bool, depth: int) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if "\n" in value:
        pad = "  " * depth
        return "|\n" + "\n".join(pad + line if line else "" for line in value.rstrip("\n").split("\n"))
    return _text(value)


def _text(value: str) -> str:
    if _PLAIN.fullmatch(value) and not _WORDS.fullmatch(value):
        return value
    if "'" not in value and value.isprintable():
        return f"'{value}'"
    # JSON's strings are YAML's double-quoted ones.
    return json.dumps(value, ensure_ascii=False)
