"""LitServe with one model: `python serving_litserve.py MODEL PORT`; JSON, or a form whose file is the raw tensor.

Settings that its documentation recommends for throughput: one worker (the machine has two cores), the fast queue, no
time limit per request.
"""

from __future__ import annotations

import sys

import litserve
import numpy as np
import onnxruntime
from starlette.responses import Response


class Model(litserve.LitAPI):
    """The model behind both encodings."""

    def setup(self, device):
        """Load it."""
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(sys.argv[1], settings, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0]

    def decode_request(self, request):
        """Take the tensor out of a request."""
        if "tensor" in request:
            return np.frombuffer(request["tensor"].file.read(), np.float32).reshape(self.input.shape), True
        return np.array(request["data"], np.float32).reshape(self.input.shape), False

    def predict(self, asked):
        """Run it."""
        tensor, raw = asked
        return self.session.run(None, {self.input.name: tensor})[0], raw

    def encode_response(self, answered):
        """Answer as was asked."""
        output, raw = answered
        return Response(output.tobytes(), media_type="application/octet-stream") if raw else {"data": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Model(), accelerator="cpu", workers_per_device=1, timeout=False, fast_queue=True)
    server.run(port=int(sys.argv[2]), host="127.0.0.1", generate_client_file=False, log_level="error")
