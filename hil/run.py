"""A run of a rig: reserve each board, power it, check, power it off and give it back, whatever happens in between."""

from __future__ import annotations

import platform
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, cast

from edgeops import __version__
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rigs import BoardResult, CheckResult, RigResult, Verdict
from edgeops.releases.bundles import Bundle, open_bundle
from hil.boards.kinds import KINDS, closed_in_any_case, open_board
from hil.boards.protocol import LinuxBoard, McuBoard
from hil.checks.linux import LinuxChecks
from hil.checks.mcu import McuChecks
from hil.checks.plan import Effort, Say, Subject
from hil.reservation import Reservation, resource_of
from hil.rig import BoardSpec, Purpose, Rig, kind_of


class Request(NamedTuple):
    """What to run.

    Args:
        subjects: By device profile: boards of other profiles are skipped.
        effort: How much.
        boards: Only these; empty: all of the rig.
        purpose: What the run is for.
        wait_s: How long to wait for a board that another run has.
    """

    subjects: Mapping[str, Subject]
    effort: Effort = Effort()
    boards: tuple[str, ...] = ()
    purpose: Purpose = "release"
    wait_s: float = 0.0


def run_rig(
    rig: Rig,
    request: Request,
    say: Say = lambda _line: None,
    on_check: Callable[[str, CheckResult], object] = lambda _board, _check: None,
) -> RigResult:
    """Run a rig's boards one after the other.

    A board that cannot be used is a result, not an end: the others run. On an interrupt the board in use is powered
    off and given back before it goes on.

    Args:
        rig: The rig.
        request: What to run.
        say: Hears what goes on.
        on_check: Hears of each check that ended, with its board.

    Raises:
        EdgeopsError: E-HIL-RIG; the rig may not be used for this, or has no such board.
    """
    if request.purpose not in rig.purposes:
        raise EdgeopsError("E-HIL-RIG", f"rig {rig.name} is for {', '.join(rig.purposes)}, not for {request.purpose}")
    if unknown := set(request.boards) - {board.name for board in rig.boards}:
        raise EdgeopsError("E-HIL-RIG", f"rig {rig.name} has no board {', '.join(sorted(unknown))}", "edgeops hil list")
    start_s, at_s = time.monotonic(), time.time()
    chosen = [board for board in rig.boards if not request.boards or board.name in request.boards]
    results = tuple(_run_board(rig, board, request, say, on_check) for board in chosen)
    return RigResult(
        rig=rig.name,
        run=secrets.token_hex(8),
        at_s=at_s,
        duration_s=round(time.monotonic() - start_s, 1),
        edgeops=__version__,
        host=platform.node(),
        boards=results,
    )


def _run_board(
    rig: Rig, spec: BoardSpec, request: Request, say: Say, on_check: Callable[[str, CheckResult], object]
) -> BoardResult:
    kind = kind_of(spec)
    subject = request.subjects.get(spec.profile)
    bundle = _bundle(spec, subject)
    if subject is None or isinstance(bundle, CheckResult):
        assert isinstance(bundle, CheckResult)
        on_check(spec.name, bundle)
        return BoardResult(board=spec.name, kind=kind, profile=spec.profile, checks=(bundle,))
    checks: list[CheckResult] = []
    console, cut = "", ""
    try:
        with (
            Reservation(resource_of(rig, spec), request.wait_s),
            tempfile.TemporaryDirectory(prefix="edgeops-hil-") as folder,
            open_board(spec, Path(folder), request.wait_s) as board,
            closed_in_any_case(board),
        ):
            cut = board.cut
            (Path(folder) / "field").mkdir()
            for check in checks_of(spec, board, subject, request.effort, Path(folder) / "field", say):
                checks.append(check)
                on_check(spec.name, check)
            if any(check.verdict in (Verdict.FAILED, Verdict.BROKEN) for check in checks):
                console = board.console()[-4000:]
    except EdgeopsError as error:
        verdict = Verdict.SKIPPED if error.code == "E-DEPENDENCY" else Verdict.BROKEN
        said = error.what + (f" ({error.next_step})" if error.next_step else "")
        broken = CheckResult(check="board", verdict=verdict, said=said, code=error.code)
        checks.append(broken)
        on_check(spec.name, broken)
    return BoardResult(
        board=spec.name, kind=kind, profile=spec.profile, model=bundle.manifest.model, release=subject.release,
        digest=bundle.digest, cut=cut, timing=spec.timing, checks=tuple(checks), console=console,
    )  # fmt: skip


def _bundle(spec: BoardSpec, subject: Subject | None) -> Bundle | CheckResult:
    """Return the bundle for a board, or why it is not run there; the board is not touched for it."""
    if subject is None:
        return CheckResult(check="bundle", verdict=Verdict.SKIPPED, said=f"there is no bundle for {spec.profile}")
    try:
        bundle = open_bundle(subject.bundle)
    except EdgeopsError as error:
        return CheckResult(check="bundle", verdict=Verdict.FAILED, said=error.what, code=error.code)
    why = KINDS[kind_of(spec)].cannot.get(bundle.manifest.runtime)
    return bundle if why is None else CheckResult(check="bundle", verdict=Verdict.SKIPPED, said=why)


def checks_of(
    spec: BoardSpec, board: LinuxBoard | McuBoard, subject: Subject, effort: Effort, folder: Path, say: Say
) -> Iterator[CheckResult]:
    """Return the checks of a board, each made when it is asked for."""
    if KINDS[kind_of(spec)].is_mcu:
        return McuChecks(cast("McuBoard", board), subject, effort, timing=spec.timing, say=say).run()
    linux = cast("LinuxBoard", board)
    return LinuxChecks(linux, subject, effort, timing=spec.timing, folder=folder, say=say).run()
