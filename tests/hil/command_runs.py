"""`edgeops hil run` as a process that a test interrupts."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

# An emulated board is known by its rig's name, and belongs to one run of the whole machine at a time: tests that run
# beside each other have rigs of their own.
BENCH = f"bench-{os.getpid()}"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def running(
    folder: Path, board: str, bundle: Path, *, after_lines: int = 0, mutant: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """A run on a rig of one board; it is killed at the end if it is still there.

    Args:
        folder: For the rig's file.
        board: The board's keys, as its file has them.
        bundle: What to run.
        after_lines: How many lines it shall have said.
        mutant: Python that changes edgeops before the command begins.
    """
    rig = folder / f"{BENCH}.toml"
    rig.write_text(f'name = "{BENCH}"\ntitle = "b"\n[[boards]]\n{board}\n')
    code = f"{mutant}\nfrom edgeops.cli import main\nmain()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "hil", "run", str(rig), "--bundle", str(bundle), "--soak", "60"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_as_from_a_terminal,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        for _ in range(after_lines):
            assert process.stderr.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def interrupt(process: subprocess.Popen[str], chance: random.Random, within_s: float) -> list[psutil.Process]:
    """Interrupt a run at a random moment, three times, and wait for its end; return whom it had started."""
    seen: list[psutil.Process] = []
    deadline_s = time.monotonic() + chance.uniform(0.2, within_s)
    while time.monotonic() < deadline_s:
        time.sleep(0.02)
        seen += [one for one in psutil.Process(process.pid).children(recursive=True) if one not in seen]
    for _ in range(3):
        process.send_signal(chance.choice(ENDING))
        time.sleep(chance.uniform(0.0, 0.05))
    process.communicate(timeout=120)
    return seen


def _as_from_a_terminal() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
