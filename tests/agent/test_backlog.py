"""The log of telemetry on the disk: what was kept stays, detail gives way before windows, and each loss is counted."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeops import durable
from edgeops.agent.backlog import TelemetryQueue, count_waiting
from edgeops.contracts.sketches import QuantileSketch
from edgeops.contracts.telemetry import ModelWindow, Telemetry
from edgeops.contracts.wire import encode
from edgeops.testkit.power import cuts, recording


def window(seq: int, bins: int = 0) -> Telemetry:
    model = ModelWindow(
        model="m", release="1.0.0", digest="d", latency_ms=QuantileSketch.of([1.0]), requests=seq, errors={"E-X": 1},
        sampled=seq, inputs={"x": (seq,) * bins}, class_mix=(1,) * bins,
    )  # fmt: skip
    return Telemetry(fleet="f", connection="c", unit="self", boot_id="b", seq=seq, start_s=0, end_s=1, models=(model,))


def kept(queue: TelemetryQueue) -> list[Telemetry]:
    found = [queue.read(number) for number in queue.waiting(10_000)]
    return [one for one in found if one is not None]


def seqs(queue: TelemetryQueue) -> list[int]:
    return [one.seq for one in kept(queue)]


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_a_week_takes_few_files_and_comes_back_whole_after_a_restart(tmp_path: Path) -> None:
    queue = TelemetryQueue(tmp_path / "q", 3000)
    for seq in range(1, 673):
        queue.put(window(seq, bins=16))
    assert seqs(queue) == seqs(TelemetryQueue(tmp_path / "q", 3000)) == list(range(1, 673))
    assert count_waiting(tmp_path / "q") == 672
    assert len(list((tmp_path / "q").iterdir())) <= 4
    again = TelemetryQueue(tmp_path / "q", 3000)
    again.put(window(673))
    for number in again.waiting(672):
        again.remove(number)
    assert seqs(again) == [673]
    assert len(list((tmp_path / "q").iterdir())) == 1


def test_the_oldest_detail_gives_way_first_then_the_oldest_windows_and_all_of_it_is_told(tmp_path: Path) -> None:
    limit = 256 << 10
    queue = TelemetryQueue(tmp_path / "q", 3000, limit)
    dropped, put = 0, 0
    while not dropped:
        put += 1
        queue.put(window(put, bins=400))
        found = kept(queue)
        dropped = sum(one.dropped_windows for one in found)
        thin = [one.thinned for one in found]
        assert thin == sorted(thin, reverse=True), "detail of an older window outlived that of a newer one"
        assert dropped == 0 or all(thin[:-1]), "a window gave way while another had detail"
        assert queue.size <= limit
        assert on_disk(tmp_path / "q") <= 1.1 * limit
        # What was counted, where it was not dropped, is whole.
        assert [one.models[0].requests for one in found] == list(range(put - len(found) + 1, put + 1))
        assert all(one.models[0].latency_ms.count == 1 and one.models[0].errors == {"E-X": 1} for one in found)
        assert all((one.models[0].inputs == {}) == one.thinned for one in found)
    assert put > 2 * limit // len(encode(window(1, bins=400))), "thinning has saved nothing"
    for _ in range(20):
        put += 1
        queue.put(window(put, bins=400))
    found = kept(TelemetryQueue(tmp_path / "q", 3000, limit))
    assert sum(one.dropped_windows for one in found) + len(found) == put


@given(
    st.lists(st.one_of(st.just("put"), st.just("remove"), st.just("reopen")), max_size=40), st.integers(2, 6)
)  # fmt: skip
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_is_lost_that_was_not_removed_or_counted(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], limit: int
) -> None:
    """What is told twice after a restart is no loss; what is neither there, removed nor counted would be."""
    folder = tmp_path_factory.mktemp("q") / "q"
    queue = TelemetryQueue(folder, limit)
    removed: set[int] = set()
    told_dropped = seq = 0
    for step in steps:
        if step == "put":
            seq += 1
            queue.put(window(seq))
        elif step == "remove" and len(queue):
            first = queue.waiting(1)[0]
            told = queue.read(first)
            assert told is not None
            removed.add(told.seq)
            told_dropped += told.dropped_windows
            queue.remove(first)
        elif step == "reopen":
            queue = TelemetryQueue(folder, limit)
    there = kept(queue)
    assert len(there) <= limit
    lost = set(range(1, seq + 1)) - removed - {one.seq for one in there}
    assert len(lost) <= told_dropped + sum(one.dropped_windows for one in there)
    assert [one.seq for one in there] == sorted(one.seq for one in there)


def damaged(folder: Path, change: Callable[[bytes], bytes]) -> TelemetryQueue:
    queue = TelemetryQueue(folder, 10)
    for seq in (1, 2, 3):
        queue.put(window(seq))
    (file,) = folder.iterdir()
    file.write_bytes(change(file.read_bytes()))
    return TelemetryQueue(folder, 10)


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (lambda data: data[:-1], [1, 2]),
        (lambda data: data[: len(data) // 2], [1]),
        (lambda data: data.replace(b'"seq":2', b'"seq":9'), [1, 3]),
        (lambda data: b"\n" + data, [1, 2, 3]),
        (lambda data: data + b"00000000 00000000 \n", [1, 2, 3]),
        (lambda data: b"\xff" * len(data), []),
        (lambda data: b"", []),
    ],
)
def test_damage_costs_the_line_that_it_is_in(tmp_path: Path, change: Callable[[bytes], bytes], left: list[int]) -> None:
    queue = damaged(tmp_path / "q", change)
    assert seqs(queue) == left
    queue.put(window(4))
    assert seqs(TelemetryQueue(tmp_path / "q", 10)) == [*left, 4]


def test_windows_that_an_older_agent_kept_go_into_the_log(tmp_path: Path) -> None:
    folder = tmp_path / "q"
    folder.mkdir()
    for seq in (1, 2):
        (folder / f"{seq:012d}.json").write_bytes(encode(window(seq)))
    (folder / "000000000003.json").write_bytes(b"{")
    assert count_waiting(folder) == 3
    queue = TelemetryQueue(folder, 10)
    queue.put(window(4))
    assert seqs(queue) == [1, 2, 4]
    assert not list(folder.glob("*.json"))
    assert seqs(TelemetryQueue(folder, 10)) == [1, 2, 4]


def survive(tmp_path: Path, act: Callable[[TelemetryQueue], Any]) -> tuple[int, list[str]]:
    """Cut the power at each operation of `act` on a log of windows 1 and 2; return how often, and what was lost."""
    folder = tmp_path / "state"
    folder.mkdir()
    first = TelemetryQueue(folder / "q", 10, 3000)
    for seq in (1, 2):
        first.put(window(seq, bins=100))
    lost = []
    with recording(folder) as journal:
        queue = TelemetryQueue(folder / "q", 10, 3000)
        act(queue)
        done, known = len(journal.operations), set(seqs(queue))
    index = 0
    for index, cut in enumerate(cuts(journal)):
        cut.tree.write_to(tmp_path / "cuts" / str(index))
        found = kept(TelemetryQueue(tmp_path / "cuts" / str(index) / "q", 10, 3000))
        there = {one.seq for one in found}
        if len({1, 2} - there) > sum(one.dropped_windows for one in found):
            lost.append(f"{cut.case} after {cut.after}: {sorted(there)}")
        if cut.after == done and not known <= there:
            lost.append(f"{cut.case} at the end: {sorted(there)}")
        if any(one.models[0].requests != one.seq for one in found):
            lost.append(f"{cut.case} after {cut.after}: another window came of it")
    return index + 1, lost


def thin_and_add(queue: TelemetryQueue) -> None:
    """Enough that older windows are thinned."""
    for seq in range(3, 8):
        queue.put(window(seq, bins=100))
    assert any(one.thinned for one in kept(queue))


def test_no_cut_loses_what_was_kept_while_windows_are_added_and_thinned(
    tmp_path: Path, proof: Callable[[str], None]
) -> None:
    count, lost = survive(tmp_path, thin_and_add)
    assert lost == []
    assert count > 30
    proof(f"{count} cuts of the telemetry log survived, with thinning")


def test_without_fsync_a_cut_would_lose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proof: Callable[[str], None]
) -> None:
    """Negative control."""

    def careless(path: Path, data: bytes, *, mode: int = 0o644, after: int | None = None) -> None:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, mode), "ab") as file:
            file.write(data)

    monkeypatch.setattr(durable, "append", careless)
    _, lost = survive(tmp_path, lambda queue: queue.put(window(3)))
    assert lost
    proof(f"mutant 'no fsync in the telemetry log' caught: {lost[0]}")
