"""A process beside a run that holds a board with a power switch: where the run is gone first, it takes the power.

It knows nothing of edgeops, ends by a word on its input, and acts where its input ends without one. Until then it holds
the board's lock too: nobody has the board before it is off.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

_DONE = b"off\n"
_TRIES = 3
_SWITCH_WITHIN_S = 60.0
_AGAIN_S = 2.0
_END_WITHIN_S = 10.0


class Guardian:
    """Watches from its making until `dismiss` or `abandon`.

    Args:
        off: The command that takes the board's power.
        locks: Open files of the board's lock.
    """

    def __init__(self, off: Sequence[str], locks: Sequence[int] = ()) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, json.dumps(list(off))], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, pass_fds=tuple(locks), start_new_session=True,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def dismiss(self) -> None:
        """The board is off: it ends, and has given its share of the lock back."""
        self._leave(_DONE)
        try:
            self._process.wait(_END_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def abandon(self) -> None:
        """The board may have power: it goes on trying, and keeps the board to itself meanwhile."""
        self._leave(b"")

    def _leave(self, word: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(word)
            self._process.stdin.flush()
        with contextlib.suppress(OSError):
            self._process.stdin.close()


def is_guardian(command: Sequence[str]) -> bool:
    """Say whether a process's command line is that of a guardian."""
    return __file__ in command


def main(off: list[str]) -> int:
    """Wait for the word; without it take the power. Return the exit status: 1 where that did not succeed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.stdin.buffer.read(len(_DONE)) == _DONE:
        return 0
    for _ in range(_TRIES):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            if subprocess.run(off, stdin=subprocess.DEVNULL, timeout=_SWITCH_WITHIN_S, check=False).returncode == 0:
                return 0
        time.sleep(_AGAIN_S)
    return 1


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
