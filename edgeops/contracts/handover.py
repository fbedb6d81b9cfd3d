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
    """Resize height and width of an NHWC tensor with the stated interpolation, half-pixel centres.

    Args:
        height: New height.
        width: New width.
        interpolation: `nearest`, `linear` or `cubic` (a = -0.5).
        antialias: Widen the filter where the picture shrinks, as Pillow does.
    """

    height: int
    width: int
    interpolation: Literal["nearest", "linear", "cubic"]
    antialias: bool = False


class Crop(Declared, frozen=True, kw_only=True, tag="crop", tag_field="step"):
    """Cut a piece out of an NHWC tensor; without `top` and `left` the one in the middle."""

    height: int
    width: int
    top: int | None = None
    left: int | None = None


class Pad(Declared, frozen=True, kw_only=True, tag="pad", tag_field="step"):
    """Fill an NHWC tensor up to a size with `value`, below and to the right."""

    height: int
    width: int
    value: float = 0.0


class Reshape(Declared, frozen=True, kw_only=True, tag="reshape", tag_field="step"):
    """Give the tensor another shape with the same number of elements."""

    shape: tuple[int, ...]


class Standardize(Declared, frozen=True, kw_only=True, tag="standardize", tag_field="step"):
    """Subtract the tensor's own mean and divide by its own standard deviation, over the last axis or all but the first.

    Args:
        over: `last`: each row of the last axis on its own; `all`: the whole tensor but its batch axis.
        epsilon: Added to the variance, so that a signal that stands still stays finite.
    """

    over: Literal["last", "all"] = "last"
    epsilon: float = 1e-6


class Frame(Declared, frozen=True, kw_only=True, tag="frame", tag_field="step"):
    """Cut the last axis into overlapping pieces: [..., n] becomes [..., pieces, length]; a rest is cut off."""

    length: int
    hop: int


class Window(Declared, frozen=True, kw_only=True, tag="window", tag_field="step"):
    """Multiply the last axis by a window function (periodic, as for spectra)."""

    function: Literal["hann", "hamming"]


class LogMel(Declared, frozen=True, kw_only=True, tag="log-mel", tag_field="step"):
    """Logarithm of the energy in mel bands: [..., length] of sound becomes [..., mels].

    Power spectrum of `fft` points (the piece is filled up with zeros), triangular filters between `low_hz` and
    `high_hz` on the HTK mel scale without normalization, natural logarithm of at least `floor`.

    Args:
        rate_hz: Samples of the sound per second.
        mels: Bands.
        fft: Points of the transform; default: the length.
        low_hz: Lower edge of the first band.
        high_hz: Upper edge of the last band; default: half of `rate_hz`.
        floor: Smallest energy.
    """

    rate_hz: int
    mels: int
    fft: int | None = None
    low_hz: float = 0.0
    high_hz: float | None = None
    floor: float = 1e-10


Step = (
    Cast
    | Scale
    | Normalize
    | ChannelOrder
    | Layout
    | Resize
    | Crop
    | Pad
    | Reshape
    | Standardize
    | Frame
    | Window
    | LogMel
)


class Softmax(Declared, frozen=True, kw_only=True, tag="softmax", tag_field="step"):
    """Turn logits into probabilities along the last axis."""


class ArgMax(Declared, frozen=True, kw_only=True, tag="argmax", tag_field="step"):
    """The number of the largest value along the last axis, int32; the axis stays, of size 1."""


class TopK(Declared, frozen=True, kw_only=True, tag="top-k", tag_field="step"):
    """The `k` largest values along the last axis, largest first: their numbers (int32), or the values."""

    k: int
    give: Literal["classes", "values"]


ResultStep = Softmax | ArgMax | TopK


class ModelFile(Declared, frozen=True, kw_only=True):
    """The model: its name in the fleet, its file relative to `handover.toml`, and for people what it was made from."""

    name: str
    file: str
    description: str = ""
    source: str = ""


class Input(Declared, frozen=True, kw_only=True):
    """One input as the *device* sees it.

    Args:
        name: Name for clients.
        dtype: Type that clients send.
        shape: Shape that clients send, with the batch axis; static, but for what a step of `agent` brings to one size.
        model_input: The model's own input that this feeds; default: `name`.
        agent: Steps that the device's agent does before the artifact runs. Only they take sizes that vary: -1 in
            `shape`.
        preprocess: Steps from there to the model's tensor; baked into the artifact's graph.
        state_from: For state: the output whose value of the last call clients pass here.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    model_input: str | None = None
    agent: tuple[Step, ...] = ()
    preprocess: tuple[Step, ...] = ()
    state_from: str | None = None


class Output(Declared, frozen=True, kw_only=True):
    """One output as clients see it.

    Args:
        name: Name for clients.
        model_output: The model's own output; default: `name`.
        postprocess: Steps from the model's output to the device's; baked into the artifact's graph.
        labels: Class names along the last axis of the model's output.
        kind: `probabilities` and `logits` are compared by class, `classes` (class numbers) by equality, `embedding` by
            cosine, `values` by error.
    """

    name: str
    model_output: str | None = None
    postprocess: tuple[ResultStep, ...] = ()
    labels: tuple[str, ...] = ()
    kind: Literal["probabilities", "logits", "classes", "embedding", "values", "state"] = "values"


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
