"""pytest on boards: `pytest -p hil.pytest_plugin --rig NAME`. Fixtures `board`, `agent_on_board` and `mcu`.

A test that takes one of them runs once for each fitting board of the rig; `@pytest.mark.hil(kind=…, profile=…)` narrows
that. A board belongs to one run at a time. One that does not answer is power-cycled once, which the test's report says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from edgeops.contracts.errors import EdgeopsError
from hil.agent_on_board import AgentOnBoard
from hil.boards.kinds import KINDS, closed_in_any_case, open_board
from hil.boards.protocol import LinuxBoard, McuBoard
from hil.field import Field
from hil.reservation import Reservation, resource_of
from hil.rig import BoardSpec, Rig, find_rig, kind_of, read_rig

_LINUX, _MCU = ("board", "agent_on_board"), ("mcu",)
_SPEC = "_hil_spec"
_MARK = "hil"
_RIG: pytest.StashKey[Rig] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("hil", "boards")
    group.addoption("--rig", default="this-machine", help="The rig's name or file [this-machine].")
    group.addoption("--rig-board", action="append", default=[], help="Only this board of the rig; repeatable.")
    group.addoption("--rig-wait", type=float, default=0.0, help="Seconds to wait for a board that another run has.")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, and read the rig: a wrong one ends the run before its first test."""
    config.addinivalue_line("markers", f"{_MARK}(kind=None, profile=None): only on boards of this kind or profile")
    try:
        config.stash[_RIG] = read_rig(find_rig(config.getoption("--rig")))
    except EdgeopsError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test once for each fitting board."""
    wants_mcu = bool(set(_MCU) & set(metafunc.fixturenames))
    if not wants_mcu and not set(_LINUX) & set(metafunc.fixturenames):
        return
    mark = next(metafunc.definition.iter_markers(_MARK), None)
    wanted = {} if mark is None else mark.kwargs
    only = metafunc.config.getoption("--rig-board")
    fitting = [
        spec
        for spec in metafunc.config.stash[_RIG].boards
        if KINDS[kind_of(spec)].is_mcu == wants_mcu
        and wanted.get("kind") in (None, kind_of(spec))
        and wanted.get("profile") in (None, spec.profile)
        and (not only or spec.name in only)
    ]
    if not fitting:
        why = f"rig {metafunc.config.stash[_RIG].name} has no fitting board"
        metafunc.parametrize(_SPEC, [pytest.param(None, marks=pytest.mark.skip(reason=why))], ids=["no board"])
    else:
        metafunc.parametrize(_SPEC, fitting, ids=[spec.name for spec in fitting], indirect=False)


@pytest.fixture
def _hil_spec() -> BoardSpec | None:
    """The board of the rig file; given by parametrization."""
    return None


@pytest.fixture
def _hil_board(request: pytest.FixtureRequest, _hil_spec: BoardSpec, tmp_path: Path) -> Iterator[LinuxBoard | McuBoard]:
    rig = request.config.stash[_RIG]
    with ExitStack() as stack:
        try:
            wait_s = request.config.getoption("--rig-wait")
            stack.enter_context(Reservation(resource_of(rig, _hil_spec), wait_s))
            board = stack.enter_context(open_board(_hil_spec, tmp_path, wait_s))
            stack.enter_context(closed_in_any_case(board))
        except EdgeopsError as error:
            if error.code == "E-DEPENDENCY":
                pytest.skip(f"{error.what}: {error.next_step}")
            pytest.fail(str(error), pytrace=False)
        _give_power(board, request.node)
        yield board


def _give_power(board: LinuxBoard | McuBoard, item: pytest.Item) -> None:
    try:
        board.power_on()
        return
    except EdgeopsError as error:
        item.add_report_section("setup", "board", f"{board.name} was power-cycled: {error.what}\n{board.console()}")
    board.power_off()
    try:
        board.power_on()
    except EdgeopsError as error:
        pytest.fail(f"power-cycled once, and still: {error}\n{board.console()}", pytrace=False)


@pytest.fixture
def board(_hil_board: LinuxBoard) -> LinuxBoard:
    """A Linux board with power, reserved for this test and off afterwards."""
    return _hil_board


@pytest.fixture
def mcu(_hil_board: McuBoard) -> McuBoard:
    """A microcontroller with power, reserved for this test and off afterwards."""
    return _hil_board


@pytest.fixture
def agent_on_board(board: LinuxBoard, tmp_path: Path) -> Iterator[Callable[[Path], AgentOnBoard]]:
    """Enrol the board in a throwaway fleet and start its agent, for a bundle's folder: `agent_on_board(bundle)`."""
    started: list[AgentOnBoard] = []

    def start(bundle: Path) -> AgentOnBoard:
        folder = tmp_path / f"field-{len(started)}"
        folder.mkdir()
        agent = AgentOnBoard(board, Field(folder, bundle))
        started.append(agent)
        agent.enrol()
        agent.start()
        return agent

    yield start
    for agent in started:
        agent.stop()
