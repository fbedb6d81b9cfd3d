"""Profiles of microcontrollers get an int8 model, proved with TensorFlow Lite for Microcontrollers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeops import compiler
from edgeops.compiler import ProfileResult
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import Evidence
from edgeops.contracts.wire import decode
from edgeops.releases.bundles import open_bundle
from edgeops.runtimes.bundle_session import open_session
from edgeops.runtimes.golden import load, replay
from edgeops.testkit.handovers import shapes, write_shapes_handover
from firmware_bridge import blobs

pytest.importorskip("tflite_micro", reason="tflite-micro has wheels for Linux on x86-64 only")


ONE = "cortex-m4"
BOARDS = {"cortex-m3": "mps2-an385", "cortex-m4": "mps2-an386", "cortex-m7": "mps2-an500"}
pytestmark = pytest.mark.usefixtures("arm_compiler", "emulator")


@pytest.fixture(scope="module")
def compiled(shapes_handover: Path, tmp_path_factory: pytest.TempPathFactory) -> ProfileResult:
    return compiler.compile(shapes_handover, [ONE], tmp_path_factory.mktemp("compiled")).profiles[0]


def check_proved(one: ProfileResult, kernels: str) -> None:
    bundle = open_bundle(one.packaged.directory)
    manifest, blob = bundle.manifest, (bundle.directory / "model.blob").read_bytes()
    assert (manifest.runtime, manifest.precision, one.chosen.scheme) == ("mcu", "int8", "mcu-int8")
    assert manifest.artifact == "model.blob"
    assert sorted(name for name in manifest.files if "/" not in name) == ["LICENSES.txt", "model.blob"]
    proof = one.chosen.on_board
    assert proof is not None
    assert (proof.board, proof.kernels) == (BOARDS[one.profile], kernels)
    assert proof.vectors == manifest.golden.count == 16
    assert proof.output_bytes == 16 * 4
    assert proof.flash_bytes == len(blob) == one.chosen.size_bytes
    assert proof.arena_bytes == blobs.read(blob).arena_size == one.chosen.peak_memory_mib * 2**20
    assert proof.arena_bytes <= proof.interpreter_arena_bytes
    assert 100_000 < proof.instructions < 10_000_000
    evidence = decode((one.packaged.directory.parent / "evidence.json").read_bytes(), Evidence, what="evidence")
    assert proof in [candidate.on_board for candidate in evidence.candidates]


def test_bundle_for_a_microcontroller_is_a_blob_proved_on_its_processor(compiled: ProfileResult):
    check_proved(compiled, "CMSIS-NN")


@pytest.mark.full
@pytest.mark.parametrize(("profile", "kernels"), [("cortex-m3", "portable C"), ("cortex-m7", "CMSIS-NN")])
def test_bundles_for_the_other_processors_are_proved_too(
    shapes_handover: Path, tmp_path: Path, profile: str, kernels: str
):
    check_proved(compiler.compile(shapes_handover, [profile], tmp_path).profiles[0], kernels)


def test_the_bundles_blob_answers_as_the_model_does(compiled: ProfileResult):
    """On the emulated board, through the bundle's own adapter, on pictures that compile never saw."""
    manifest = open_bundle(compiled.packaged.directory).manifest
    images, labels = shapes(60, seed=9)
    with open_session(compiled.packaged.directory, manifest) as session:
        assert session.provider == "emulated board mps2-an386"
        got = [int(np.argmax(session.run({"image": image[None]})["shape"])) for image in images]
    assert np.mean(np.array(got) == labels) > 0.9


@pytest.mark.full
def test_a_digest_does_not_depend_on_any_key_and_comes_again(
    compiled: ProfileResult, shapes_handover: Path, tmp_path: Path, own_cache: Path
):
    """In an empty cache: everything is made anew."""
    again = compiler.compile(shapes_handover, [ONE], tmp_path / "again").profiles[0]
    assert again.packaged.digest == compiled.packaged.digest
    artifact = (compiled.packaged.directory / "model.blob").read_bytes()
    assert len(artifact) == blobs.unsigned_size(artifact), "no trailer"


def test_a_blob_that_computes_something_else_fails_its_golden_vectors(compiled: ProfileResult, tmp_path: Path):
    """Negative control: some weights are others, its own checksum is right."""
    bundle = open_bundle(compiled.packaged.directory)
    blob = (bundle.directory / "model.blob").read_bytes()
    header, code = blobs.read(blob), bytearray(blob[blobs.HEADER_SIZE :])
    vectors, weights = load(bundle.directory, bundle.manifest), code.rindex(bytes([0, 0, 0, 0]))
    for place in range(weights - 400, weights):
        code[place] ^= 0x20
    (tmp_path / "model.blob").write_bytes(blobs.pack(header, bytes(code)))
    with open_session(tmp_path, bundle.manifest) as session, pytest.raises(EdgeopsError) as caught:
        replay(session, bundle.manifest, vectors)
    assert caught.value.code == "E-SELFTEST-GOLDEN"
    assert "allowed is 0 (" in caught.value.what


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("arena_kib = 128", "arena_kib = 2", "the profile offers 2048 (tiny.toml: memory.arena_kib = 2)"),
        ("flash_kib = 1024", "flash_kib = 16", "the profile offers 16384 (tiny.toml: memory.flash_kib = 16)"),
        ('cpu = "cortex-m4"', 'cpu = "cortex-m0"', "no blobs for processor 'cortex-m0'"),
    ],
    ids=["arena", "flash", "processor"],
)
def test_what_a_profile_has_no_room_for_is_refused_with_its_line(
    shapes_handover: Path, tmp_path: Path, old: str, new: str, why: str
):
    text = Path("device_profiles/cortex-m4.toml").read_text()
    assert old in text
    small = tmp_path / "tiny.toml"
    small.write_text(text.replace('name = "cortex-m4"', 'name = "tiny"').replace(old, new))
    with pytest.raises(EdgeopsError) as caught:
        compiler.compile(shapes_handover, [str(small)], tmp_path / "out")
    assert caught.value.code == "E-COMPILE-CANDIDATE"
    assert why in caught.value.what


def test_operator_that_no_microcontroller_runs_is_named(tmp_path: Path):
    """A model of an operator that LiteRT has and its little sister has not."""
    folder = write_shapes_handover(tmp_path / "handover")
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("CumSum", ["flat", "axis"], ["sum"]),
        helper.make_node("Erf", ["sum"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 8, 8]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64]),
    ]
    axis = helper.make_tensor("axis", TensorProto.INT64, [], [1])
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [axis])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
    )
    declared = (folder / "handover.toml").read_text()
    head = declared[: declared.index("[[outputs]]")]
    (folder / "handover.toml").write_text(
        head + '[[outputs]]\nname = "y"\nmodel_output = "y"\nkind = "values"\n[calibration]\nfile = "calibration.npz"\n'
    )
    with pytest.raises(EdgeopsError) as caught:
        compiler.compile(folder, ["cortex-m4"], tmp_path / "out")
    assert caught.value.code == "E-COMPILE-CANDIDATE"
    assert "'SIGN'" in caught.value.what
