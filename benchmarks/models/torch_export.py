"""Trains a PyTorch classifier the same way each time, and exports it. Needs the extra `zoo`."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.models.folder import SEED


def trained(
    network: Any, data: NDArray[np.float32], labels: NDArray[np.int64], *, epochs: int, batch: int = 128
) -> Any:
    """Train a network with Adam on cross-entropy and return it, ready to be exported.

    Args:
        network: A `torch.nn.Module` that gives logits.
        data: float32 [n, …].
        labels: int64 [n].
        epochs: Passes over the data.
        batch: Samples in a step.
    """
    import torch

    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    for parameter in network.modules():
        if hasattr(parameter, "reset_parameters"):
            parameter.reset_parameters()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    x, y = torch.from_numpy(data), torch.from_numpy(labels)
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(batch):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x[part]), y[part]).backward()
            optimizer.step()
    return network.eval()


def onnx_bytes(network: Any, sample: NDArray[np.float32]) -> bytes:
    """Export a network with input `x` and output `logits`, opset 17, batch free."""
    import torch

    file = io.BytesIO()
    torch.onnx.export(
        network, (torch.from_numpy(sample),), file, input_names=["x"], output_names=["logits"], opset_version=17,
        dynamic_axes={"x": {0: "batch"}, "logits": {0: "batch"}}, dynamo=False,
    )  # fmt: skip
    return file.getvalue()
