"""MLServer with one model: `python serving_mlserver.py MODEL PORT`.

V2 JSON on PORT, V2 gRPC with raw tensors on PORT + 1.

Inference in the server's own process (`parallel_workers=0`), which is its fastest on two cores; no metrics endpoint.
"""

from __future__ import annotations

import asyncio
import sys

import onnxruntime
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Model(MLModel):
    """The model."""

    async def load(self):
        """Load it."""
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(sys.argv[1], settings, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        return True

    async def predict(self, payload):
        """Answer."""
        tensor = self.decode(payload.inputs[0], default_codec=NumpyCodec)
        output = self._session.run(None, {self._input: tensor})[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", output)])


async def main():
    """Serve until ended."""
    port = int(sys.argv[2])
    settings = Settings(
        debug=False, parallel_workers=0, host="127.0.0.1", http_port=port, grpc_port=port + 1, metrics_endpoint=None,
        grpc_max_message_length=1 << 24,
    )  # fmt: skip
    await MLServer(settings).start([ModelSettings(name="model", implementation=Model)])


if __name__ == "__main__":
    asyncio.run(main())
