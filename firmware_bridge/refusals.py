"""Why a device says no, in words: the reasons of edgeops' firmware, and the codes of MCUmgr's groups."""

from __future__ import annotations

from typing import Any

from firmware_bridge import packets

OFFSET = "the bytes do not follow those that came"
# What edgeops' firmware says beside the code.
_REASONS = {
    "flash": "its flash failed",
    "busy": "the slot runs a trial: confirm it or reset the device first",
    "size": "it is too large for the device",
    "offset": OFFSET,
    "empty": "there is nothing there",
    "form": "it is no model blob",
    "abi": "the blob has another calling convention than the firmware",
    "cpu": "the blob is for another processor",
    "hash": "the code is not the one that was signed",
    "key": "it is signed by a key that the firmware does not hold",
    "signature": "the signature is wrong",
    "downgrade": "its counter is below what the device has confirmed",
}
# Codes of the protocol itself: answers of version 1, and those without a group.
_PROTOCOL = {
    1: "it does not know why",
    2: "it has too little memory for that",
    3: "a value is not acceptable",
    4: "it took too long",
    5: "there is no such thing",
    6: "it cannot do that in its state",
    7: "the answer is too large",
    8: "it has no such command",
    9: "the data is damaged",
    10: "it is busy",
    11: "that is not allowed",
}
# Codes of the image group, as Zephyr's server gives them.
_IMAGE = {
    1: "it does not know why",
    2: "it cannot find its flash area",
    3: "there is no image in the slot",
    4: "the image in the slot has no TLVs",
    5: "the image in the slot has a wrong TLV",
    6: "the image in the slot has several hashes",
    7: "the image in the slot has a TLV of a wrong size",
    8: "the image in the slot has no hash",
    9: "no slot is free: confirm what runs, or reset the device first",
    10: "its flash cannot be opened",
    11: "its flash cannot be read",
    12: "its flash cannot be written",
    13: "its flash cannot be erased",
    14: "there is no such slot",
    15: "it has too little memory for that",
    20: "the offset is missing",
    21: "the length is missing",
    22: "it is smaller than an image's header",
    23: "it is no MCUboot image",
    24: "no slot holds an image of this hash",
    25: "it is linked for another address",
    26: "it cannot tell its own version",
    27: "what runs is newer",
    28: "another image waits for the next reset: reset the device first",
    29: "its vector table is wrong",
    30: "it is too large for the slot",
    31: "more came than the image has",
    32: "what runs may not be confirmed",
    33: "it runs already",
}
_IMAGE_GROUP = 1


def told(values: dict[str, Any]) -> str | None:
    """Return why an answer is a refusal, or None: it grants what was asked.

    Args:
        values: Of the answer: `rc`, with `rsn` from edgeops' firmware, or `err` of version 2.
    """
    error, code, reason = values.get("err"), values.get("rc", 0), values.get("rsn")
    if not code and not error:
        return None
    if isinstance(reason, str):
        return _REASONS.get(reason) or packets.shown(reason, 80)
    words = _PROTOCOL
    if isinstance(error, dict):
        code = error.get("rc", 0)
        words = _IMAGE if error.get("group") == _IMAGE_GROUP else _PROTOCOL
    unknown = packets.shown(f"error {error or code}", 80)
    return words.get(code, unknown) if isinstance(code, int) else unknown
