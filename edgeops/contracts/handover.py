"""Hand-over: `handover.toml`, what the data scientist declares about a trained model."""

from __future__ import annotations

from typing import Literal

import msgspec

from edgeops.contracts.profile import Budgets
from edgeops.contracts.wire import Declared


class Cast(Declared, frozen=True, kw_only=True, tag="cast", tag_field="step"):
    """Convert to float32."""


class Scale(Declared, frozen=True, kw_only=True, tag="scale", tag_field="step"):
    """Multiply by `by`, then add `offset`."""

    by: float
    offset: float = 0.0


class Normalize(Declared, frozen=True, kw_only=True, tag="normalize", tag_field="step"):
    """Subtract `mean`, divide by `std`, per channel of the last axis (or one value for all)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class ChannelOrder(Declared, frozen=True, kw_only=True, tag="channel-order", tag_field="step"):
    """Reorder the last axis: (2, 1, 0) turns RGB into BGR."""

    order: tuple[int, ...]


class Layout(Declared, frozen=True, kw_only=True, tag="layout", tag_field="step"):
    """Transpose: `NHWC->NCHW`, or the reverse."""

    change: Literal["NHWC->NCHW", "NCHW->NHWC"]


class Resize(Declared, frozen=True, kw_only=True, tag="resize", tag_field="step"):
    """Resize height and width of an NHWC tensor with the stated interpolation (half-pixel centres, no antialias)."""

    height: int
    width: int
    interpolation: Literal["nearest", "linear"]


class Reshape(Declared, frozen=True, kw_only=True, tag="reshape", tag_field="step"):
    """Give the tensor another shape with the same number of elements."""

    shape: tuple[int, ...]


Step = Cast | Scale | Normalize | ChannelOrder | Layout | Resize | Reshape


class ModelFile(Declared, frozen=True, kw_only=True):
    """The model: its name in the fleet, and its file relative to `handover.toml`."""

    name: str
    file: str
    description: str = ""


class Input(Declared, frozen=True, kw_only=True):
    """One input as the *device* sees it.

    Args:
        name: Name for clients.
        dtype: Type that clients send.
        shape: Static shape that clients send, with the batch axis.
        model_input: The model's own input that this feeds; default: `name`.
        preprocess: Steps from the device's tensor to the model's; baked into the artifact's graph.
        state_from: For state: the output whose value of the last call clients pass here.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    model_input: str | None = None
    preprocess: tuple[Step, ...] = ()
    state_from: str | None = None


class Output(Declared, frozen=True, kw_only=True):
    """One output as clients see it.

    Args:
        name: Name for clients.
        model_output: The model's own output; default: `name`.
        labels: Class names along the last axis.
        kind: `probabilities` and `logits` are compared by class, `embedding` by cosine, `values` by error.
    """

    name: str
    model_output: str | None = None
    labels: tuple[str, ...] = ()
    kind: Literal["probabilities", "logits", "embedding", "values", "state"] = "values"


class Samples(Declared, frozen=True, kw_only=True):
    """Sample data: an .npz beside `handover.toml` with one array per input, samples along the first axis."""

    file: str


class Evaluation(Declared, frozen=True, kw_only=True):
    """Labelled data: as `Samples`, with the true answers in array `labels`.

    Args:
        file: The .npz file.
        labels: Name of the array with the true answers.
        output: The output that they judge; default: the first.
        metric: `accuracy` (share of equal class), `mae` (mean absolute error) or `none`.
    """

    file: str
    labels: str = "labels"
    output: str | None = None
    metric: Literal["accuracy", "mae", "none"] = "accuracy"


class Gates(Declared, frozen=True, kw_only=True):
    """Quality that every bundle must keep against the float source. Defaults are strict.

    Args:
        metric_drop_max: Largest drop of the metric whose confidence interval's bound is accepted.
        confidence: Confidence of that interval.
        agreement_min: Share of samples with the float source's class.
        cosine_min: Mean cosine similarity of outputs.
        sqnr_min_db: Signal to quantization-noise ratio in dB.
        latency_ratio_max: Latency relative to float on the same runtime.
    """

    metric_drop_max: float = 0.02
    confidence: float = 0.95
    agreement_min: float = 0.97
    cosine_min: float = 0.99
    sqnr_min_db: float = 15.0
    latency_ratio_max: float = 1.0


class Handover(Declared, frozen=True, kw_only=True):
    """`handover.toml`, whole."""

    model: ModelFile
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    calibration: Samples
    evaluation: Evaluation | None = None
    gates: Gates = Gates()
    budgets: dict[str, Budgets] = {}
    nan_policy: Literal["pass", "flag", "fail"] = "fail"
    schema_version: int = msgspec.field(default=1, name="schema")
