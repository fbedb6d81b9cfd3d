"""`edgeops mcu`: what a person types, against a device on its line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from model_code import FAIL, PUBLIC_KEY, adder, signed

from edgeops.cli.mcu import command
from edgeops.contracts.errors import EdgeopsError
from firmware_bridge import blobs
from firmware_bridge.emulated import HostBoard
from firmware_bridge.link import SmpLink

pytestmark = pytest.mark.usefixtures("host_compiler")


@pytest.fixture
def board(tmp_path: Path) -> Iterator[HostBoard]:
    with HostBoard(tmp_path / "flash.bin", [PUBLIC_KEY]) as made:
        yield made


def edgeops(*words: str) -> Result:
    done = CliRunner().invoke(command, words)
    if done.exception is not None:
        raise done.exception
    return done


def facts(board: HostBoard) -> dict[str, object]:
    probed: dict[str, object] = json.loads(edgeops("probe", board.url, "--json").stdout)
    return probed


def write(folder: Path, name: str, data: bytes) -> str:
    (folder / name).write_bytes(data)
    return str(folder / name)


def test_a_model_is_installed_measured_and_watched(board: HostBoard, tmp_path: Path):
    assert facts(board)["model"] is None
    with pytest.raises(EdgeopsError, match="runs no model"):
        edgeops("measure", board.url)
    blob = signed(adder(tmp_path), "1.2.0")
    assert "adder 1.2.0 is confirmed" in edgeops("install", board.url, write(tmp_path, "model.blob", blob)).stdout
    probed = facts(board)
    assert (probed["cpu"], probed["version"], probed["trial"]) == ("x86-64", "1.2.0", False)
    assert probed["hash"] == blobs.identity(blob).hex()
    measured = json.loads(edgeops("measure", board.url, "--runs", "7", "--json").stdout)
    assert (measured["runs"], measured["ticks_hz"]) == (7, 1_000_000)
    lines = edgeops("monitor", board.url, "--count", "2", "--every", "0.1").stdout.splitlines()
    assert [json.loads(line)["model"]["inferences"] for line in lines] == [8, 8]


def test_a_model_that_cannot_run_is_not_kept(board: HostBoard, tmp_path: Path):
    edgeops("install", board.url, write(tmp_path, "good", signed(adder(tmp_path))))
    bad = write(tmp_path, "bad", signed(adder(tmp_path, add=2, extra=FAIL), "2.0.0"))
    with pytest.raises(EdgeopsError, match="E-MCU-REFUSED"):
        edgeops("install", board.url, bad)
    assert facts(board)["trial"], "the trial ends with the next reset"
    board.power_off()
    board.power_on()
    assert facts(board)["version"] == "1.0.0"


@pytest.mark.parametrize("harm", ["unsigned", "other processor", "text"])
def test_a_blob_that_cannot_be_installed_is_refused_before_the_upload(board: HostBoard, harm: str, tmp_path: Path):
    blob = {
        "unsigned": adder(tmp_path),
        "other processor": blobs.pack(
            blobs.read(adder(tmp_path))._replace(cpu=blobs.Cpu.CORTEX_M7), adder(tmp_path)[blobs.HEADER_SIZE :]
        ),
        "text": b"hello",
    }[harm]
    file = write(tmp_path, "model.blob", signed(blob) if harm == "other processor" else blob)
    with pytest.raises(EdgeopsError, match="E-MCU-BLOB"):
        edgeops("install", board.url, file)
    assert facts(board)["outcome"] == 0


def test_ports_are_listed():
    assert isinstance(json.loads(edgeops("list", "--json").stdout), list)


def test_a_trial_that_is_over_already_is_no_success(board: HostBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The device was reset once more by somebody, and runs what it ran before."""
    edgeops("install", board.url, write(tmp_path, "good", signed(adder(tmp_path))))
    reset = SmpLink.reset
    monkeypatch.setattr(SmpLink, "reset", lambda self: [reset(self) for _ in range(2)])
    with pytest.raises(EdgeopsError, match="went back and runs adder") as caught:
        edgeops("install", board.url, write(tmp_path, "next", signed(adder(tmp_path, add=2), "2.0.0")), "--trial")
    assert caught.value.code == "E-TRIAL"


def test_no_number_is_in_no_range(board: HostBoard):
    done = CliRunner().invoke(command, ("monitor", board.url, "--count", "2", "--every", "nan"))
    assert (done.exit_code, "'nan' is no number" in done.output) == (2, True)
