"""What every runtime must do: one suite, all of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from affine_models import SHAPE, WRITERS, write_tflite

from edgeops.contracts.errors import EdgeopsError
from edgeops.runtimes import mcu_backend
from edgeops.runtimes.protocol import Backend, LoadOptions, Session
from edgeops.runtimes.registry import backend, backends, capabilities

A = np.array([[1.0, -2.5, 3.0, 0.0]], np.float32)
B = np.array([[0.5, 0.25, -8.0, 4.0]], np.float32)


@pytest.fixture(params=sorted(WRITERS))
def runtime(request: pytest.FixtureRequest) -> Backend:
    return backend(request.param)


@pytest.fixture
def artifact(runtime: Backend, tmp_path: Path) -> Path:
    name, write = WRITERS[runtime.name]
    return write(tmp_path / name)


@pytest.fixture
def session(runtime: Backend, artifact: Path) -> Iterator[Session]:
    loaded = runtime.load(artifact, LoadOptions())
    yield loaded
    loaded.close()


def test_every_backend_that_is_installed_is_in_this_suite():
    assert set(capabilities()) == set(WRITERS)
    assert set(backends()) == set(WRITERS)


def test_says_its_version(runtime: Backend):
    version = runtime.available().version
    assert version is not None
    # An older package says its name before its version.
    assert version.split()[-1][0].isdigit()


def test_signature_is_the_models(session: Session):
    assert {(spec.name, spec.dtype, spec.shape) for spec in session.inputs} == {
        ("a", "float32", SHAPE),
        ("b", "float32", SHAPE),
    }
    assert {(spec.name, spec.dtype, spec.shape) for spec in session.outputs} == {
        ("total", "float32", SHAPE),
        ("gap", "float32", SHAPE),
    }
    assert session.provider


def test_answers_are_right_by_name(session: Session):
    answer = session.run({"b": B, "a": A})
    np.testing.assert_array_equal(answer["total"], A + B)
    np.testing.assert_array_equal(answer["gap"], A - B)


def test_an_answer_does_not_change_when_the_next_one_is_computed(session: Session):
    first = session.run({"a": A, "b": B})["total"]
    session.run({"a": A * 100, "b": B * 100})
    np.testing.assert_array_equal(first, A + B)


def test_a_closed_session_says_so(session: Session):
    session.run({"a": A, "b": B})
    session.close()
    session.close()
    with pytest.raises(EdgeopsError, match="closed") as caught:
        session.run({"a": A, "b": B})
    assert caught.value.code == "E-RUNTIME-RUN"


def test_a_size_that_the_model_leaves_open_may_change_from_run_to_run(runtime: Backend, tmp_path: Path):
    if runtime.name == "mcu":
        pytest.skip("a microcontroller's memory is planned once, for the sizes that the model says")
    name, write = WRITERS[runtime.name]
    session = runtime.load(write(tmp_path / name, open_batch=True), LoadOptions())
    assert {spec.shape for spec in session.inputs} == {(-1, 4)}
    for batch in (3, 1, 2, 2):
        a, b = np.repeat(A, batch, axis=0), np.repeat(B, batch, axis=0)
        np.testing.assert_array_equal(session.run({"a": a, "b": b})["gap"], a - b)
    with pytest.raises(EdgeopsError) as caught:
        session.run({"a": A[:, :3], "b": B[:, :3]})
    assert caught.value.code == "E-RUNTIME-INPUT"
    session.close()


def test_tensors_that_may_not_be_written_are_read_right(session: Session):
    """What comes from a request's body is read-only."""
    a = np.frombuffer(A.tobytes(), np.float32).reshape(SHAPE)
    assert not a.flags.writeable
    np.testing.assert_array_equal(session.run({"a": a, "b": B})["total"], A + B)


def test_inputs_are_left_as_they_were(session: Session):
    a, b = A.copy(), B.copy()
    session.run({"a": a, "b": b})
    np.testing.assert_array_equal((a, b), (A, B))


