"""The blob of an int8 model: the same bytes every time, the interpreter's answers, and refusals that name the cause."""

from __future__ import annotations

import ctypes
import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tflite_models as made

from edgeops.cli.demo.packages import Member, Package, fetch
from edgeops.compiler import bakenn_adapter
from edgeops.compiler.candidates import Room
from edgeops.compiler.microcontrollers import room
from edgeops.compiler.passes import Work
from edgeops.compiler.passes.mcu_blob import BLOB_NAME, NOTICE_NAME, McuBlob, _step
from edgeops.compiler.passes.mcu_prove import McuProve
from edgeops.compiler.passes.samples import write_samples
from edgeops.contracts.bundle import Binding, BundleManifest, Golden, OutputInfo
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.profile import Budgets, Precision
from edgeops.contracts.tensors import TensorSpec
from edgeops.profiles import registry
from edgeops.runtimes.protocol import LoadOptions
from edgeops.runtimes.registry import backend
from firmware_bridge import blobs
from firmware_bridge.build import FIRMWARE_DIR, HOST, build

pytest.importorskip("tflite_micro", reason="tflite-micro has wheels for Linux on x86-64 only")
pytestmark = pytest.mark.usefixtures("host_compiler")

_WAKE_WORD = Member(
    Package("pymicro-wakeword==2.5.0", "3869f536402b1254e3be3549d3a462ecd6ed21ce2c3e77ec8eb501c3c700417c"),
    "pymicro_wakeword/models/hey_jarvis.tflite",
    "21a7976add39ee24ec96c63d96b7aaa18e24d1d9824b963e451da8feb4b78b77",
)


def make(folder: Path, model: bytes, **parameters: Any) -> Path:
    source, target = folder / "source", folder / f"target-{len(list(folder.iterdir()))}"
    source.mkdir(exist_ok=True)
    target.mkdir()
    (source / "model.tflite").write_bytes(model)
    given = {"cpu": "x86-64", "name": "m", **parameters}
    McuBlob().run(Work(source, {}, frozenset(), target, given, {}, {}))
    return target


def refused(folder: Path, model: bytes, **parameters: Any) -> str:
    with pytest.raises(EdgeopsError) as caught:
        make(folder, model, **parameters)
    assert caught.value.code == "E-COMPILE-CANDIDATE"
    return caught.value.what


def pooled() -> bytes:
    """A pool and a softmax behind it: two kinds of operators, no weights."""
    model = made.new()
    x = made.quantized(model, model.add_tensor("x", (1, 8, 8, 5)), 0.1, 3)
    pool = made.quantized(model, model.add_tensor("pool", (1, 1, 1, 5)), 0.1, 3)
    flat = made.quantized(model, model.add_tensor("flat", (1, 5)), 0.1, 3)
    y = made.quantized(model, model.add_tensor("y", (1, 5)), 1 / 256, -128)
    options = model.options(
        "Pool2DOptions", padding=model.enum("Padding", "VALID"), strideW=8, strideH=8, filterHeight=8, filterWidth=8,
        fusedActivationFunction=0,
    )  # fmt: skip
    shape = np.array([1, 5], np.int32)
    reshape = model.options("ReshapeOptions", newShape=shape)
    model.graph.operators += [
        model.operator("AVERAGE_POOL_2D", [x], [pool], options),
        model.operator("RESHAPE", [pool, model.add_constant("shape", shape)], [flat], reshape),
        model.operator("SOFTMAX", [flat], [y], model.options("SoftmaxOptions", beta=1.0)),
    ]
    return made.ends(model, [x], [y]).packed()


def test_a_blob_gives_the_interpreters_bytes(tmp_path: Path):
    folder = make(tmp_path, pooled())
    oracle = backend("mcu").load(folder / "model.tflite", LoadOptions())
    board = backend("mcu").load(folder / BLOB_NAME, LoadOptions())
    rng = np.random.default_rng(1)
    for _ in range(20):
        values = (rng.normal(size=(1, 8, 8, 5)) * 60 + rng.uniform(-90, 90, 5)).clip(-128, 127).astype(np.int8)
        (wanted,), (got,) = oracle.run({"x": values}).values(), board.run({"input": values}).values()
        assert got.tobytes() == wanted.tobytes()
    oracle.close()
    board.close()


