"""The measuring harness: counts what it says, and native trouble costs one measurement only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeops.contracts.bundle import MANIFEST_NAME, BundleManifest
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import decode, encode
from edgeops.releases.bundles import Bundle
from edgeops.runtimes import measure_bundle
from edgeops.runtimes.measure import MeasureRequest, interleaved, latency, measure_apart, peak_memory_mib


def test_every_run_is_counted_and_warmup_is_not_timed():
    calls: list[int] = []
    found = latency(lambda: calls.append(1), warmup=2, runs=5)
    assert (len(calls), found.runs) == (7, 5)
    assert 0 < found.p50_ms <= found.p95_ms


def test_interleaved_runs_take_turns():
    order: list[str] = []
    interleaved(lambda: order.append("a"), lambda: order.append("b"), warmup=0, runs=4)
    assert "".join(order) == "abbaabba"


def test_peak_memory_grows_with_what_is_held():
    """In a process of its own: another test may have had this one hold more before."""
    code = """
import numpy as np
from edgeops.runtimes.measure import peak_memory_mib
before = peak_memory_mib()
held = np.ones(64 << 17)
assert peak_memory_mib() >= before + 32, (before, peak_memory_mib())
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.fixture
def request_(bundle: Bundle, tmp_path: Path) -> MeasureRequest:
    copy = shutil.copytree(bundle.directory, tmp_path / "measured")
    return MeasureRequest(bundle=str(copy), runs=5)


def of_runtime(request: MeasureRequest, name: str) -> MeasureRequest:
    """The same bundle, but another backend is to open it."""
    path = Path(request.bundle) / MANIFEST_NAME
    manifest = decode(path.read_bytes(), BundleManifest, what="manifest")
    path.write_bytes(encode(msgspec.structs.replace(manifest, runtime=name)))
    return request


def test_measured_apart(request_: MeasureRequest):
    found = measure_apart(request_)
    assert found.latency.runs == 5
    assert found.load_ms > 0
    assert found.peak_memory_mib > 5
    assert found.provider == "CPUExecutionProvider"
    assert found.golden_vectors > 0
    assert found.source_min_cosine > 0.9999


def test_a_refused_artifact_keeps_its_code(request_: MeasureRequest):
    (Path(request_.bundle) / "model.onnx").write_bytes(b"garbage")
    with pytest.raises(EdgeopsError) as caught:
        measure_apart(request_)
    assert caught.value.code == "E-RUNTIME-LOAD"


def test_a_crash_or_hang_is_an_error_of_that_measurement(request_: MeasureRequest, tmp_path: Path, monkeypatch):
    """A runtime that kills its process, and one that never answers, through a real plugin."""
    for body, words, timeout_s in (("os.abort()", "SIGABRT", 60), ("time.sleep(600)", "no answer", 5)):
        plugin = tmp_path / words.replace(" ", "-")
        (plugin / "bad-1.dist-info").mkdir(parents=True)
        (plugin / "bad-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1\n")
        (plugin / "bad-1.dist-info" / "entry_points.txt").write_text("[edgeops.backends]\nbad = bad_backend:Bad\n")
        (plugin / "bad_backend.py").write_text(
            f"import os, time\nclass Bad:\n    name = 'bad'\n    def load(self, artifact, options):\n        {body}\n"
        )
        monkeypatch.setenv("PYTHONPATH", os.fspath(plugin))
        with pytest.raises(EdgeopsError, match=words) as caught:
            measure_apart(of_runtime(request_, "bad"), timeout_s=timeout_s)
        assert caught.value.code == "E-RUNTIME-RUN"


def test_peak_memory_is_not_that_of_the_process_which_started_it():
    held = np.ones(200 << 17)
    code = "from edgeops.runtimes.measure import peak_memory_mib; print(peak_memory_mib())"
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, timeout=60)
    assert peak_memory_mib() > held.nbytes / 2**20
    assert float(started.stdout) < held.nbytes / 2**20


