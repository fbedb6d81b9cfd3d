"""Asks a V2 gRPC server as fast as it answers; run in the peer's own environment.

`python grpc_load.py STUBS PORT MODEL INPUT.npy CLIENTS SECONDS EXPECTED.npy`; STUBS: the peer's module of messages.
The request is made once, as `raw_input_contents`; answers are not decoded. Prints the seconds and each latency.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
import time

import grpc
import numpy as np

_LIMITS = [("grpc.max_send_message_length", 1 << 26), ("grpc.max_receive_message_length", 1 << 26)]


def main() -> None:
    """Ask, and print."""
    stubs_name, port, model, tensor_file, clients, seconds, expected_file = sys.argv[1:]
    stubs, tensor = importlib.import_module(stubs_name), np.load(tensor_file)
    request = stubs.ModelInferRequest(model_name=model)
    asked = request.inputs.add()
    asked.name, asked.datatype = "x", "FP32"
    asked.shape.extend(tensor.shape)
    request.raw_input_contents.append(tensor.tobytes())
    message = request.SerializeToString()
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=_LIMITS)
    answer = stubs.ModelInferResponse.FromString(_call(channel)(message))
    raw = answer.raw_output_contents
    values = np.frombuffer(raw[0], np.float32) if raw else np.array(answer.outputs[0].contents.fp32_contents)
    if not np.allclose(values, np.load(expected_file).reshape(-1), atol=1e-4):
        raise SystemExit(f"a wrong answer: {answer}")
    times: list[float] = []
    begun = time.perf_counter()
    threads = [
        threading.Thread(target=_ask, args=(port, place, message, begun + float(seconds), times))
        for place in range(int(clients))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"took_s": time.perf_counter() - begun, "times_s": times}))


def _call(channel):
    return channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer", request_serializer=None, response_deserializer=None
    )


def _ask(port: str, place: int, message: bytes, until: float, times: list[float]) -> None:
    # A number of its own keeps gRPC from sharing one connection.
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[*_LIMITS, ("client", place)]) as channel:
        call, own = _call(channel), []
        last = time.perf_counter()
        while last < until:
            call(message)
            now = time.perf_counter()
            own.append(now - last)
            last = now
    times += own


if __name__ == "__main__":
    main()
