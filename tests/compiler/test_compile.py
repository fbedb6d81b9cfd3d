"""The whole compile on a small real model: proved bundles, the same bytes again, locks, gates, and what breaks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeops import compiler
from edgeops.compiler import executor, search
from edgeops.compiler.candidates import Candidate
from edgeops.compiler.engine import Step
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import Evidence
from edgeops.contracts.profile import Precision
from edgeops.releases.bundles import open_bundle, unpack
from edgeops.runtimes import golden
from edgeops.runtimes.bundle_session import open_session
from edgeops.testkit.handovers import shapes, write_shapes_handover

RUNTIMES = ("onnxruntime", "openvino", "litert")


def edit(folder: Path, addition: str) -> None:
    (folder / "handover.toml").write_text((folder / "handover.toml").read_text() + addition)


@pytest.fixture
def handover(shapes_handover: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shapes_handover, tmp_path / "handover"))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_bundle_runs_on_raw_images_and_carries_its_proof(handover: Path, profile, tmp_path: Path, runtime: str):
    result = compiler.compile(handover, [profile(runtime, "int8", "fp32")], tmp_path / "out")
    one = result.profiles[0]
    assert one.passed
    assert (one.chosen.runtime, one.chosen.precision) == (runtime, "int8")
    bundle = open_bundle(one.packaged.directory, expect_digest=one.packaged.digest)
    manifest = bundle.manifest
    images, labels = shapes(60, seed=77)
    with open_session(bundle.directory, manifest) as session:
        golden.replay(session, manifest, golden.load(bundle.directory, manifest))
        right = [
            session.run({"image": image[None]})["shape"].argmax() == label
            for image, label in zip(images, labels, strict=True)
        ]
    assert np.mean(right) > 0.8
    assert manifest.outputs[0].labels == ("circle", "square", "cross", "dots")
    assert manifest.drift is not None
    assert manifest.drift.samples == 464
    assert unpack(one.packaged.file, tmp_path / "unpacked").digest == one.packaged.digest
    evidence = msgspec.json.decode((tmp_path / "out" / one.profile / "evidence.json").read_bytes(), type=Evidence)
    assert evidence.bundle == one.packaged.digest
    float_record, int8_record = evidence.candidates
    assert float_record.conversion
    assert float_record.conversion[0].cosine > 0.9999
    assert int8_record.quantization[0].cosine > 0.99
    assert int8_record.peak_memory_mib is not None
    assert all(record.reason for record in evidence.candidates)


@pytest.mark.parametrize(
    "runtime", [RUNTIMES[0], *(pytest.param(name, marks=pytest.mark.full) for name in RUNTIMES[1:])]
)
def test_segment_that_int8_ruins_stays_float_and_the_rest_is_int8(profile, tmp_path: Path, runtime: str):
    """One channel is 400 times larger than the others: a range for all of them holds none but the large one."""
    handover = write_shapes_handover(tmp_path / "outlier", outlier=400.0)
    one = compiler.compile(handover, [profile(runtime, "int8", "fp32")], tmp_path / "out").profiles[0]
    float_record, whole, *_, partial = one.evidence.candidates
    assert not whole.passed
    assert one.chosen.scheme == partial.scheme == f"{runtime}-int8-partial"
    assert partial.size_bytes < float_record.size_bytes


@pytest.mark.parametrize(
    "runtime", ["onnxruntime", *(pytest.param(name, marks=pytest.mark.full) for name in RUNTIMES[1:])]
)
def test_same_compile_gives_the_same_bytes_without_any_cache(
    handover: Path, profile, tmp_path: Path, own_cache: Path, runtime: str
):
    wanted = profile(runtime, "int8")
    digests = []
    for turn in range(2):
        result = compiler.compile(handover, [wanted], tmp_path / f"out{turn}")
        digests.append((result.profiles[0].packaged.digest, result.profiles[0].packaged.file.read_bytes()))
        assert (own_cache / "compile").exists()
        shutil.rmtree(own_cache / "compile")
    assert digests[0] == digests[1]


def test_golden_vectors_change_with_the_calibration_data_also_where_float_is_chosen(
    handover: Path, profile, tmp_path: Path
):
    board = profile("onnxruntime", "fp32")
    first = compiler.compile(handover, [board], tmp_path / "a").profiles[0]
    np.savez(handover / "calibration.npz", image=shapes(90, seed=55)[0])
    second = compiler.compile(handover, [board], tmp_path / "b").profiles[0]
    assert first.chosen.precision == second.chosen.precision == "fp32"
    artifacts = [one.packaged.directory / "model.onnx" for one in (first, second)]
    assert artifacts[0].read_bytes() == artifacts[1].read_bytes()
    assert first.packaged.digest != second.packaged.digest


def test_lock_replays_the_choice_and_check_finds_every_difference(handover: Path, profile, tmp_path: Path):
    board = profile("onnxruntime", "int8", "fp32")
    first = compiler.compile(handover, [board], tmp_path / "a")
    assert first.lock is not None
    again = compiler.compile(handover, [board], tmp_path / "b", locked=first.lock, check=True)
    assert again.profiles[0].packaged.digest == first.profiles[0].packaged.digest
    assert (tmp_path / "b" / "compile.lock").read_bytes() == first.lock.read_bytes()

    def problem(lock: Path, *, check: bool = True) -> str:
        with pytest.raises(EdgeopsError) as caught:
            compiler.compile(handover, [board], tmp_path / "c", locked=lock, check=check)
        assert caught.value.code == "E-COMPILE-LOCK"
        assert caught.value.exit_status == 3
        return caught.value.what

    text = first.lock.read_text()
    lock = tmp_path / "changed.lock"
    lock.write_text(text.replace(first.profiles[0].packaged.digest, "sha256:" + "0" * 64))
    assert "locked is sha256:0000" in problem(lock)
    lock.write_text(text.replace('"onnxslim": "', '"onnxslim": "9'))
    assert "onnxslim is" in problem(lock)
    lock.write_text(text.replace(first.profiles[0].profile, "another-board"))
    assert "not locked" in problem(lock, check=False)
    lock.write_text("{")
    problem(lock, check=False)
    np.savez(handover / "calibration.npz", image=shapes(70, seed=56)[0])
    assert "hand-over is" in problem(first.lock)
    # Without --check the lock still names the scheme for the new data.
    replayed = compiler.compile(handover, [board], tmp_path / "d", locked=first.lock).profiles[0]
    assert replayed.chosen.scheme == first.profiles[0].chosen.scheme
    assert replayed.packaged.digest != first.profiles[0].packaged.digest


def test_gate_that_nothing_passes_keeps_the_best_and_names_the_distance(handover: Path, profile, tmp_path: Path):
    board = profile("onnxruntime", "int8", "fp32")
    out = tmp_path / "out"
    assert compiler.compile(handover, [board], out).lock is not None
    edit(handover, "\n[budgets.test-onnxruntime]\nsize_mib = 0.005\n")
    result = compiler.compile(handover, [board], out)
    with pytest.raises(EdgeopsError) as caught:
        result.raise_for_gates()
    assert caught.value.exit_status == 3
    assert "onnxruntime-int8: size-mib" in caught.value.what
    assert "misses by" in caught.value.what
    kept = result.profiles[0].packaged
    assert kept.directory == out / "test-onnxruntime" / "rejected" / "bundle"
    assert open_bundle(kept.directory).digest == kept.digest
    assert not (out / "test-onnxruntime" / "bundle").exists()
    assert not any(record.chosen for record in result.profiles[0].evidence.candidates)
    assert result.lock is None
    (setting,) = result.profiles[0].chosen.would_pass_with
    assert f"budgets.size_mib >= {setting.needed:.4g} (now 0.005)" in caught.value.next_step
    path = handover / "handover.toml"
    path.write_text(path.read_text().replace("size_mib = 0.005", f"size_mib = {setting.needed}"))
    assert compiler.compile(handover, [board], out).lock is not None


def test_profile_that_no_backend_can_serve_is_named_and_leaves_all_results_as_they_were(
    handover: Path, profile, tmp_path: Path
):
    """Its error comes when the other profile's bundle is made already."""
    good, out = profile("onnxruntime", "int8", "fp32"), tmp_path / "out"
    compiler.compile(handover, [good], out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    # What is compiled next is another model.
    edit(handover, "\n[gates]\ncosine_min = 0.98\n")
    served = profile("onnxruntime", "fp32")
    hopeless = profile("hailo", "fp32")
    with pytest.raises(EdgeopsError) as caught:
        compiler.compile(handover, [served, hopeless], out)
    assert caught.value.code == "E-COMPILE-CANDIDATE"
    assert "test-hailo: nothing could be built: no runtime of it is known" in caught.value.what
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    # Control: alone the profile that can be served gets another bundle.
    compiler.compile(handover, [served], out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} != before


def test_too_few_labels_choose_float_and_say_why(handover: Path, profile, tmp_path: Path):
    images, labels = shapes(12, seed=3)
    np.savez(handover / "evaluation.npz", image=images, labels=labels)
    one = compiler.compile(handover, [profile("onnxruntime", "int8", "fp32")], tmp_path / "out").profiles[0]
    assert one.chosen.precision == "fp32"
    assert [record.scheme for record in one.evidence.candidates] == ["onnxruntime-fp32", "onnxruntime-int8"]
    assert "so few cannot prove it, 189 could" in one.evidence.candidates[1].reason


@pytest.mark.parametrize("step", ["test-crash", "test-hang"])
def test_converter_that_dies_costs_its_candidate_only(
    handover: Path, profile, tmp_path: Path, plugin_passes: Path, monkeypatch: pytest.MonkeyPatch, step: str
):

    original = search.ladder

    def with_bad(runtime, precision, *given):
        bad = Candidate(f"onnxruntime-{step}", "onnxruntime", Precision.INT8, (Step(name=step),))
        return (bad,) if precision is Precision.INT8 else original(runtime, precision, *given)

    monkeypatch.setattr(search, "ladder", with_bad)
    board = profile("onnxruntime", "int8", "fp32")
    compiler.compile(handover, [profile("onnxruntime", "fp32")], tmp_path / "warm")
    monkeypatch.setattr(executor, "STEP_TIMEOUT_S", 5.0)
    board = profile("onnxruntime", "int8", "fp32")
    one = compiler.compile(handover, [board], tmp_path / "out").profiles[0]
    assert one.passed
    assert one.chosen.precision == "fp32"
    reason = next(record.reason for record in one.evidence.candidates if record.scheme.endswith(step))
    assert "SIGSEGV" in reason or "more than 5 s" in reason


def test_profile_that_nothing_can_serve_is_refused(handover: Path, profile, tmp_path: Path):
    old = profile("onnxruntime", "fp32", more="onnx_ir_max = 3, onnx_opset_max = 7, ")
    with pytest.raises(EdgeopsError) as caught:
        compiler.compile(handover, [old], tmp_path / "out")
    assert caught.value.code == "E-COMPILE-CANDIDATE"
    assert "opset 7" in caught.value.what
    for name, code in (("no-such-board", "E-PROFILE-UNKNOWN"), ("jetson-xavier-nx", "E-PROFILE-UNSUPPORTED")):
        with pytest.raises(EdgeopsError) as caught:
            compiler.compile(handover, [name], tmp_path / "out")
        assert caught.value.code == code


def test_state_and_several_inputs_stay_float_and_keep_their_meaning(tmp_path: Path, profile):
    """A running mean: the device passes the state back; int8 is not even tried."""
    from onnx import TensorProto, helper, numpy_helper, save

    ends = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in ("x", "h", "y", "g")}
    nodes = [
        helper.make_node("Mul", ["h", "keep"], ["a"]),
        helper.make_node("Mul", ["x", "take"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["g"]),
        helper.make_node("Tanh", ["g"], ["y"]),
    ]
    constants = [numpy_helper.from_array(np.float32(v), n) for n, v in (("keep", 0.9), ("take", 0.1))]
    graph = helper.make_graph(nodes, "g", [ends["x"], ends["h"]], [ends["y"], ends["g"]], constants)
    folder = tmp_path / "handover"
    folder.mkdir()
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx")
    rng = np.random.default_rng(0)
    np.savez(folder / "c.npz", x=rng.normal(size=(20, 3)).astype("f4"), h=rng.normal(size=(20, 3)).astype("f4"))
    (folder / "handover.toml").write_text(
        '[model]\nname = "mean"\nfile = "m.onnx"\n'
        '[[inputs]]\nname = "x"\ndtype = "float32"\nshape = [1, 3]\n'
        '[[inputs]]\nname = "h"\ndtype = "float32"\nshape = [1, 3]\nstate_from = "state"\n'
        '[[outputs]]\nname = "y"\n[[outputs]]\nname = "state"\nmodel_output = "g"\nkind = "state"\n'
        '[calibration]\nfile = "c.npz"\n'
    )
    one = compiler.compile(folder, [profile("onnxruntime", "int8", "fp32")], tmp_path / "out").profiles[0]
    assert [record.precision for record in one.evidence.candidates] == ["fp32"]
    manifest = open_bundle(one.packaged.directory).manifest
    assert {info.tensor.name: info.state_to for info in manifest.outputs} == {"y": None, "state": "h"}
    with open_session(one.packaged.directory, manifest) as session:
        got = session.run({"x": np.ones((1, 3), np.float32), "h": np.zeros((1, 3), np.float32)})
    np.testing.assert_allclose(got["state"], np.full((1, 3), 0.1), rtol=1e-6)


def test_tflite_outputs_come_back_in_the_models_own_layout(tmp_path: Path, profile):
    """A convolution's NCHW output is NHWC after conversion: the manifest turns it back."""
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    weights = numpy_helper.from_array(rng.normal(size=(5, 2, 3, 3)).astype("f4"), "w")
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 6, 7]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5, 4, 5]),
    ]
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weights])
    folder = tmp_path / "handover"
    folder.mkdir()
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx")
    np.savez(folder / "c.npz", x=rng.normal(size=(20, 2, 6, 7)).astype("f4"))
    (folder / "handover.toml").write_text(
        '[model]\nname = "conv"\nfile = "m.onnx"\n[[inputs]]\nname = "x"\ndtype = "float32"\nshape = [1, 2, 6, 7]\n'
        '[[outputs]]\nname = "y"\n[calibration]\nfile = "c.npz"\n'
    )
    one = compiler.compile(folder, [profile("litert", "int8", "fp32")], tmp_path / "out").profiles[0]
    binding = open_bundle(one.packaged.directory).manifest.output_bindings[0]
    assert binding.artifact.shape == (1, 4, 5, 5)
    assert binding.transpose == (0, 3, 1, 2)
    assert one.chosen.end_to_end[0].cosine > 0.99


