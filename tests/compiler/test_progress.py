"""A compile says how long it may still take: on a terminal all the time, in a log now and then."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from edgeops import compiler
from edgeops.cli import compile_progress
from edgeops.cli.compile_progress import Pace, estimate
from edgeops.compiler import Progress


def pace(*events: tuple[float, int | None]) -> Pace:
    made = Pace()
    for now_s, left in events:
        made.take(Progress("board", "a scheme", left), now_s)
    return made


def test_estimate_is_the_mean_pace_times_what_may_be_left():
    assert pace((0, 9)).remaining_s(5) is None, "nothing has ended"
    assert pace((0, 9), (10, 8)).remaining_s(10) == 90
    assert pace((0, 9), (10, 2)).remaining_s(10) == 30, "schemes that are skipped are not waited for"
    assert pace((0, 9), (10, 8), (12, None)).remaining_s(12) == pytest.approx(108), "other words are no candidate"
    assert estimate(pace((0, 9), (10, 8)), 10) == "at most 8 more, about 90 s"
    assert estimate(pace((0, 9), (60, 8)), 60) == "at most 8 more, about 9 min"


def test_search_says_at_each_candidate_how_many_may_follow(shapes_handover: Path, profile, tmp_path: Path):
    board, seen = profile("onnxruntime", "int8", "fp16", "fp32"), []
    compiler.compile(shapes_handover, [board], tmp_path / "out", on_progress=seen.append)
    tried = [step for step in seen if step.left is not None]
    assert [step.text for step in tried][:2] == ["onnxruntime-fp32", "onnxruntime-int8"]
    counts = [step.left for step in tried]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] - counts[1] == 1
    assert seen[-1].text == "done"


def test_log_gets_a_line_after_a_while_and_no_more(monkeypatch: pytest.MonkeyPatch, capsys):
    now = iter([0.0, 5.0, 11.0, 12.0])
    monkeypatch.setattr(compile_progress.time, "monotonic", lambda: next(now))
    with compile_progress.compile_progress(1) as show:
        for left in (3, 2, 1):
            show(Progress("board", f"scheme-{left}", left))
    assert capsys.readouterr().err == "board: scheme-2 (at most 2 more, about 18 s)\n"


def test_terminal_shows_what_is_done_and_leaves_the_result(shapes_handover: Path, profile, tmp_path: Path, own_cache):
    board = profile("onnxruntime", "int8", "fp32")
    reader, writer = pty.openpty()
    words = [sys.executable, "-m", "edgeops", "compile", str(shapes_handover), "--profile", board]
    process = subprocess.Popen(
        [*words, "--out", str(tmp_path / "out")],
        stdin=writer, stdout=subprocess.PIPE, stderr=writer, env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
    )  # fmt: skip
    os.close(writer)
    shown = b""
    try:
        while part := os.read(reader, 65536):
            shown += part
    except OSError:  # how a terminal ends on Linux
        pass
    assert process.stdout is not None
    result = process.stdout.read().decode()
    assert process.wait(60) == 0
    assert b"onnxruntime-int8" in shown
    assert b"at most" in shown
    assert "first in the profile" in result