def test_the_same_model_gives_the_same_blob_anywhere(tmp_path: Path):
    one, other = tmp_path / "one", tmp_path / "a" / "much" / "deeper" / "folder"
    for folder in (one, other):
        folder.mkdir(parents=True)
    first, second = ((make(folder, pooled()) / BLOB_NAME).read_bytes() for folder in (one, other))
    assert first == second
    assert str(tmp_path).encode() not in first
    blobs.read(first)


def test_licences_of_all_that_is_in_a_blob_lie_beside_it(tmp_path: Path):
    notice = (make(tmp_path, pooled(), cpu="x86-64") / NOTICE_NAME).read_text()
    assert "bakenn" in notice
    assert "Apache License" in notice


@pytest.mark.usefixtures("arm_compiler")
def test_cmsis_nn_is_used_where_the_processor_has_it_and_its_licence_is_there(tmp_path: Path):
    model = pooled()
    plain, dsp = ((make(tmp_path, model, cpu=cpu) / NOTICE_NAME).read_text() for cpu in ("cortex-m3", "cortex-m4"))
    assert "cmsis_nn" not in plain
    assert "cmsis_nn" in dsp


@pytest.mark.parametrize("columns", [2, 10, 257])
@pytest.mark.parametrize("scale", [0.003, 0.0336763, 0.25, 3.0])
def test_softmax_is_the_interpreters_bit_for_bit(scale: float, columns: int, tmp_path: Path):
    rows = 40
    made.softmax(scale, columns, rows=rows).write(tmp_path / "softmax.tflite")
    session = backend("mcu").load(tmp_path / "softmax.tflite", LoadOptions())
    blob = FIRMWARE_DIR / "blob"
    library = ctypes.CDLL(
        str(build(HOST, "softmax.so", [blob / "softmax.c"], ["-O2", "-shared", "-fPIC"], folders=[blob]))
    )
    multiplier, shift = _step(float(np.float32(scale)))
    smallest = -((31 << 26) >> shift)
    rng = np.random.default_rng(columns)
    for spread in (1, 8, 200):
        values = (rng.normal(size=(rows, columns)) * spread).clip(-128, 127).astype(np.int8)
        got = np.empty_like(values)
        pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (values, got)]
        library.eo_softmax_s8(*pointers, rows, columns, multiplier, shift, smallest)
        np.testing.assert_array_equal(got, session.run({"x": values})["y"])
    session.close()


def test_a_wake_word_model_is_refused_for_its_state(tmp_path: Path):
    """Two subgraphs and variables: a real model that a blob cannot be."""
    what = refused(tmp_path, fetch(_WAKE_WORD).read_bytes())
    assert "2 subgraphs" in what
    assert "variables (VAR_HANDLE)" in what


def test_an_operator_without_code_is_named_with_its_place(tmp_path: Path):
    model = made.new()
    x = made.quantized(model, model.add_tensor("x", (1, 4)), 0.1, 0)
    y = made.quantized(model, model.add_tensor("y", (1, 4)), 0.1, 0)
    model.graph.operators.append(model.operator("LOGISTIC", [x], [y]))
    what = refused(tmp_path, made.ends(model, [x], [y]).packed())
    assert "operator 0, LOGISTIC (it writes 'y')" in what
    assert "CONV_2D" in what


@pytest.mark.parametrize(
    ("harm", "why"), [("inputs", "2 inputs"), ("float", "is not int8"), ("variable", "1 variables")]
)
def test_what_a_blob_cannot_be_is_refused_with_its_reason(harm: str, why: str, tmp_path: Path):
    model = made.softmax(0.1, 4)
    if harm == "inputs":
        model.graph.inputs = np.array([0, 0], np.int32)
    elif harm == "float":
        model.graph.tensors[0].type = made.FLOAT
    else:
        model.graph.tensors[0].isVariable = True
    assert why in refused(tmp_path, model.packed())


@pytest.mark.parametrize(
    "data", [b"", b"hello, this is no model", b"\x10\0\0\0TFL3" + b"\xff" * 90], ids=["empty", "text", "offsets"]
)
def test_a_damaged_model_is_refused(data: bytes, tmp_path: Path):
    assert "TFLite model" in refused(tmp_path, data)


def limits(profile: str, **budgets: float) -> Room:
    return room("m", registry.load(profile), Budgets(**budgets))


