"""Fuzz what strangers can send, guided by coverage: each target for a while, in a process of its own.

    python tests/fuzz/run.py [--seconds N] [--corpus DIR] [TARGET...]

What was found interesting is kept in the corpus and goes on the next time. Ends with 1 at the first finding; its input
lies in the corpus as `crash-…`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

FIRMWARE = "firmware"
ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("EDGEOPS_CACHE", Path.home() / ".cache" / "edgeops"))


def fuzz(name: str, seconds: int, corpus: Path) -> None:
    """Fuzz one target; ends the process."""
    import atheris

    for folder in ("fuzz", "trust", "releases"):
        sys.path.insert(0, str(ROOT / "tests" / folder))
    with atheris.instrument_imports(include=["edgeops", "tuf", "securesystemslib", "zipfile"]):
        import targets

    folder = corpus / name
    folder.mkdir(parents=True, exist_ok=True)
    target = targets.TARGETS[name]
    options = [
        f"-max_total_time={seconds}", "-max_len=200", "-timeout=30", "-rss_limit_mb=2048", "-print_final_stats=1",
        f"-artifact_prefix={folder}/",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(folder)], target)
    atheris.Fuzz()


def fuzz_firmware(seconds: int, corpus: Path) -> subprocess.CompletedProcess[str]:
    """Fuzz the firmware's host build with libFuzzer, where clang has it."""
    from firmware_bridge.build import guided_fuzzer

    folder = corpus / FIRMWARE
    folder.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", "-max_len=2048", "-timeout=30", "-print_final_stats=1"]
    command = [str(guided_fuzzer()), *options, f"-artifact_prefix={folder}/", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def main() -> int:
    """Fuzz each target in turn."""
    parser = argparse.ArgumentParser(description="Fuzz what strangers can send.")
    parser.add_argument("--seconds", type=int, default=60, help="time for each target")
    parser.add_argument("--corpus", type=Path, default=CACHE / "fuzz")
    parser.add_argument("--only", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    wish = parser.parse_args()
    names = wish.targets or [
        "metadata",
        "envelope",
        "certificate",
        "bundle",
        "stick",
        "topic",
        "token",
        "image",
        "blob",
        FIRMWARE,
    ]
    if wish.only:
        fuzz(names[0], wish.seconds, wish.corpus)
    for name in names:
        command = [sys.executable, __file__, "--only", "--seconds", str(wish.seconds), "--corpus", str(wish.corpus)]
        if name == FIRMWARE:
            done = fuzz_firmware(wish.seconds, wish.corpus)
        else:
            done = subprocess.run([*command, name], capture_output=True, text=True, check=False)
        runs = next((line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line), "?")
        print(f"{name:12} {runs:>9} inputs in {wish.seconds} s: {'nothing' if done.returncode == 0 else 'A FINDING'}")
        if done.returncode:
            print(done.stdout[-2000:] + done.stderr[-4000:])
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
