"""Each step against an independent reference on real data: Pillow for pictures, SciPy for sound, NumPy for the rest.

Real data: photographs of scikit-image. Where a signal is needed it is the brightness along a photograph's rows: as
uneven as any sensor's, with steps and with noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import scipy.fft
import scipy.signal
import scipy.special
import skimage.data
from onnx import helper
from PIL import Image

from edgeops.compiler import graphs
from edgeops.compiler.passes import Work
from edgeops.compiler.passes.baking import Bake, BakedOutput
from edgeops.compiler.passes.running import run_artifact
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.handover import (
    ArgMax,
    Cast,
    ChannelOrder,
    Crop,
    Frame,
    Input,
    Layout,
    LogMel,
    Normalize,
    Pad,
    Reshape,
    Resize,
    Scale,
    Softmax,
    Standardize,
    Step,
    TopK,
    Window,
)
from edgeops.runtimes.steps import TensorForm, apply, apply_results, propagate

PHOTO = skimage.data.astronaut()[None, 40:260, 100:400]  # uint8 [1, 220, 300, 3]
RATE_HZ = 16_000


def sound() -> np.ndarray:
    """A second of a real picture's brightness along its rows, as sound: float32 [1, 16000] in [-1, 1]."""
    rows = skimage.data.camera().reshape(-1)[50_000 : 50_000 + RATE_HZ]
    return (rows.astype(np.float32) / 127.5 - 1)[None]


def pillow(size: tuple[int, int], filter_: Image.Resampling) -> np.ndarray:
    """Each channel as a real number: Pillow rounds pictures of integers between its two passes."""
    planes = [Image.fromarray(PHOTO[0, :, :, channel].astype(np.float32)) for channel in range(3)]
    return np.stack([np.asarray(plane.resize(size[::-1], filter_)) for plane in planes], axis=-1)[None]


def pillow_of_integers(size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(PHOTO[0]).resize(size[::-1], Image.Resampling.BILINEAR), np.float32)[None]


