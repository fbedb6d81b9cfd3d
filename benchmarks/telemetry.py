"""What counting an inference costs: `python benchmarks/telemetry.py [--out FILE]`.

A worker's `Meter`, with the reference that a compile writes, beside the inference itself: onnxruntime on one thread.
Shapes are those of a scalar model, of the digits perceptron and of a network that takes about half a millisecond for a
picture of 110 KB; the drift reference, and the share of the requests that is counted with it, are made as for bundles.
Figures are of the best of several rounds, so that other work on the machine counts little; a round's time is shared out
over its inferences, with what batches and the end of a window cost.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "agent"))

from adder_bundles import small_bundle

from edgeops.agent.worker.meter import Meter
from edgeops.compiler.golden import drift_reference
from edgeops.contracts.bundle import BundleManifest, OutputInfo
from edgeops.contracts.tensors import TensorSpec

ROUNDS = 7
SAMPLES = 200
TARGETS = {"scalar": "at most 2 µs", "digits-mlp": "at most 2 µs", "cnn": "at most 3% of an inference"}


class Subject(NamedTuple):
    """A model: its graph, an input's shape, and how many inferences a round has."""

    name: str
    graph: onnx.ModelProto
    shape: tuple[int, ...]
    classes: int
    inferences: int


def subjects() -> list[Subject]:
    """Return the three models, with random weights: what they compute does not matter here."""
    return [
        Subject("scalar", _perceptron((1, 2)), (1, 1), 2, 20_000),
        Subject("digits-mlp", _perceptron((64, 32, 10)), (1, 64), 10, 20_000),
        Subject("cnn", _network(96, 26, 10), (1, 3, 96, 96), 10, 2_000),
    ]


def main() -> None:
    """Measure, print, and write the figures if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="Write the figures as JSON.")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        plain = small_bundle(Path(folder) / "bundle").manifest
        arguments = parser.parse_args()
        for subject in subjects():
            found[subject.name] = figures = _measured(subject, plain)
            print(
                f"{subject.name:11} {figures['meter_us']:7.2f} µs of counting, {figures['inference_us']:8.1f} µs of "
                f"inference: {figures['meter_us'] / figures['inference_us']:6.1%}; {figures['request_share']:g} of the "
                f"requests, n = {figures['sampled']} of {subject.inferences}; target {TARGETS[subject.name]}"
            )
    machine = f"{platform.machine()}, onnxruntime {onnxruntime.__version__}, Python {platform.python_version()}"
    print(machine)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({"machine": machine, "figures": found}, indent=1))


def _measured(subject: Subject, plain: BundleManifest) -> dict[str, float]:
    rng = np.random.default_rng(0)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(subject.graph.SerializeToString(), options)
    x = rng.normal(size=(SAMPLES, *subject.shape[1:])).astype(np.float32)
    y = np.concatenate([session.run(None, {"x": row[None]})[0] for row in x])
    manifest = _manifest(plain, subject, x, y)
    feed, answer = {"x": x[:1]}, {"y": y[:1]}
    meter = Meter(manifest, "1.0.0", "sha256:0")
    sampled = 0

    def count() -> None:
        nonlocal sampled
        for _ in range(subject.inferences):
            meter.answered(0.5, feed, answer)
        sampled = meter.take().counted

    def infer() -> None:
        for _ in range(subject.inferences):
            session.run(None, feed)

    assert manifest.drift is not None
    return {
        "meter_us": _best_us(count, subject.inferences),
        "inference_us": _best_us(infer, subject.inferences),
        "request_share": manifest.drift.request_share,
        "sampled": sampled,
    }


def _best_us(round_of: Callable[[], None], inferences: int) -> float:
    round_of()
    times = []
    for _ in range(ROUNDS):
        begun_s = time.perf_counter()
        round_of()
        times.append(time.perf_counter() - begun_s)
    return min(times) / inferences * 1e6


def _manifest(plain: BundleManifest, subject: Subject, x: NDArray[Any], y: NDArray[Any]) -> BundleManifest:
    inside = TensorSpec(name="x", dtype="float32", shape=subject.shape)
    outside = TensorSpec(name="y", dtype="float32", shape=(1, subject.classes))
    return msgspec.structs.replace(
        plain,
        inputs=(inside,),
        outputs=(OutputInfo(tensor=outside, kind="logits"),),
        drift=drift_reference({"x": x}, {"y": y}, {"y": "logits"}),
    )


def _perceptron(sizes: tuple[int, ...]) -> onnx.ModelProto:
    rng, nodes, weights, before = np.random.default_rng(1), [], [], "x"
    for number, (width, height) in enumerate(itertools.pairwise(sizes)):
        last = number == len(sizes) - 2
        weight = rng.normal(size=(width, height)).astype(np.float32) / np.float32(width**0.5)
        weights.append(numpy_helper.from_array(weight, f"w{number}"))
        nodes.append(helper.make_node("MatMul", [before, f"w{number}"], ["y" if last else f"m{number}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"m{number}"], [f"r{number}"]))
            before = f"r{number}"
    return _model(nodes, weights, (1, sizes[0]), sizes[-1])


def _network(side: int, channels: int, classes: int) -> onnx.ModelProto:
    rng = np.random.default_rng(2)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        values = rng.normal(size=shape).astype(np.float32) / np.float32(np.prod(shape[1:]) ** 0.5)
        return numpy_helper.from_array(values, name)

    nodes, weights, before, width = [], [], "x", 3
    for number, wide in enumerate((channels, 2 * channels, 4 * channels)):
        weights.append(weight(f"c{number}", wide, width, 3, 3))
        nodes.append(
            helper.make_node("Conv", [before, f"c{number}"], [f"a{number}"], pads=[1, 1, 1, 1], strides=[2, 2])
        )
        nodes.append(helper.make_node("Relu", [f"a{number}"], [f"r{number}"]))
        before, width = f"r{number}", wide
    weights.append(weight("last", width, classes))
    nodes += [
        helper.make_node("GlobalAveragePool", [before], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "last"], ["y"]),
    ]
    return _model(nodes, weights, (1, 3, side, side), classes)


def _model(
    nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], shape: tuple[int, ...], classes: int
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "subject",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, classes))],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


if __name__ == "__main__":
    main()
