"""The supervisor's loop: order, timers, and how it ends."""

from __future__ import annotations

import threading

import pytest

from edgeops.agent.loop import Loop


def test_actions_run_in_order_and_from_any_thread():
    loop, seen = Loop(), []
    for number in range(3):
        loop.post(lambda number=number: seen.append(number))
    thread = threading.Thread(target=lambda: loop.post(loop.stop))
    loop.after(0.0, thread.start)
    loop.run()
    thread.join()
    assert seen == [0, 1, 2]


def test_timers_run_by_time_and_a_cancelled_one_does_not():
    loop, seen = Loop(), []
    loop.after(0.02, lambda: seen.append("late"))
    loop.after(0.0, lambda: seen.append("soon"))
    loop.after(0.01, lambda: seen.append("never")).cancel()
    loop.after(0.03, loop.stop)
    loop.run()
    assert seen == ["soon", "late"]


def test_an_actions_exception_ends_the_loop():
    loop = Loop()

    def defect() -> None:
        raise ZeroDivisionError

    loop.post(defect)
    with pytest.raises(ZeroDivisionError):
        loop.run()


def test_a_stop_that_is_posted_before_run_ends_it():
    loop = Loop()
    loop.post(loop.stop)
    loop.run()