def mel_energies(frames: np.ndarray, mels: int, fft: int, low_hz: float, high_hz: float) -> np.ndarray:
    """Filter by filter, bin by bin: a plain reading of the definition, by SciPy's transform."""
    power = np.abs(scipy.fft.rfft(frames, fft, axis=-1)) ** 2
    low, high = (2595 * np.log10(1 + hertz / 700) for hertz in (low_hz, high_hz))
    edges = [700 * (10 ** ((low + (high - low) * i / (mels + 1)) / 2595) - 1) for i in range(mels + 2)]
    energies = np.zeros((*frames.shape[:-1], mels))
    for band in range(mels):
        left, centre, right = edges[band : band + 3]
        for k in range(fft // 2 + 1):
            hertz = k * RATE_HZ / fft
            if left < hertz < right:
                share = (hertz - left) / (centre - left) if hertz <= centre else (right - hertz) / (right - centre)
                energies[..., band] += share * power[..., k]
    return energies


FLOATS = PHOTO.astype(np.float32)
FRAMES = np.lib.stride_tricks.sliding_window_view(sound(), 400, axis=-1)[:, ::160]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Steps, input, what a reference gives, and the largest difference, with its reason where it is not rounding alone.
CASES: dict[str, tuple[tuple[Step, ...], np.ndarray, np.ndarray, float]] = {
    "cast": ((Cast(),), PHOTO, PHOTO.astype(np.float32), 0.0),
    "scale": ((Cast(), Scale(by=1 / 255, offset=-0.5)), PHOTO, PHOTO / 255.0 - 0.5, 1e-6),
    "normalize": (
        (Cast(), Scale(by=1 / 255), Normalize(mean=MEAN, std=STD)),
        PHOTO,
        (PHOTO / 255.0 - np.array(MEAN)) / np.array(STD),
        1e-5,
    ),
    "channel-order": ((ChannelOrder(order=(2, 1, 0)),), PHOTO, PHOTO[..., ::-1], 0.0),
    "layout": ((Layout(change="NHWC->NCHW"),), PHOTO, np.moveaxis(PHOTO, -1, 1), 0.0),
    "reshape": ((Reshape(shape=(1, 220, 900)),), PHOTO, PHOTO.reshape(1, 220, 900), 0.0),
    "crop in the middle": (
        (Crop(height=160, width=200),),
        PHOTO,
        np.asarray(Image.fromarray(PHOTO[0]).crop((50, 30, 250, 190)))[None],
        0.0,
    ),
    "crop at a place": (
        (Crop(height=50, width=60, top=7, left=11),),
        PHOTO,
        np.asarray(Image.fromarray(PHOTO[0]).crop((11, 7, 71, 57)))[None],
        0.0,
    ),
    "pad": (
        (Cast(), Pad(height=240, width=320, value=114.0)),
        PHOTO,
        np.pad(FLOATS, ((0, 0), (0, 20), (0, 20), (0, 0)), constant_values=114.0),
        0.0,
    ),
    "resize linear, antialias, smaller": (
        (Cast(), Resize(height=96, width=96, interpolation="linear", antialias=True)),
        PHOTO,
        pillow((96, 96), Image.Resampling.BILINEAR),
        1e-3,  # of 255: float32 sums over 7 x 9 pixels
    ),
    "resize linear, antialias, of integers": (
        (Cast(), Resize(height=96, width=96, interpolation="linear", antialias=True)),
        PHOTO,
        pillow_of_integers((96, 96)),
        1.01,  # Pillow rounds to whole steps of grey after each of two passes
    ),
    "resize linear, larger": (
        (Cast(), Resize(height=300, width=410, interpolation="linear")),
        PHOTO,
        pillow((300, 410), Image.Resampling.BILINEAR),
        2e-2,  # onnxruntime computes places in float32: 1e-4 of a pixel times a step of 255
    ),
    "resize cubic, antialias": (
        (Cast(), Resize(height=64, width=128, interpolation="cubic", antialias=True)),
        PHOTO,
        pillow((64, 128), Image.Resampling.BICUBIC),
        1e-3,
    ),
    "resize cubic, larger": (
        (Cast(), Resize(height=300, width=410, interpolation="cubic")),
        PHOTO,
        pillow((300, 410), Image.Resampling.BICUBIC),
        1e-3,
    ),
    "resize nearest": (
        (Cast(), Resize(height=110, width=100, interpolation="nearest")),
        PHOTO,
        # By whole factors all definitions agree but for the half pixel: the one below.
        FLOATS[:, 0::2, 1::3],
        0.0,
    ),
    "standardize the last axis": (
        (Standardize(),),
        FRAMES,
        (FRAMES - FRAMES.mean(-1, keepdims=True)) / np.sqrt(FRAMES.astype(np.float64).var(-1, keepdims=True) + 1e-6),
        2e-4,  # relative to a deviation of 1: float32 means of 400 values
    ),
    "standardize all": (
        (Cast(), Standardize(over="all")),
        PHOTO,
        (PHOTO - PHOTO.mean()) / np.sqrt(PHOTO.astype(np.float64).var() + 1e-6),
        2e-4,
    ),
    "frame": ((Frame(length=400, hop=160),), sound(), FRAMES, 0.0),
    "window hann": ((Window(function="hann"),), FRAMES, FRAMES * scipy.signal.get_window("hann", 400), 1e-6),
    "window hamming": ((Window(function="hamming"),), FRAMES, FRAMES * scipy.signal.get_window("hamming", 400), 1e-6),
    "log-mel": (
        (Frame(length=400, hop=160), Window(function="hann"), LogMel(rate_hz=RATE_HZ, mels=40, fft=512, low_hz=60)),
        sound(),
        np.log(np.maximum(mel_energies(FRAMES * scipy.signal.get_window("hann", 400), 40, 512, 60, 8000), 1e-10)),
        2e-3,  # natural logarithms: energies agree to 0.2%
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_step_does_what_its_reference_does(name: str):
    steps, values, wanted, tolerance = CASES[name]
    got = apply(steps, np.ascontiguousarray(values))
    form = propagate(steps, TensorForm(values.dtype.name, values.shape), where="input")
    assert (got.dtype.name, got.shape) == form
    assert np.abs(got.astype(np.float64) - wanted).max() <= tolerance


def baked(spec: Input, folder: Path, outputs: tuple[BakedOutput, ...] = (), form: TensorForm | None = None) -> Path:
    """Bake steps around a graph that changes nothing."""
    form = form or propagate(spec.preprocess, TensorForm(spec.dtype, spec.shape), where="input")
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(form.dtype))
    ends = [helper.make_tensor_value_info(name, kind, form.shape) for name in ("model-in", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["model-in"], ["y"])], "nothing", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for name in ("source", "target"):
        (folder / name).mkdir(parents=True)
    graphs.save(model, folder / "source")
    parameters: dict[str, Any] = {
        "inputs": [msgspec.to_builtins(spec)],
        "outputs": [msgspec.to_builtins(one) for one in outputs],
    }
    facts = frozenset({"onnx", "static-inputs"})
    Bake().run(Work(folder / "source", {}, facts, folder / "target", parameters, {}, {}))
    onnx.checker.check_model(folder / "target" / "model.onnx")
    return folder / "target" / "model.onnx"


@pytest.mark.parametrize("name", CASES)
def test_a_baked_step_does_what_its_reference_does(name: str, tmp_path: Path):
    steps, values, wanted, tolerance = CASES[name]
    values = np.ascontiguousarray(values)
    spec = Input(name="x", dtype=values.dtype.name, shape=values.shape, model_input="model-in", preprocess=steps)
    got = run_artifact("onnxruntime", baked(spec, tmp_path), {"x": values[None]})["y"][0]
    assert np.abs(got.astype(np.float64) - wanted).max() <= tolerance


LOGITS = (sound().reshape(1, 160, 100)[:, ::16] * 9).astype(np.float32)
RESULTS = {
    "softmax": ((Softmax(),), scipy.special.softmax(LOGITS.astype(np.float64), axis=-1)),
    "argmax": ((ArgMax(),), LOGITS.argmax(-1, keepdims=True)),
    "top-k classes": ((TopK(k=3, give="classes"),), np.argsort(-LOGITS, axis=-1, kind="stable")[..., :3]),
    "top-k values": ((Softmax(), TopK(k=3, give="values")), None),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_step_does_what_its_reference_does(name: str, tmp_path: Path):
    """Tolerance: float32 rounding of shares that are at most 1."""
    steps, wanted = RESULTS[name]
    if wanted is None:
        wanted = -np.sort(-scipy.special.softmax(LOGITS.astype(np.float64), axis=-1), axis=-1)[..., :3]
    got = apply_results(steps, LOGITS)
    assert got.dtype == (np.float32 if name in ("softmax", "top-k values") else np.int32)
    assert np.abs(got - wanted).max() <= 1e-6
    spec = Input(name="x", dtype="float32", shape=LOGITS.shape, model_input="model-in")
    form = TensorForm("float32", LOGITS.shape)
    outputs = (BakedOutput(model_output="y", artifact_output="edgeops/result/best", steps=steps),)
    artifact = baked(spec, tmp_path, outputs, form)
    answer = run_artifact("onnxruntime", artifact, {"x": LOGITS[None]})
    assert list(answer) == ["edgeops/result/best"]
    assert answer["edgeops/result/best"].dtype == got.dtype
    assert np.abs(answer["edgeops/result/best"][0] - wanted).max() <= 1e-6


def test_a_wrong_step_is_seen():
    """Negative control: RGB for BGR, or another interpolation, is far outside every tolerance."""
    assert np.abs(apply((ChannelOrder(order=(0, 1, 2)),), PHOTO) - PHOTO[..., ::-1].astype(int)).max() > 50
    plain = apply((Cast(), Resize(height=96, width=96, interpolation="linear")), PHOTO)
    assert np.abs(plain - CASES["resize linear, antialias, smaller"][2]).max() > 20


@pytest.mark.parametrize(
    ("steps", "form", "said"),
    [
        ((Crop(height=300, width=10),), TensorForm("uint8", (1, 220, 300, 3)), "not inside"),
        ((Cast(), Pad(height=10, width=10)), TensorForm("uint8", (1, 220, 300, 3)), "smaller than"),
        ((Crop(height=10, width=10),), TensorForm("uint8", (1, -1, -1, 3)), "put a resize before it"),
        (
            (Cast(), Resize(height=9, width=9, interpolation="nearest", antialias=True)),
            TensorForm("uint8", (1, 220, 300, 3)),
            "nothing to smooth",
        ),
        ((Frame(length=400, hop=0),), TensorForm("float32", (1, 16000)), "hop at least 1"),
        ((Frame(length=400, hop=1),), TensorForm("float32", (1, 300)), "1 to 300"),
        ((LogMel(rate_hz=16000, mels=40, fft=256),), TensorForm("float32", (1, 9, 400)), "fft must be 400"),
        ((LogMel(rate_hz=16000, mels=200),), TensorForm("float32", (1, 9, 256)), "narrower than what"),
        ((LogMel(rate_hz=16000, mels=40, high_hz=9000),), TensorForm("float32", (1, 9, 400)), "must rise"),
        ((Standardize(epsilon=0.0),), TensorForm("float32", (1, 9)), "epsilon"),
        ((Window(function="hann"),), TensorForm("int16", (1, 9)), "cast step before it"),
    ],
)
def test_a_step_that_does_not_fit_is_refused(steps: tuple[Step, ...], form: TensorForm, said: str):
    with pytest.raises(EdgeopsError, match=said) as caught:
        propagate(steps, form, where="input 'x'")
    assert caught.value.code == "E-HANDOVER-STEP"


def test_sizes_that_vary_become_one_by_a_resize():
    form = propagate(
        (Cast(), Resize(height=9, width=8, interpolation="linear", antialias=True)),
        TensorForm("uint8", (1, -1, -1, 3)),
        where="input 'x'",
    )
    assert form == ("float32", (1, 9, 8, 3))
