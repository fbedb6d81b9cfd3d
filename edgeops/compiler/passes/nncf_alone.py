"""NNCF for OpenVINO models: without torch, which it loads wherever that is installed, in a second and 150 MB."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def without_torch() -> Iterator[None]:
    """Let imports of torch fail, as they do where it is not installed; a torch that is loaded already stays."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]  # documented: importing it then fails
    try:
        yield
    finally:
        if hidden:
            del sys.modules["torch"]
