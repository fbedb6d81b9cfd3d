"""Engines that a runtime builds for the device: in the candidate's slot, told while it lasts, and never half.

There is no GPU here: a stand-in for onnxruntime's TensorRT provider, loaded into the real worker, takes its time and
writes an engine into the folder that the provider's options name. Everything else is real.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import msgspec
import pytest
from adder_bundles import small_bundle
from serving_rig import ServingRig, load_of

from edgeops.agent.channel import Load
from edgeops.releases.bundles import Bundle, seal

# Python imports it at the start of every process that sees its folder.
_STAND_IN = """
import os, time
from pathlib import Path

import onnxruntime

if os.environ.get("STAND_IN_BUILD_S"):
    real = onnxruntime.InferenceSession

    class Session(real):
        def __init__(self, path, settings, providers, provider_options, **more):
            self.first = providers[0]
            if self.first == "TensorrtExecutionProvider":
                given = provider_options[0]
                assert given["trt_engine_cache_enable"] == given["trt_timing_cache_enable"] == "1", given
                engine = Path(given["trt_engine_cache_path"]) / "model.engine"
                if engine.exists() and engine.read_text() != "whole":
                    raise RuntimeError("the engine is damaged")
                if not engine.exists():
                    engine.write_text("ha")
                    time.sleep(float(os.environ["STAND_IN_BUILD_S"]))
                    engine.write_text("whole")
                    with open(os.environ["STAND_IN_BUILDS"], "a") as builds:
                        builds.write("built\\n")
            super().__init__(path, settings, providers=["CPUExecutionProvider"], **more)

        def get_providers(self):
            return [self.first, "CPUExecutionProvider"]

    onnxruntime.InferenceSession = Session
    onnxruntime.get_available_providers = lambda: ["TensorrtExecutionProvider", "CPUExecutionProvider"]
"""


@pytest.fixture
def for_gpu(tmp_path: Path) -> Bundle:
    """A bundle for a profile with TensorRT, then CUDA, then CPU."""
    made = small_bundle(tmp_path / "slot" / "bundle")
    providers = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
    (made.directory / "manifest.json").unlink()
    return seal(made.directory, msgspec.structs.replace(made.manifest, providers=providers, files={}))


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stand-in in place; the file gets a line for each engine that is built."""
    (tmp_path / "stand-in").mkdir()
    (tmp_path / "stand-in" / "sitecustomize.py").write_text(_STAND_IN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'stand-in'}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("STAND_IN_BUILD_S", "0.3")
    monkeypatch.setenv("STAND_IN_BUILDS", str(tmp_path / "builds"))
    return tmp_path / "builds"


def load_for(bundle: Bundle) -> Load:
    return msgspec.structs.replace(load_of(bundle, "1.0.0"), cache_dir=str(bundle.directory.parent / "engines"))


def test_an_engine_is_built_once_in_the_slot_and_that_is_told(rig: ServingRig, for_gpu: Bundle, builds: Path) -> None:
    rig.do(lambda serving: serving.try_out(load_for(for_gpu)))
    assert rig.expect("building") >= 0
    figures = rig.expect("tested")
    assert figures.provider == "TensorrtExecutionProvider"
    engines = for_gpu.directory.parent / "engines"
    assert sorted(path.name for path in engines.iterdir()) == ["complete", "model.engine"]
    rig.do(lambda serving: serving.promote())
    rig.expect("serves")
    rig.do(lambda serving: serving.serve(load_for(for_gpu)))  # as after a restart
    rig.expect("serves")
    assert builds.read_text() == "built\n"


def test_a_build_that_was_cut_off_is_begun_anew(
    rig: ServingRig, for_gpu: Bundle, builds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half an engine is not taken for one; the negative control is the mark, without which it would be."""
    monkeypatch.setenv("STAND_IN_BUILD_S", "300")
    rig.do(lambda serving: serving.try_out(load_for(for_gpu)))
    rig.expect("building")
    half = for_gpu.directory.parent / "engines" / "model.engine"
    until_s = time.monotonic() + 60
    while not (half.exists() and half.read_text() == "ha"):
        assert time.monotonic() < until_s
        time.sleep(0.01)
    candidate = rig.serving._candidate
    assert candidate is not None
    os.kill(candidate.process.pid, signal.SIGKILL)
    rig.expect("test_failed")
    assert half.read_text() == "ha"
    monkeypatch.setenv("STAND_IN_BUILD_S", "0.1")
    rig.do(lambda serving: serving.try_out(load_for(for_gpu)))
    assert rig.expect("tested").provider == "TensorrtExecutionProvider"
    assert half.read_text() == "whole"

    half.write_text("ha")  # marked as whole, though it is not: the next provider is taken, and that is said
    rig.do(lambda serving: serving.try_out(load_for(for_gpu)))
    provider = rig.expect("tested").provider
    assert provider.startswith("CPUExecutionProvider (CUDAExecutionProvider not in this build; Tensorrt")
    assert "the engine is damaged" in provider


def test_another_version_of_the_runtime_builds_its_own_engine(rig: ServingRig, for_gpu: Bundle, builds: Path) -> None:
    rig.do(lambda serving: serving.try_out(load_for(for_gpu)))
    rig.expect("tested")
    mark = for_gpu.directory.parent / "engines" / "complete"
    mark.write_text(mark.read_text() + "-older")
    rig.do(lambda serving: serving.try_out(load_for(for_gpu)))
    rig.expect("building")
    rig.expect("tested")
    assert builds.read_text() == "built\n" * 2


def test_a_device_whose_build_has_no_tensorrt_keeps_no_engines(rig: ServingRig, for_gpu: Bundle) -> None:
    rig.do(lambda serving: serving.try_out(load_for(for_gpu)))
    assert "TensorrtExecutionProvider, CUDAExecutionProvider not in this build" in rig.expect("tested").provider
    assert not (for_gpu.directory.parent / "engines").exists()
