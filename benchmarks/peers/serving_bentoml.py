"""BentoML with one model: `python -m bentoml serve serving_bentoml:Served --port PORT`, the model in `BENCH_MODEL`.

JSON, or a form whose file is the raw tensor, answered by a file: what it documents for data that is no JSON.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import bentoml
import numpy as np
import onnxruntime
from bentoml.validators import DType, Shape

_ELEMENTS = os.environ["BENCH_SHAPE"].split(",")
_SHAPE = tuple(int(size) for size in _ELEMENTS)
Tensor = Annotated[np.ndarray, Shape(_SHAPE), DType("float32")]


@bentoml.service(workers=1, traffic={"timeout": 60}, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Served:
    """The model behind both encodings."""

    def __init__(self) -> None:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        model = os.environ["BENCH_MODEL"]
        self._session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    @bentoml.api
    def infer(self, tensor: Tensor) -> np.ndarray:
        """Answer JSON."""
        return self._session.run(None, {self._input: tensor})[0]

    @bentoml.api
    def infer_file(self, tensor: Path) -> Annotated[bytes, bentoml.validators.ContentType("application/octet-stream")]:
        """Answer a raw tensor."""
        given = np.frombuffer(tensor.read_bytes(), np.float32).reshape(_SHAPE)
        return self._session.run(None, {self._input: given})[0].tobytes()