def test_two_sessions_do_not_mix(runtime: Backend, artifact: Path):
    one, other = runtime.load(artifact, LoadOptions()), runtime.load(artifact, LoadOptions(threads=2))
    first, second = one.run({"a": A, "b": B}), other.run({"a": B, "b": B})
    np.testing.assert_array_equal(first["gap"], A - B)
    np.testing.assert_array_equal(second["gap"], B - B)
    one.close()
    np.testing.assert_array_equal(other.run({"a": A, "b": A})["total"], A + A)
    other.close()


@pytest.mark.parametrize(
    "feeds",
    [
        {"a": A},
        {"a": A, "b": B, "c": B},
        {"a": A, "B": B},
        {"a": A, "b": B.astype(np.float64)},
        {"a": A, "b": B[:, :3]},
        {"a": A, "b": B[0]},
    ],
    ids=["missing", "superfluous", "misnamed", "dtype", "size", "rank"],
)
def test_wrong_tensors_are_refused_and_the_session_lives_on(session: Session, feeds: dict[str, np.ndarray]):
    with pytest.raises(EdgeopsError) as caught:
        session.run(feeds)
    assert caught.value.code == "E-RUNTIME-INPUT"
    np.testing.assert_array_equal(session.run({"a": A, "b": B})["total"], A + B)


def test_tensors_that_are_not_contiguous_are_read_right(session: Session):
    wide = np.repeat(A, 2, axis=1)
    np.testing.assert_array_equal(session.run({"a": wide[:, ::2], "b": B})["total"], A + B)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\0" * 4096, bytes(range(256)) * 40])
def test_a_file_that_is_no_model_is_refused(runtime: Backend, artifact: Path, content: bytes):
    artifact.write_bytes(content)
    with pytest.raises(EdgeopsError) as caught:
        runtime.load(artifact, LoadOptions())
    assert caught.value.code == "E-RUNTIME-LOAD"


def test_a_missing_file_is_refused(runtime: Backend, tmp_path: Path):
    with pytest.raises(EdgeopsError) as caught:
        runtime.load(tmp_path / WRITERS[runtime.name][0], LoadOptions())
    assert caught.value.code == "E-RUNTIME-LOAD"


