"""Options that are given and say nothing, or no number: refused before anything is done, and never taken for "all"."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from edgeops.cli import device, fleet, group, rollout, serve
from edgeops.contracts.errors import EdgeopsError
from edgeops.control.database import Database
from edgeops.trust.founding import make_fleet


def run(command: click.Command, *words: str) -> Result:
    return CliRunner().invoke(command, words)


def code(result: Result) -> str:
    assert isinstance(result.exception, EdgeopsError), result.output
    return result.exception.code


@pytest.mark.parametrize("option", ["--groups", "--where", "--rig", "--control", "--window", "--days"])
def test_an_empty_option_of_a_rollout_is_refused(option: str, tmp_path: Path) -> None:
    """A variable that is not set would roll out to all devices, at once, past the rigs."""
    words = ("create", "--home", str(tmp_path), "m", "1.0.0", "--start")
    empty = run(rollout.command, *words, option, "")
    assert code(empty) == "E-CONFIG"
    assert f"{option} is empty" in str(empty.exception)
    # Control: left out, or with a word, it is not what the command fails at; nobody serves this home.
    for more in ((), (option, "x")):
        assert "is empty" not in str(run(rollout.command, *words, *more).exception)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (device.command, ("list", "--where", "")),
        (group.command, ("create", "night", "--where", " ")),
        (fleet.command, ("telemetry", "m", "--group", "")),
        (serve.command, ("--rig", "")),
        (serve.command, ("--database", "")),
    ],
)
def test_an_empty_choice_is_none(command: click.Command, words: tuple[str, ...]) -> None:
    assert code(run(command, *words)) == "E-CONFIG"


@pytest.mark.parametrize(
    "words",
    [
        ("--host", ""),
        ("--host", "0.0.0.0"),
        ("--host", "::"),
        ("--host", "0.0.0.0", "--advertise", "https://control.lab"),
        ("--host", "0.0.0.0", "--advertise", ""),
    ],
)
def test_a_control_plane_that_no_device_could_find_is_refused(words: tuple[str, ...], tmp_path: Path) -> None:
    """Tokens and certificates would carry an address that leads every device to itself."""
    make_fleet(tmp_path / "home", "f1")
    assert code(run(serve.command, "--home", str(tmp_path / "home"), *words)) == "E-CONFIG"
    assert not (tmp_path / "home" / "serve.json").exists()


@pytest.mark.parametrize(
    "words", [("--port", "65536"), ("--port", "-1"), ("--requests-per-s", "nan"), ("--connections", "0")]
)
def test_a_number_that_is_none_is_a_usage_error(words: tuple[str, ...], tmp_path: Path) -> None:
    result = run(serve.command, "--home", str(tmp_path), *words)
    assert (result.exit_code, type(result.exception)) == (2, SystemExit)


@pytest.mark.parametrize("url", ["garbage", "mysql://u:secret@h/x", "nosuch://u:secret@h/x"])
def test_a_database_that_is_none_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(EdgeopsError, match="E-CONFIG") as refused:
        Database(url)
    assert "secret" not in str(refused.value)
