"""KServe's Python server with one model: `python serving_kserve.py MODEL PORT`.

V2 over HTTP with JSON or the binary tensor extension on PORT, over gRPC with raw tensors on PORT + 1.
"""

from __future__ import annotations

import logging
import sys

import onnxruntime

MODEL, PORT = sys.argv[1], int(sys.argv[2])
sys.argv = sys.argv[:1]  # its server reads the command line when it is imported

from kserve import Model, ModelServer  # noqa: E402
from kserve.utils.utils import get_predict_response  # noqa: E402


class Served(Model):
    """The model."""

    def load(self):
        """Load it."""
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(MODEL, settings, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self.ready = True
        return True

    def predict(self, payload, headers=None, response_headers=None):
        """Answer."""
        tensor = payload.inputs[0].as_numpy()
        return get_predict_response(payload, self._session.run(None, {self._input: tensor})[0], self.name)


if __name__ == "__main__":
    served = Served("model")
    served.load()
    logging.disable(logging.INFO)  # it writes three lines a request
    ModelServer(http_port=PORT, grpc_port=PORT + 1, workers=1, enable_grpc=True, enable_latency_logging=False).start(
        [served]
    )
