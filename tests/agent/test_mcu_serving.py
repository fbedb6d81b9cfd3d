"""A model on a microcontroller as a deployment serves it: what is asked of the board, and when. No board is needed.

What is done with a real one is in `test_gateway.py`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeops.agent.channel import Load
from edgeops.agent.gateway import model, serving
from edgeops.agent.gateway.line import Job
from edgeops.agent.gateway.serving import McuServing
from edgeops.contracts.errors import EdgeopsError


class Board:
    """Stands in for a link to a board.

    Args:
        hash: Of what it runs.
        trial: Whether that is a trial.
    """

    def __init__(self, hash: bytes, *, trial: bool) -> None:
        self.hash, self.trial, self.resets = hash, trial, 0
        self.refuses = False

    def model_info(self) -> Any:
        return SimpleNamespace(hash=self.hash, trial=self.trial, model="m", version="1", outcome=0)

    def reset(self) -> None:
        self.resets += 1

    def confirm(self, identity: bytes) -> None:
        if self.refuses:
            raise EdgeopsError("E-MCU-REFUSED", "its flash failed")
        assert identity == self.hash
        self.trial = False


class Line:
    """Stands in for `McuLine`: jobs wait until they are told to run."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def submit(self, name: str, work: Callable[[Any], Any], on_done: Any, *, within_s: float | None) -> Job:
        self.jobs.append(Job(name, work, on_done, within_s))
        return self.jobs[-1]

    def run_next(self, board: Board) -> str:
        job = self.jobs.pop(0)
        if not job.cancelled:
            try:
                outcome = job.work(board)  # type: ignore[arg-type]
            except EdgeopsError as error:
                outcome = error
            if not job.cancelled:
                job.on_done(outcome)
        return job.name


class Heard:
    """What a deployment hears, and a loop whose timers go off when they are told to."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.later: list[Callable[[], None]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: self.said.append(name)

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        self.later.append(action)


def load(folder: Path) -> Load:
    folder.mkdir(exist_ok=True)
    return Load(directory=str(folder), release="1.0.0", digest="d", ram_mib=1)


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def one(line: Line, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> McuServing:
    def read(what: Load) -> Any:
        if not Path(what.directory).exists():
            raise EdgeopsError("E-BUNDLE-DAMAGED", "it is gone")
        return SimpleNamespace(identity=what.release.encode())

    def test(*_: Any, **__: Any) -> None:
        raise EdgeopsError("E-SELFTEST-GOLDEN", "as told")

    steps = SimpleNamespace(
        read_installable=read,
        install_and_test=test,
        run_on_trial=lambda *_, **__: None,
        confirm=model.confirm,
        keep=model.confirm,
        end_trial=model.end_trial,
    )
    monkeypatch.setattr(serving, "_on_line", lambda: steps)
    return McuServing(heard, heard, line, "m", 60.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("runs", "resets"), [(b"1.0.0", 1), (b"another", 0)])
def test_a_trial_ends_also_when_the_files_of_what_is_tried_are_gone(
    one: McuServing, line: Line, heard: Heard, tmp_path: Path, runs: bytes, resets: int
) -> None:
    """They are removed when a test fails, maybe before the line has come to end the trial; only that trial ends."""
    board = Board(runs, trial=True)
    one.try_out(load(tmp_path / "slot"))
    line.run_next(board)
    assert heard.said == ["test_failed"]
    shutil.rmtree(tmp_path / "slot")
    assert line.run_next(board) == "give up 1.0.0"
    assert board.resets == resets


def test_a_model_on_trial_is_kept_once_when_it_is_asked_for(one: McuServing, line: Line, tmp_path: Path) -> None:
    board = Board(b"1.0.0", trial=True)
    one.serve(load(tmp_path), on_trial=True)
    assert not one.keep(), "it does not run yet"
    line.run_next(board)
    assert board.trial
    assert not any(one.keep() for _ in range(5))
    assert len(line.jobs) == 1
    line.run_next(board)
    assert not board.trial
    assert one.keep()
    assert line.jobs == []


@pytest.mark.parametrize("harm", ["went back", "refuses"])
def test_a_board_that_does_not_keep_a_model_is_a_crash_of_its_trial(
    one: McuServing, line: Line, heard: Heard, tmp_path: Path, harm: str
) -> None:
    board = Board(b"1.0.0", trial=True)
    one.serve(load(tmp_path), on_trial=True)
    line.run_next(board)
    board.refuses = harm == "refuses"
    board.hash = b"before" if harm == "went back" else board.hash
    assert not one.keep()
    line.run_next(board)
    assert heard.said == ["serves", "crashed"]
    assert not one.is_serving
    assert not one.keep()
    assert line.jobs == [], "it waits before it tries again"
    heard.later.pop()()
    board.refuses, board.hash = False, b"1.0.0"
    line.run_next(board)
    assert board.trial, "it is on trial again, and not kept for having been near it once"
    assert not one.keep()
    line.run_next(board)
    assert one.keep()


def test_a_newer_model_takes_the_place_of_one_that_is_being_kept(one: McuServing, line: Line, tmp_path: Path) -> None:
    board = Board(b"1.0.0", trial=True)
    one.serve(load(tmp_path), on_trial=True)
    line.run_next(board)
    assert not one.keep()
    one.serve(Load(directory=str(tmp_path), release="0.9.0", digest="e", ram_mib=1))
    line.run_next(board)
    assert board.trial, "it was given up before it was begun"
    board.hash = b"0.9.0"
    line.run_next(board)
    assert not board.trial


def test_a_board_that_is_away_does_not_keep_an_update_from_failing_in_time(
    one: McuServing, line: Line, heard: Heard, tmp_path: Path
) -> None:
    """What waits for it without end steps back for what has a limit, and comes after it."""
    one.serve(load(tmp_path / "before"))
    one.try_out(Load(directory=str(load(tmp_path / "next").directory), release="2.0.0", digest="e", ram_mib=1))
    board = Board(b"1.0.0", trial=False)
    assert [job.name for job in line.jobs if not job.cancelled] == ["try out 2.0.0"]
    for _ in range(2):
        line.run_next(board)
    assert heard.said == ["test_failed"]
    assert [job.name for job in line.jobs] == ["give up 2.0.0", "run 1.0.0"]
    for _ in range(2):
        line.run_next(board)
    assert one.is_serving


def test_a_board_that_serves_is_left_alone_when_a_candidate_is_given_up(
    one: McuServing, line: Line, tmp_path: Path
) -> None:
    board = Board(b"1.0.0", trial=False)
    one.serve(load(tmp_path))
    line.run_next(board)
    one.try_out(Load(directory=str(tmp_path), release="2.0.0", digest="e", ram_mib=1))
    line.run_next(board)
    assert [job.name for job in line.jobs] == ["give up 2.0.0"]
