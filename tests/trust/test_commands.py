"""`edgeops trust` and `edgeops release` as a person or a program types them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgeops.cli.release import command as release
from edgeops.cli.trust import command as trust
from edgeops.contracts.errors import EdgeopsError
from edgeops.trust import keys


def run(group: Any, *arguments: object) -> Any:
    """Run with --json; return what it printed, or raise what it raised."""
    done = CliRunner().invoke(group, [*map(str, arguments), "--json"])
    if done.exception is not None:
        raise done.exception
    return json.loads(done.output)


def test_a_fleet_from_init_to_rotation(tmp_path: Path):
    home = tmp_path / "home"
    made = run(trust, "init", "--home", home, "--fleet", "demo")
    assert made["fleet"] == "demo"
    assert len(made["root_sha256"]) == 64
    roles = {row["role"]: row for row in run(trust, "status", "--home", home)}
    assert set(roles) == {"root", "targets", "snapshot", "timestamp", "desired-state"}
    assert all(row["keys_here"] == 1 for row in roles.values())
    delegated = run(trust, "delegate", "--home", home, "m")
    assert (delegated["model"], len(delegated["keys"])) == ("m", 1)
    rotated = run(trust, "rotate", "--home", home, "timestamp")
    assert rotated["old"] != rotated["new"]
    assert run(trust, "renew", "--home", home) == {"renewed": []}
    assert run(release, "list", "--home", home) == {"published": [], "drafts": []}


def test_a_model_is_given_to_somebody_elses_keys(tmp_path: Path):
    home, stick = tmp_path / "home", tmp_path / "stick"
    stick.mkdir()
    signer = keys.generate()
    keys.save(signer, stick / "ann.pem")
    run(trust, "init", "--home", home)
    options = ("--home", home, "--keys", stick, "m", "--public-key", stick / "ann.pub")
    assert run(trust, "delegate", *options)["keys"] == [signer.public_key.keyid]
    rows = {row["role"]: row for row in run(trust, "status", "--home", home)}
    assert (rows["model-m"]["keys"], rows["model-m"]["keys_here"]) == (1, 0)


@pytest.mark.parametrize("arguments", [("status",), ("renew",), ("rotate", "root"), ("delegate", "m")])
def test_a_folder_that_is_no_fleet_is_told_so(tmp_path: Path, arguments: tuple[str, ...]):
    with pytest.raises(EdgeopsError, match="E-TRUST-KEY"):
        run(trust, *arguments, "--home", tmp_path)


def test_the_process_ends_with_the_faults_status(tmp_path: Path):
    command = [sys.executable, "-m", "edgeops", "trust", "init", "--home", str(tmp_path / "home")]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "E-CONFIG" in again.stderr
    assert again.stdout == ""