def test_interrupt_leaves_no_half_written_bundle_and_no_worker(
    handover: Path, profile, tmp_path: Path, own_cache: Path
):
    board = profile("openvino", "int8", "fp32")
    command = [
        sys.executable,
        "-m",
        "edgeops",
        "compile",
        str(handover),
        "--profile",
        board,
        "--out",
        str(tmp_path / "out"),
    ]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=dict(os.environ),
        # A shell's background job ignores SIGINT, and what it starts inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not any(map(is_forked, workers_of(own_cache))):
        assert process.poll() is None, "it ended before its first worker"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    assert process.stderr is not None
    process.stderr.close()
    assert not list((tmp_path / "out").rglob("manifest.json"))
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert not workers_of(own_cache)


_INTERRUPTED = """
import signal, sys
from pathlib import Path
from edgeops import compiler
handover, board, out, moment = sys.argv[1:]
def watch(step):
    print(step.text, flush=True)
    if step.text == moment:
        signal.raise_signal(signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
compiler.compile(Path(handover), [board], Path(out), on_progress=watch)
"""


@pytest.mark.parametrize(
    "moment",
    [
        "reading the hand-over",
        "preparing the graph",
        "onnxruntime-int8",
        "golden vectors",
        "check of the sealed bundle",
    ],
)
def test_interrupt_at_any_step_leaves_a_whole_bundle_or_none(
    handover: Path, profile, tmp_path: Path, own_cache: Path, moment: str
):
    board, out = profile("onnxruntime", "int8", "fp32"), tmp_path / "out"
    words = [sys.executable, "-c", _INTERRUPTED, str(handover), board, str(out)]
    done = subprocess.run([*words, moment], capture_output=True, text=True, timeout=120, check=False)
    assert moment in done.stdout.splitlines()
    assert "KeyboardInterrupt" in done.stderr
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]
    for bundle in out.rglob("bundle"):
        open_bundle(bundle)
    assert not (out / "compile.lock").exists()
    assert not workers_of(own_cache)
    again = subprocess.run([*words, "never"], capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0, again.stderr
    assert open_bundle(next(out.rglob("bundle"))).manifest.precision is Precision.INT8


def workers_of(cache: Path) -> list[int]:
    """Workers that a compile with this cache has running, and what they are forked from."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environ, command = (folder / "environ").read_bytes(), (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if str(cache).encode() in environ and b"edgeops.compiler." in command:
            found.append(int(folder.name))
    return found


def is_forked(pid: int) -> bool:
    """Whether a process is a forked worker: those alone have a group in another one's session."""
    try:
        return os.getpgid(pid) == pid != os.getsid(pid)
    except ProcessLookupError:
        return False


def test_command_prints_rows_for_programs_and_a_table_for_people(handover: Path, profile, tmp_path: Path):
    board = profile("onnxruntime", "int8", "fp32")
    base = [
        sys.executable,
        "-m",
        "edgeops",
        "compile",
        str(handover),
        "--profile",
        board,
        "--out",
        str(tmp_path / "out"),
    ]
    shown = subprocess.run([*base, "--json"], capture_output=True, text=True, check=True)
    row = json.loads(shown.stdout)["profiles"][0]
    assert row["digest"] == open_bundle(tmp_path / "out" / row["profile"] / "bundle").digest
    assert {"scheme", "reason", "agreement", "metric", "p50_ms", "size_bytes", "candidates"} <= set(row)
    table = subprocess.run(base, capture_output=True, text=True, check=True).stdout
    assert table.splitlines()[1].split("\t")[:3] == ["test-onnxruntime", "onnxruntime", "int8"]
    assert [line.split("\t")[1] for line in table.split("\n\n")[1].splitlines()[1:]] == [
        candidate["scheme"] for candidate in row["candidates"]
    ]
    edit(handover, "\n[gates]\ncosine_min = 1.0\n[budgets.test-onnxruntime]\nsize_mib = 0.0001\n")
    failed = subprocess.run([*base, "--json"], capture_output=True, text=True, check=False)
    assert failed.returncode == 3
    assert failed.stderr.startswith("error E-COMPILE-GATE")
    assert json.loads(failed.stdout)["profiles"][0]["passed"] is False