def test_a_runtime_that_prints_does_not_spoil_the_answer(request_: MeasureRequest, tmp_path: Path, monkeypatch):
    plugin = tmp_path / "loud"
    (plugin / "loud-1.dist-info").mkdir(parents=True)
    (plugin / "loud-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: loud\nVersion: 1\n")
    (plugin / "loud-1.dist-info" / "entry_points.txt").write_text("[edgeops.backends]\nloud = loud_backend:Loud\n")
    (plugin / "loud_backend.py").write_text(
        "import atexit, os\n"
        "from edgeops.runtimes.onnxruntime_backend import OnnxRuntimeBackend\n"
        "class Loud(OnnxRuntimeBackend):\n"
        "    name = 'loud'\n"
        "    def load(self, artifact, options):\n"
        "        os.write(1, b'loading\\n')\n"
        "        atexit.register(os.write, 1, b'goodbye\\n')\n"
        "        return super().load(artifact, options)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.fspath(plugin))
    found = measure_apart(of_runtime(request_, "loud"))
    assert found.latency.runs == 5


@pytest.mark.parametrize(
    ("file", "code"), [("golden/artifact.npy", "E-BUNDLE-INVALID"), (MANIFEST_NAME, "E-WIRE-MALFORMED")]
)
def test_files_that_cannot_be_read_are_an_error_of_that_measurement(request_: MeasureRequest, file: str, code: str):
    paths = sorted((Path(request_.bundle) / "golden").iterdir()) if "golden" in file else [Path(request_.bundle) / file]
    paths[0].write_bytes(b"no array")
    with pytest.raises(EdgeopsError) as caught:
        measure_apart(request_)
    assert caught.value.code == code


def test_wrong_answers_are_no_measurement(request_: MeasureRequest):
    """Speed of an artifact that answers wrongly is of no use."""
    for path in (Path(request_.bundle) / "golden").iterdir():
        array = np.load(path)
        if array.dtype.kind == "f":
            np.save(path, array + 1)
    with pytest.raises(EdgeopsError) as caught:
        measure_apart(request_)
    assert caught.value.code == "E-SELFTEST-GOLDEN"


def test_hunger_for_memory_is_an_error_of_that_measurement(request_: MeasureRequest):
    """Negative control: `test_measured_apart` passes with the default limit."""
    with pytest.raises(EdgeopsError) as caught:
        measure_apart(request_, memory_mib=16)
    assert caught.value.code.startswith("E-RUNTIME-")


NVPMODEL = {
    "a Jetson": ('echo "NVPM WARN: fan mode is not set!"; echo "NV Power Mode: MAXN"; echo 0', "MAXN"),
    "one that answers otherwise": ("echo hello", ""),
    "one that fails": ("exit 3", ""),
    "one that says much": ("echo NV Power Mode: $(seq 1000)", None),
}


@pytest.mark.parametrize("kind", NVPMODEL)
def test_the_power_mode_that_a_latency_holds_in_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    script, mode = NVPMODEL[kind]
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program = tmp_path / "nvpmodel"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    said = measure_bundle.power_mode()
    assert said == mode if mode is not None else len(said) == 100


def test_a_machine_without_them_tells_neither_power_mode_nor_clocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_bundle, "_CPUFREQ", tmp_path)
    monkeypatch.setattr(measure_bundle.shutil, "which", lambda *_args, **_named: None)
    assert (measure_bundle.power_mode(), measure_bundle.clocks()) == ("", "")
    (tmp_path / "scaling_governor").write_text("schedutil\n")
    assert measure_bundle.clocks() == "schedutil"
    (tmp_path / "scaling_cur_freq").write_text("600000\n")
    (tmp_path / "scaling_max_freq").write_text("1500000\n")
    assert measure_bundle.clocks() == "schedutil, 600 of at most 1500 MHz"
