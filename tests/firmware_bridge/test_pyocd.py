"""The real pyocd, in an environment of its own, takes the commands that are built. No probe is connected to a test."""

from __future__ import annotations

import subprocess
import sys
import venv

import pytest

from edgeops.contracts.errors import EdgeopsError
from firmware_bridge.flashers import Options
from firmware_bridge.flashers.tools import PyOcd

REQUIREMENT = "pyocd==0.46.0"
NOBODY = "no-such-probe"
pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pyocd") / "env"
    venv.create(folder, with_pip=True, symlinks=True)
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", REQUIREMENT]
    subprocess.run(pip, check=True, timeout=500)
    return python


@pytest.fixture
def way(environment: str, monkeypatch: pytest.MonkeyPatch) -> PyOcd:
    monkeypatch.setattr(sys, "executable", environment)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    return PyOcd(NOBODY, Options(0x2000_0000, "cortex_m"))


def test_a_probe_that_is_not_there_is_told_at_once_by_every_command(way: PyOcd):
    """And no command is a wrong one: pyocd looks for the probe only when it has understood it."""
    with pytest.raises(EdgeopsError, match="0 debug probes are 'no-such-probe'") as caught:
        way.probe()
    assert caught.value.code == "E-MCU-PORT"
    for act in (lambda: way.write(b"image"), way.reset, lambda: way.verify(b"image")):
        with pytest.raises(EdgeopsError, match=r"No (target device|connected debug probe)") as caught:
            act()
        assert caught.value.code == "E-MCU-REFUSED"


def test_a_wrong_command_would_be_seen(way: PyOcd, monkeypatch: pytest.MonkeyPatch):
    """The control of the test above."""
    monkeypatch.setattr(way, "_base", lambda: ["--no-such-option"])
    with pytest.raises(EdgeopsError, match="unrecognized arguments"):
        way.reset()