def test_too_little_memory_names_bytes_and_the_profiles_line(tmp_path: Path):
    what = refused(tmp_path, pooled(), limits=limits("cortex-m3", peak_memory_mib=0.0001).limits)
    assert "bytes of RAM" in what
    assert "the profile offers 104 (handover.toml: budgets.cortex-m3.peak_memory_mib = 0.0001)" in what
    assert limits("cortex-m3").limits["arena_line"] == "cortex-m3.toml: budgets.peak_memory_mib = 0.0625"


def test_too_little_flash_names_bytes_and_the_profiles_line(tmp_path: Path):
    what = refused(tmp_path, pooled(), limits=limits("cortex-m4", size_mib=0.0005).limits)
    assert "bytes of flash with its signature" in what
    assert "(handover.toml: budgets.cortex-m4.size_mib = 0.0005)" in what


def test_an_unknown_processor_is_refused(tmp_path: Path):
    assert "no blobs for processor 'cortex-m0'" in refused(tmp_path, pooled(), cpu="cortex-m0")


def test_another_bakenn_than_the_pinned_one_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As after an upgrade, or with a file that somebody changed."""
    bakenn_adapter._check_pinned.cache_clear()
    monkeypatch.setattr(bakenn_adapter, "_CODE_SHA256", hashlib.sha256(b"another").hexdigest())
    with pytest.raises(EdgeopsError, match="not the pinned one") as caught:
        make(tmp_path, pooled())
    assert caught.value.code == "E-DEPENDENCY"
    assert "bakenn[tflite]==1.0.0" in caught.value.next_step


def test_a_byte_that_differs_from_the_interpreters_ends_the_proof(tmp_path: Path):
    """Negative control: a blob of another model beside the TFLite file."""
    folder = make(tmp_path, pooled())
    device = TensorSpec(name="x", dtype="float32", shape=(1, 8, 8, 5))
    output = TensorSpec(name="y", dtype="float32", shape=(1, 5))
    quantized = {"x": (0.1, 3), "y": (1 / 256, -128)}
    bindings = [
        Binding(device=spec.name, artifact=msgspec.structs.replace(spec, dtype="int8"), scale=scale, zero_point=zero)
        for spec, (scale, zero) in zip((device, output), quantized.values(), strict=True)
    ]
    manifest = BundleManifest(
        model="m", profile="p", arch="x86_64", runtime="mcu", runtime_min="1", precision=Precision.INT8, scheme="s",
        artifact="model.tflite", inputs=(device,), outputs=(OutputInfo(tensor=output, kind="probabilities"),),
        input_bindings=(bindings[0],), output_bindings=(bindings[1],), files={},
        golden=Golden(count=0, inputs={}, source_outputs={}, artifact_outputs={}, tolerances={}),
    )  # fmt: skip
    rng = np.random.default_rng(2)
    samples = tmp_path / "samples"
    samples.mkdir()
    write_samples(samples, "judged", {"x": rng.normal(size=(6, 1, 8, 8, 5)).astype(np.float32) * 4})

    def prove() -> dict[str, Any]:
        target = tmp_path / f"proof-{len(list(tmp_path.iterdir()))}"
        target.mkdir()
        parameters = {"manifest": msgspec.to_builtins(manifest), "indices": [0, 3, 5]}
        places = {"samples": samples, "judged": samples}
        work = Work(folder, {"kernels": "k"}, frozenset(), target, parameters, places, {"samples": {}, "judged": {}})
        proof: dict[str, Any] = dict(McuProve().run(work).notes["on_board"])
        return proof

    assert (prove()["vectors"], prove()["output_bytes"]) == (3, 15)
    blob = (folder / BLOB_NAME).read_bytes()
    code = blob[blobs.HEADER_SIZE :]
    # The multiplier of softmax's input, as C has it.
    multiplier = _step(float(np.float32(0.1)))[0].to_bytes(4, "little")
    assert multiplier in code
    (folder / BLOB_NAME).write_bytes(
        blobs.pack(blobs.read(blob), code.replace(multiplier, (1 << 30).to_bytes(4, "little")))
    )
    with pytest.raises(EdgeopsError, match="bytes differ from the interpreter's") as caught:
        prove()
    assert caught.value.code == "E-COMPILE-CANDIDATE"