def test_a_truncated_model_is_refused(runtime: Backend, artifact: Path):
    if (runtime.available().version or "").startswith("tflite-runtime"):
        pytest.skip("tflite-runtime verifies no file: agents hold a bundle against its digest before they load it")
    whole = artifact.read_bytes()
    for keep in (len(whole) // 4, len(whole) // 2, len(whole) - 8):
        artifact.write_bytes(whole[:keep])
        with pytest.raises(EdgeopsError) as caught:
            runtime.load(artifact, LoadOptions()).run({"a": A, "b": B})
        assert caught.value.code == "E-RUNTIME-LOAD"


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("onnxruntime", ["onnxruntime"]),
        ("openvino", ["openvino"]),
        ("litert", ["ai_edge_litert.interpreter", "tflite_runtime.interpreter"]),
    ],
)
def test_a_missing_runtime_says_how_to_get_it(name: str, modules: list[str]):
    """In a process where the import fails, as on a device without the package."""
    code = f"""
import sys
from pathlib import Path
for module in {modules!r}:
    sys.modules[module] = None
from edgeops.contracts.errors import EdgeopsError
from edgeops.runtimes import mcu_backend
from edgeops.runtimes.protocol import LoadOptions
from edgeops.runtimes.registry import backend
assert backend({name!r}).available().version is None
assert backend({name!r}).available().reason
try:
    backend({name!r}).load(Path("any"), LoadOptions())
except EdgeopsError as error:
    assert error.code == "E-RUNTIME-MISSING" and "pip install" in error.next_step
else:
    raise AssertionError("loaded without its runtime")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_missing_tflite_micro_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(mcu_backend, "_PACKAGE", "no-such-package")
    assert backend("mcu").available().version is None
    with pytest.raises(EdgeopsError) as caught:
        backend("mcu").load(write_tflite(tmp_path / "model.tflite"), LoadOptions())
    assert caught.value.code == "E-RUNTIME-MISSING"
    assert "pip install" in caught.value.next_step


def test_mcu_plans_an_arena_and_the_others_do_not_say(session: Session, runtime: Backend):
    assert (session.arena_bytes is not None) == (runtime.name == "mcu")
    if session.arena_bytes is not None:
        assert 0 < session.arena_bytes < 10_000


def test_an_interpreter_that_dies_or_hangs_is_an_error_of_its_inference_only(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
):
    session = backend("mcu").load(write_tflite(artifact.with_name("micro.tflite")), LoadOptions())
    child = next(one for one in psutil.Process().children() if "mcu_interpreter" in " ".join(one.cmdline()))
    child.suspend()
    monkeypatch.setattr(mcu_backend, "_WITHIN_S", 0.5)
    with pytest.raises(EdgeopsError, match="does not answer") as caught:
        session.run({"a": A, "b": B})
    assert caught.value.code == "E-RUNTIME-RUN"
    assert not child.is_running()
    with pytest.raises(EdgeopsError, match="closed"):
        session.run({"a": A, "b": B})


def test_litert_names_tensors_as_the_signature_does(tmp_path: Path):
    """In the graph's order, since a converter may have renamed them."""
    names = {"second": "a", "first": "b", "alpha": "gap", "zeta": "total"}
    session = backend("litert").load(write_tflite(tmp_path / "model.tflite", signature=names), LoadOptions())
    assert [spec.name for spec in session.inputs] == ["second", "first"]
    assert [spec.name for spec in session.outputs] == ["zeta", "alpha"]
    answer = session.run({"second": A, "first": B})
    np.testing.assert_array_equal(answer["zeta"], A + B)
    np.testing.assert_array_equal(answer["alpha"], A - B)


def test_litert_says_which_kernels_run(tmp_path: Path):
    artifact = write_tflite(tmp_path / "model.tflite")
    plain = backend("litert").load(artifact, LoadOptions(options={"xnnpack": "off"}))
    assert plain.provider != backend("litert").load(artifact, LoadOptions()).provider
    np.testing.assert_array_equal(plain.run({"a": A, "b": B})["total"], A + B)


def test_onnxruntime_goes_on_without_a_provider_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As on a board whose build has CUDA, but whose driver does not."""
    import onnxruntime

    real = onnxruntime.InferenceSession

    def without_a_driver(*args, providers, **kwargs):
        if providers[0] != "CPUExecutionProvider":
            raise RuntimeError("driver version is insufficient")
        return real(*args, providers=providers, **kwargs)

    artifact = WRITERS["onnxruntime"][1](tmp_path / "model.onnx")
    wanted = ("AzureExecutionProvider", "CPUExecutionProvider")
    monkeypatch.setattr(onnxruntime, "InferenceSession", without_a_driver)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(wanted))
    session = backend("onnxruntime").load(artifact, LoadOptions(providers=wanted))
    assert session.provider == ("CPUExecutionProvider (AzureExecutionProvider failed: driver version is insufficient)")
    np.testing.assert_array_equal(session.run({"a": A, "b": B})["total"], A + B)


def test_onnxruntime_says_why_a_preferred_provider_is_not_used(tmp_path: Path):
    artifact = WRITERS["onnxruntime"][1](tmp_path / "model.onnx")
    wanted = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
    missing = [name for name in wanted if name not in backend("onnxruntime").available().providers]
    session = backend("onnxruntime").load(artifact, LoadOptions(providers=wanted))
    if missing:
        assert session.provider == f"{wanted[len(missing)]} ({', '.join(missing)} not in this build)"
    else:
        assert session.provider == wanted[0]
