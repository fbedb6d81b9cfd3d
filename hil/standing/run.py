"""The process that runs a release on a rig's boards for the daemon. It is interrupted when the daemon dies, however
that dies: what it holds is powered off and given back then.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

from edgeops import durable
from edgeops.contracts.errors import INTERRUPTED as INTERRUPTED_STATUS
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rigs import CheckResult, RigResult
from edgeops.contracts.wire import Wire, decode, encode
from edgeops.releases.bundles import read_manifest
from hil.checks.plan import Effort, Subject
from hil.interrupts import one_interrupt
from hil.rig import read_rig
from hil.run import Request, run_rig
from hil.subjects import read_labelled

_PR_SET_PDEATHSIG = 1


class Job(Wire, frozen=True, kw_only=True):
    """What to run.

    Args:
        rig: The rig's file.
        version: The release.
        bundles: Profile → folder of its bundle, unpacked and verified.
        effort: How much is done.
        handovers: Folders with labelled data: those of the bundle's model are asked.
        wait_s: How long to wait for a board that another run has.
        outcome: Where to write what was found.
        parent_pid: The daemon.
    """

    rig: str
    version: str
    bundles: dict[str, str]
    effort: Effort
    handovers: tuple[str, ...]
    wait_s: float
    outcome: str
    parent_pid: int


class Outcome(Wire, frozen=True, kw_only=True):
    """What was found, or the code of why nothing was run."""

    result: RigResult | None = None
    code: str = ""
    what: str = ""


def main(file: str) -> int:
    """Run a job; return the exit status."""
    job = decode(Path(file).read_bytes(), Job, what=file)
    try:
        # Whatever is under way is unwound, and boards are powered off on the way; the daemon may say it twice.
        with one_interrupt(_say):
            _end_with(job.parent_pid)
            try:
                outcome = Outcome(result=_run(job))
            except EdgeopsError as error:
                outcome = Outcome(code=error.code, what=error.what)
            durable.write_file(Path(job.outcome), encode(outcome), mode=0o600)
    except KeyboardInterrupt:
        return INTERRUPTED_STATUS
    return 0


def _run(job: Job) -> RigResult:
    labelled = [found for folder in job.handovers if (found := read_labelled(Path(folder))) is not None]
    subjects = {}
    for profile, folder in job.bundles.items():
        model = read_manifest(Path(folder))[0].model
        data = next((one for one in labelled if one.handover.model.name == model), None)
        subjects[profile] = Subject(Path(folder), release=job.version, handover=data)
    request = Request(subjects, job.effort, wait_s=job.wait_s)
    return run_rig(read_rig(Path(job.rig)), request, say=_say, on_check=_checked)


def _checked(board: str, check: CheckResult) -> None:
    _say(f"{board}: {check.check} {check.verdict.value}")


def _say(line: str) -> None:
    print(" ".join(line.split()), flush=True)


def _end_with(parent_pid: int) -> None:
    """Be interrupted when the process that started this one is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
    if os.getppid() != parent_pid:
        raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
