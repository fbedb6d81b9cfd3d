"""Olive's own environment: pinned, made once in the cache, as edgeops makes its isolated converters.

Olive needs torch and, not declared, requests.
"""

from __future__ import annotations

from pathlib import Path

from edgeops.compiler.toolchain import Toolchain, ensure

OLIVE = Toolchain(
    name="olive",
    version="0.13.0",
    requirements=tuple((Path(__file__).parent / "olive-requirements.txt").read_text(encoding="utf-8").split()),
    module="olive",
    purpose="peer of `make bench-compile`",
)


def olive_python() -> Path:
    """Return the interpreter of Olive's environment, which is made first where it is not there.

    Raises:
        EdgeopsError: E-TOOLCHAIN; it cannot be installed.
    """
    return ensure(OLIVE) / "bin" / "python"
