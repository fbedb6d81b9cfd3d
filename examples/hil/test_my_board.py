"""Tests of one's own on boards: `pytest -p hil.pytest_plugin examples/hil --rig this-machine --bundle BUNDLE`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hil.agent_on_board import AgentOnBoard, Asking
from hil.boards.protocol import LinuxBoard, McuBoard


def test_the_board_has_room_for_two_bundles(board: LinuxBoard, bundle: Path) -> None:
    """A release needs its bundle twice, and its download."""
    free_kib = int(board.run("df", "--output=avail", board.folder).out.split()[-1])
    size = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
    assert free_kib * 1024 > 3 * size


def test_it_answers_the_same_after_a_power_cut(agent_on_board: Callable[[Path], AgentOnBoard], bundle: Path) -> None:
    """What was installed is there when the power comes back, without anybody's help."""
    agent = agent_on_board(bundle)
    agent.bring(agent.field.candidate)
    with agent.client() as client:
        before = client.infer(agent.field.model, agent.inputs)
    agent.board.power_off()
    agent.board.power_on()
    agent.start()
    with agent.client() as client:
        after = client.infer(agent.field.model, agent.inputs)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)


def test_an_update_costs_no_request(agent_on_board: Callable[[Path], AgentOnBoard], bundle: Path) -> None:
    """Requests go on while the next release is installed."""
    agent = agent_on_board(bundle)
    agent.bring(agent.field.before)
    with Asking(agent) as asking:
        agent.bring(agent.field.candidate)
    assert asking.answered > 0
    assert asking.failures == []


@pytest.mark.hil(profile="cortex-m4")
def test_the_firmware_says_what_it_is(mcu: McuBoard) -> None:
    """The emulated board has the reference firmware."""
    with mcu.link() as link:
        assert link.system_info().startswith("edgeops-mcu 1")
        assert link.echo("hello") == "hello"
