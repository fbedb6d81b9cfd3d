"""A data scientist's candidates measured on a device of the fleet, by the commands that a person types.

Compile, publish as candidates, ask over the control plane, measure on the agent, choose by the signed figures.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgeops.contracts.evidence import Evidence, Source
from edgeops.contracts.measurement import Measurements
from edgeops.contracts.wire import decode
from edgeops.testkit.handovers import write_shapes_handover

pytestmark = pytest.mark.timeout(900)
PROFILE, DEVICE, WITHIN_S = "generic-x86-64", "bench-1", 240.0
WHOLE_PROFILE = Path(__file__).parents[2] / "device_profiles" / f"{PROFILE}.toml"


def few_candidates(folder: Path) -> Path:
    """The device's profile with its first runtime only: what is claimed here needs no more candidates than that."""
    head, first, *others = WHOLE_PROFILE.read_text().split("[[runtimes]]\n")
    path = folder / f"{PROFILE}.toml"
    path.write_text(f"{head}[[runtimes]]\n{first}[budgets]\n{others[-1].partition('[budgets]')[2]}")
    return path


def edgeops(*words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "edgeops", *words], capture_output=True, text=True, timeout=WITHIN_S)
    assert done.returncode == status, (words, done.returncode, done.stderr[-2000:])
    return done


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """The home of a fleet that is served, with one enrolled device whose agent runs."""
    home = tmp_path / "home"
    edgeops("trust", "init", "--home", str(home), "--fleet", "bench")
    serving = subprocess.Popen(
        [sys.executable, "-m", "edgeops", "serve", "--home", str(home)], stdout=subprocess.PIPE, text=True
    )
    assert serving.stdout is not None
    assert serving.stdout.readline()
    token = tmp_path / "token"
    token.write_text(edgeops("device", "token", "--home", str(home), "--profile", PROFILE, "--name", DEVICE).stdout)
    state, log = tmp_path / "device", tmp_path / "agent.log"
    words = ["agent", "run", "--state", str(state), "--token-file", str(token), "--profile", PROFILE, "--name", DEVICE]
    with log.open("wb") as out:
        agent = subprocess.Popen([sys.executable, "-m", "edgeops", *words], stdout=out, stderr=out)
    deadline_s = time.monotonic() + WITHIN_S
    while not _runtimes(home):
        assert time.monotonic() < deadline_s, log.read_text()[-2000:]
        time.sleep(0.1)
    yield home
    for process in (agent, serving):
        process.terminate()
        process.wait(WITHIN_S)
    serving.stdout.close()


def _runtimes(home: Path) -> dict[str, str]:
    """What the device says that it can run; nothing before it has reported."""
    found = subprocess.run(
        [sys.executable, "-m", "edgeops", "device", "show", "--home", str(home), DEVICE, "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    reported: dict[str, Any] = json.loads(found.stdout)["reported"] if found.returncode == 0 else {}
    return dict(reported.get("self", {}).get("capabilities", {}))


def test_the_compiler_chooses_by_what_a_device_measured_and_signed(home: Path, tmp_path: Path):
    handover = write_shapes_handover(tmp_path / "handover")
    out = tmp_path / "out"
    compiled = ("compile", str(handover), "--profile", str(few_candidates(tmp_path)), "--out", str(out))
    # Nothing was measured yet.
    refused = edgeops(*compiled, "--measured-on", DEVICE, "--home", str(home), status=5)
    assert "E-MEASURE-REFUSED" in refused.stderr

    edgeops(*compiled, "--keep-candidates")
    bundles = sorted(str(path) for path in (out / PROFILE / "candidates").glob("*/bundle"))
    assert len(bundles) >= 4
    asked = ("measure", *bundles, "--device", DEVICE, "--home", str(home), "--runs", "20", "--json")
    found = decode(edgeops(*asked).stdout, Measurements, what="answer")
    assert (found.source, found.device) == (Source.MEASURED_DEVICE, DEVICE)
    assert all(one.measured is not None for one in found.bundles)

    done = edgeops(*compiled, "--measured-on", DEVICE, "--home", str(home), "--json")
    (profile,) = json.loads(done.stdout)["profiles"]
    evidence = decode((out / PROFILE / "evidence.json").read_bytes(), Evidence, what="evidence")
    assert evidence.figures is not None
    assert (evidence.figures.device, evidence.figures.at_s) == (DEVICE, found.at_s)
    assert len(evidence.figures.signed_by) == 64
    figures = {one.artifact_sha256: one.measured for one in found.bundles}
    chosen = next(one for one in evidence.candidates if one.chosen)
    assert (chosen.source, chosen.measured_on) == (Source.MEASURED_DEVICE, DEVICE)
    assert chosen.latency in [one.latency for one in figures.values() if one is not None]
    lock = json.loads((out / "compile.lock").read_bytes())["profiles"][PROFILE]
    assert lock["scheme"] == profile["scheme"]
    assert (lock["measured_on"], lock["signed"], lock["figures"]) == (DEVICE, True, evidence.figures.sha256)

    # The same figures by hand: nobody has signed the file, and the evidence says so.
    file = tmp_path / "figures.json"
    file.write_bytes(msgspec.json.encode(found))
    edgeops(*compiled, "--measured-on", str(file))
    evidence = decode((out / PROFILE / "evidence.json").read_bytes(), Evidence, what="evidence")
    assert evidence.figures is not None
    assert (evidence.figures.device, evidence.figures.signed_by) == (DEVICE, "")
