"""Compile some hand-overs for some profiles in one process: `python -m benchmarks.compile_set OUT PROFILE,… FOLDER…`.

Prints one JSON line per hand-over: its folder, the seconds it took, and per profile that has no bundle the reason.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from pathlib import Path

from edgeops import compiler
from edgeops.contracts.errors import EdgeopsError


def main() -> None:
    """Compile; each result goes to `OUT/<name of the folder>`."""
    out, profiles = Path(sys.argv[1]), sys.argv[2].split(",")
    for folder in map(Path, sys.argv[3:]):
        start = time.monotonic()
        refused = _compile(folder, profiles, out / folder.name)
        line = {"folder": folder.name, "seconds": time.monotonic() - start, "refused": refused}
        print(json.dumps(line), flush=True)


def _compile(folder: Path, profiles: list[str], out: Path) -> dict[str, str]:
    """Return the profiles without a bundle that passes, each with its reason."""
    try:
        results = compiler.compile(folder, profiles, out).profiles
    # Also a defect costs one model and profile of the set, and is told as its reason.
    except Exception as error:  # noqa: BLE001  told as a missed target; the other models go on
        if not isinstance(error, EdgeopsError):
            traceback.print_exc()
        if len(profiles) == 1:
            return {profiles[0]: " ".join(str(error).split())[:300] or type(error).__name__}
        # A profile that cannot serve this kind of model does not keep the others from it.
        return {name: why for one in profiles for name, why in _compile(folder, [one], out).items()}
    return {result.profile: result.missed for result in results if not result.passed}


if __name__ == "__main__":
    main()
