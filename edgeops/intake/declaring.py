"""Writes `handover.toml` for people: every table explained, nothing that says its default."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from edgeops.contracts.handover import Handover

_HEAD = (
    "# What this model takes and gives. Keys and steps: docs/reference/handover.md; `edgeops handover check` proves it."
)
_WHY = {
    "model": "The name in the fleet, and the file beside this one.",
    "inputs": "What a device sends: name, type, shape with the batch axis; steps from there become part of the model.",
    "outputs": "What a device gets. kind says how a compiled model is compared: probabilities and logits by class, "
    "classes by equality, embedding by cosine, values by error.",
    "calibration": "Real inputs as devices send them, samples along the first axis: int8 takes its ranges from them.",
    "evaluation": "Real inputs with the true answers, to judge quality by: keep them apart from the training data.",
    "gates": "The quality that every compiled model keeps against this one.",
    "budgets": "The most that it may cost on a profile.",
}
_WIDTH = 110


def to_toml(handover: Handover, notes: Mapping[str, Sequence[str]] | None = None) -> str:
    """Return the text of `handover.toml`.

    Args:
        handover: What is declared.
        notes: Place (`inputs.NAME`, `outputs.NAME`, `calibration`, …) → lines that say why it is so, as comments.
    """
    notes = notes or {}
    declared = _plain(handover)
    lines = [_HEAD, f"schema = {handover.schema_version}"]
    if handover.nan_policy != "fail":
        lines.append(f'nan_policy = "{handover.nan_policy}"')
    for key in ("model", "inputs", "outputs", "calibration", "evaluation", "gates", "budgets"):
        value = declared.get(key)
        if not value:
            lines += _comments(notes.get(key, ()))
            continue
        lines += ["", *_comments((_WHY[key],))]
        if isinstance(value, list):
            for place, item in enumerate(value):
                lines += [*([""] if place else []), *_comments(notes.get(f"{key}.{item['name']}", ())), f"[[{key}]]"]
                lines += _pairs(item)
        elif key == "budgets":
            for profile, limits in value.items():
                lines += [f"[budgets.{json.dumps(profile)}]", *_pairs(limits)]
        else:
            lines += [*_comments(notes.get(key, ())), f"[{key}]", *_pairs(value)]
    return "\n".join(lines) + "\n"


def _plain(handover: Handover) -> dict[str, Any]:
    """Return plain values without what is the default anyway."""
    found = _without_defaults(handover)
    assert isinstance(found, dict)
    return found


def _without_defaults(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        kept: dict[str, Any] = {}
        config = value.__struct_config__
        if config.tag is not None:
            kept[str(config.tag_field)] = config.tag
        for field in msgspec.structs.fields(value):
            own = getattr(value, field.name)
            if own != field.default or field.required:
                kept[field.encode_name] = _without_defaults(own)
        return kept
    if isinstance(value, tuple | list):
        return [_without_defaults(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_defaults(item) for key, item in value.items()}
    return value


def _pairs(table: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, value in table.items():
        if value is None:
            continue
        if (isinstance(value, list) and value and isinstance(value[0], dict)) or (
            isinstance(value, list) and len(_value(value)) > _WIDTH
        ):
            lines += [f"{key} = [", *(f"  {_value(item)}," for item in value), "]"]
        else:
            lines.append(f"{key} = {_value(value)}")
    return lines


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(item)}" for key, item in value.items() if item is not None) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    # Strings, numbers and truth values are alike in JSON and TOML, but for one letter that JSON leaves as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comments(lines: Sequence[str]) -> list[str]:
    # Lines of code to take over stay whole.
    return [
        f"# {part}".rstrip()
        for line in lines
        for part in (textwrap.wrap(line, _WIDTH) if len(line) > _WIDTH and not line.startswith(" ") else [line])
    ]
