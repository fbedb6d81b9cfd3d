"""A float graph is said in a blob's few operators: what converters leave is written into convolutions and products."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tflite_models as made

from edgeops.compiler.passes import tflite
from edgeops.compiler.passes.flatmodel import FlatModel
from edgeops.compiler.passes.mcu_fit import fit

RNG = np.random.default_rng(5)


def kinds(model: FlatModel) -> list[str]:
    return [model.kind(one) for one in model.graph.operators]


def binary(model: FlatModel, kind: str, source: int, name: str, value: np.ndarray) -> int:
    output = model.add_tensor(name, model.shape(source))
    constant = model.add_constant(f"{name}_c", np.asarray(value, np.float32))
    options = model.options(f"{kind.title()}Options", fusedActivationFunction=0)
    model.graph.operators.append(model.operator(kind, [source, constant], [output], options))
    return output


def unary(model: FlatModel, kind: str, source: int, name: str) -> int:
    output = model.add_tensor(name, model.shape(source))
    model.graph.operators.append(model.operator(kind, [source], [output]))
    return output


def view(model: FlatModel, kind: str, source: int, name: str, values: tuple[int, ...]) -> int:
    shape = tuple(model.shape(source)[axis] for axis in values) if kind == "TRANSPOSE" else values
    output = model.add_tensor(name, shape)
    constant = model.add_constant(f"{name}_c", np.array(values, np.int32))
    options = None
    if kind == "RESHAPE":
        options = model.options("ReshapeOptions", newShape=np.array(values, np.int32))
    model.graph.operators.append(model.operator(kind, [source, constant], [output], options))
    return output


def product(model: FlatModel, source: int, name: str, rows: int) -> int:
    output = model.add_tensor(name, (1, rows))
    weights = model.add_constant(f"{name}_w", RNG.normal(size=(rows, model.shape(source)[1])).astype(np.float32))
    options = model.options(
        "FullyConnectedOptions", fusedActivationFunction=0, weightsFormat=0, keepNumDims=False,
        asymmetricQuantizeInputs=False,
    )  # fmt: skip
    model.graph.operators.append(model.operator("FULLY_CONNECTED", [source, weights, -1], [output], options))
    return output


def weights(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape)


def scaled_picture(model: FlatModel) -> tuple[int, int]:
    x = model.add_tensor("x", (1, 6, 6, 2))
    scaled = binary(model, "MUL", x, "scaled", np.float32(1 / 255))
    return x, made.convolution(model, scaled, "conv", weights(3, 3, 3, 2))


def normalized_picture(model: FlatModel) -> tuple[int, int]:
    x = model.add_tensor("x", (1, 6, 6, 2))
    moved = binary(model, "ADD", binary(model, "MUL", x, "m", [0.1, 0.2]), "a", [-0.5, 0.3])
    return x, made.convolution(model, moved, "conv", weights(3, 3, 3, 2))


def normalized_without_padding(model: FlatModel) -> tuple[int, int]:
    x = model.add_tensor("x", (1, 6, 6, 2))
    moved = binary(model, "SUB", binary(model, "MUL", x, "m", [0.1, 0.2]), "a", [0.5, 0.3])
    return x, made.convolution(model, moved, "conv", weights(3, 3, 3, 2), padding="VALID")


def flattened_channels_first(model: FlatModel) -> tuple[int, int]:
    x = model.add_tensor("x", (1, 4, 5, 2))
    first = view(model, "TRANSPOSE", made.convolution(model, x, "conv", weights(3, 3, 3, 2)), "turned", (0, 3, 1, 2))
    return x, product(model, view(model, "RESHAPE", unary(model, "RELU", first, "relu"), "flat", (1, 60)), "fc", 4)


def mean_of_channels_first(model: FlatModel) -> tuple[int, int]:
    x = model.add_tensor("x", (1, 4, 5, 2))
    turned = view(model, "TRANSPOSE", made.convolution(model, x, "conv", weights(3, 3, 3, 2)), "turned", (0, 3, 1, 2))
    mean = model.add_tensor("mean", (1, 3))
    axes = model.add_constant("axes", np.array([2, 3], np.int32))
    model.graph.operators.append(
        model.operator("MEAN", [turned, axes], [mean], model.options("ReducerOptions", keepDims=False))
    )
    return x, product(model, mean, "fc", 4)


def series(model: FlatModel) -> tuple[int, int]:
    """A series of channels, as a one-dimensional convolution leaves it."""
    x = model.add_tensor("x", (1, 3, 10))
    turned = view(model, "TRANSPOSE", view(model, "RESHAPE", x, "flat", (1, 3, 1, 10)), "turned", (0, 2, 3, 1))
    return x, made.convolution(model, turned, "conv", weights(4, 1, 3, 3))


def scaled_features(model: FlatModel) -> tuple[int, int]:
    x = model.add_tensor("x", (1, 7))
    moved = binary(model, "ADD", binary(model, "MUL", x, "m", RNG.normal(size=7)), "a", RNG.normal(size=7))
    return x, product(model, moved, "fc", 3)


def batch_norm(model: FlatModel) -> tuple[int, int]:
    x = model.add_tensor("x", (1, 6, 6, 2))
    conv = made.convolution(model, x, "conv", weights(3, 3, 3, 2))
    moved = binary(model, "ADD", binary(model, "MUL", conv, "m", [0.1, 2, 0.3]), "a", [1, -2, 3])
    return x, unary(model, "RELU6", moved, "relu")


CASES: dict[str, tuple[Callable[[FlatModel], tuple[int, int]], list[str]]] = {
    "scaled picture": (scaled_picture, ["CONV_2D"]),
    "normalized picture": (normalized_picture, ["DEPTHWISE_CONV_2D", "CONV_2D"]),
    "normalized, no padding": (normalized_without_padding, ["CONV_2D"]),
    "flattened, channels first": (flattened_channels_first, ["CONV_2D", "RESHAPE", "FULLY_CONNECTED"]),
    "mean, channels first": (mean_of_channels_first, ["CONV_2D", "AVERAGE_POOL_2D", "RESHAPE", "FULLY_CONNECTED"]),
    "series": (series, ["CONV_2D"]),
    "scaled features": (scaled_features, ["FULLY_CONNECTED"]),
    "batch norm": (batch_norm, ["CONV_2D"]),
}


def answer(path: Path, values: np.ndarray) -> np.ndarray:
    interpreter = tflite.open_interpreter(path)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], values.astype(np.float32))
    interpreter.invoke()
    found: np.ndarray = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return found


@pytest.mark.parametrize("name", CASES)
def test_only_operators_of_a_blob_are_left_and_the_answers_stay(name: str, tmp_path: Path):
    build, wanted = CASES[name]
    model = made.new()
    source, output = build(model)
    made.ends(model, [source], [output]).write(tmp_path / "before.tflite")
    model = FlatModel.read(tmp_path / "before.tflite")
    values = RNG.normal(size=model.shape(int(model.graph.inputs[0])))
    turned = fit(model)
    model.write(tmp_path / "after.tflite")
    assert kinds(model) == wanted
    fed = tflite.turned(tmp_path / "after.tflite", {"x": values[None]}, turned)["x"][0]
    before, after = answer(tmp_path / "before.tflite", values), answer(tmp_path / "after.tflite", fed)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    assert np.ptp(before) > 0.01


def test_the_order_that_an_input_is_wanted_in_is_told():
    model = made.new()
    source, output = series(model)
    assert fit(made.ends(model, [source], [output])) == {"x": [0, 2, 1]}
    assert model.shape(source) == (1, 1, 10, 3)


def test_an_offset_before_padding_stays_where_it_is():
    """Zeros around the picture are no picture's zeros then: folding it in would change the borders."""
    model = made.new()
    source, output = normalized_picture(model)
    fit(made.ends(model, [source], [output]))
    assert "DEPTHWISE_CONV_2D" in kinds(model)


def test_a_tensor_that_is_read_twice_is_left_as_it_is():
    model = made.new()
    x = model.add_tensor("x", (1, 4, 4, 2))
    conv = made.convolution(model, x, "conv", weights(2, 3, 3, 2))
    relu = unary(model, "RELU", conv, "relu")
    total = model.add_tensor("total", model.shape(conv))
    options = model.options("AddOptions", fusedActivationFunction=0)
    model.graph.operators.append(model.operator("ADD", [conv, relu], [total], options))
    fit(made.ends(model, [x], [total]))
    assert kinds(model) == ["CONV_2D", "RELU", "ADD"]
