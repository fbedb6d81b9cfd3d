"""Scripts on a board, two at once: the first one's connection was lost and it goes on, or somebody else flashes."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from served_fleet import wait_for

from edgeops.flash import steps

MAIN = "print('edgeops, version {version}')\n"


def payload(folder: Path, version: str) -> Path:
    """A payload that starts, and says which it is."""
    package = folder / version / "edgeops"
    package.mkdir(parents=True)
    (package / "__main__.py").write_text(MAIN.format(version=version))
    file = folder / f"{version}.tar.gz"
    with tarfile.open(file, "w:gz") as archive:
        archive.add(package, "edgeops")
    return file


class Unpacking:
    """UNPACK as sshd runs it; its payload comes when `go_on` is told, so that others come in between."""

    def __init__(self, prefix: Path, version: str, script: str = steps.UNPACK) -> None:
        self.version, self._pipe = version, prefix.parent / f"{version}.pipe"
        self._file = payload(prefix.parent, version)
        os.mkfifo(self._pipe)
        words = (str(prefix), version, sys.executable, str(self._pipe), "")
        self.process = subprocess.Popen(
            ["/bin/sh", "-ceu", script, "sh", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=prefix.parent,
        )  # fmt: skip

    def go_on(self) -> tuple[int, str]:
        with self._pipe.open("wb") as pipe:
            pipe.write(self._file.read_bytes())
        return self.end()

    def end(self) -> tuple[int, str]:
        _, said = self.process.communicate(timeout=120)
        return self.process.returncode, said


def both_unpack(folder: Path, script: str = steps.UNPACK) -> tuple[list[int], dict[str, str]]:
    """Unpack two versions at once; return the scripts' statuses, and what each finished version says it is."""
    prefix = folder / "opt"
    first = Unpacking(prefix, "1", script)
    # It has its environment, and waits for its payload.
    wait_for(lambda: (prefix / "versions/.new/bin/python").exists(), "it makes no environment")
    second = Unpacking(prefix, "2", script)
    time.sleep(1.0)
    statuses = [one.go_on()[0] for one in (first, second)]
    whole = [done.parent for done in (prefix / "versions").glob("*/.complete")]
    says = {
        one.name: subprocess.run(
            [one / "bin/python", "-m", "edgeops", "--version"],
            capture_output=True,
            text=True,
            check=True,
            cwd=one,
        ).stdout.split()[-1]
        for one in whole
    }
    return statuses, says


def test_two_that_unpack_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    assert both_unpack(tmp_path) == ([0, 0], {"1": "1", "2": "2"})


@pytest.mark.timeout(600)
def test_control_without_the_lock_one_destroys_the_others_work(tmp_path: Path, proof: Callable[[str], None]) -> None:
    script = steps.UNPACK.replace(steps._ALONE, "\n")
    assert script != steps.UNPACK
    statuses, says = both_unpack(tmp_path, script)
    assert (statuses, says) != ([0, 0], {"1": "1", "2": "2"})
    proof(f"caught: status {statuses}, versions {says}")


@pytest.mark.parametrize("given", [b"", b"eo1.sec"], ids=["nothing came", "half came"])
def test_a_token_that_a_lost_connection_cut_short_takes_no_tokens_place(tmp_path: Path, given: bytes) -> None:
    token, state = tmp_path / "etc/token", tmp_path / "state"
    whole = b"eo1.secret"

    def give(data: bytes) -> int:
        words = (pwd.getpwuid(os.getuid()).pw_name, str(state), str(token), str(len(whole)))
        return subprocess.run(["/bin/sh", "-ceu", steps.GIVE, "sh", *words], input=data, check=False).returncode

    assert give(whole) == 0
    assert give(given) != 0
    assert token.read_bytes() == whole
