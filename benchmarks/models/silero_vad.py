"""Voice activity: silero-vad, an LSTM that carries its state from call to call, on made speech-like sound and noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.models.folder import SEED, write
from edgeops.cli.demo.packages import Member, Package, fetch

_PACKAGE = Package("silero-vad==6.2.3", "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8")
MODEL = Member(
    _PACKAGE,
    "silero_vad/data/silero_vad.onnx",
    "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
)
_RATE, _CHUNK, _CONTEXT, _CALIBRATION = 16_000, 512, 64, 40
_HANDOVER = f"""\
schema = 1

[model]
name = "silero-vad"
file = "model.onnx"

[[inputs]]
name = "input"
dtype = "float32"
shape = [1, {_CHUNK + _CONTEXT}]

[[inputs]]
name = "state"
dtype = "float32"
shape = [2, 1, 128]
state_from = "stateN"

[[inputs]]
name = "sr"
dtype = "int64"
shape = []

[[outputs]]
name = "output"
kind = "values"

[[outputs]]
name = "stateN"
kind = "state"

[calibration]
file = "calibration.npz"

[evaluation]
file = "evaluation.npz"
metric = "none"
"""


def make(folder: Path) -> None:
    """Write the hand-over."""
    model = fetch(MODEL)
    samples = spoken(model)
    write(
        folder,
        _HANDOVER,
        model.read_bytes(),
        {name: values[:_CALIBRATION] for name, values in samples.items()},
        {name: values[_CALIBRATION:] for name, values in samples.items()},
    )


def spoken(model: Path) -> dict[str, NDArray[Any]]:
    """Run the model over the sound, and return the inputs of each call: states are such as occur."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    rate = np.array(_RATE, np.int64)
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros((1, _CONTEXT), np.float32)
    inputs, states = [], []
    for chunk in _sound().reshape(-1, 1, _CHUNK):
        given = np.concatenate([context, chunk], axis=1)
        inputs.append(given)
        states.append(state)
        _, state = session.run(None, {"input": given, "state": state, "sr": rate})
        context = chunk[:, -_CONTEXT:]
    picked = np.random.default_rng(SEED).permutation(len(inputs))
    return {
        "input": np.stack(inputs)[picked],
        "state": np.stack(states)[picked],
        "sr": np.full(len(inputs), _RATE, np.int64),
    }


def _sound() -> NDArray[np.float32]:
    """Return 5 s of sound, float32 in [-1, 1]: vowels with harmonics of a gliding voice, between them noise."""
    rng = np.random.default_rng(SEED)
    count = 5 * _RATE // _CHUNK * _CHUNK
    time = np.arange(count) / _RATE
    pitch = 120 + 25 * np.sin(2 * np.pi * 0.7 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / _RATE
    voice = np.zeros(count)
    for harmonic in range(1, 25):
        frequency = pitch * harmonic
        formants = sum(np.exp(-(((frequency - peak) / 180) ** 2)) for peak in (650, 1100, 2500))
        voice += formants * np.sin(harmonic * phase)
    syllables = np.clip(np.sin(2 * np.pi * 1.8 * time), 0, 1) * (np.sin(2 * np.pi * 0.25 * time) > -0.3)
    sound = 0.25 * voice * syllables + rng.normal(0, 0.01, count)
    return np.clip(sound, -1, 1).astype(np.float32)
