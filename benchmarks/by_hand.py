"""The job of `examples/digits` without edgeops: from a trained pipeline to a signed bundle that a device serves.

    python -m benchmarks.by_hand

It is here to be counted (`benchmarks/lines.py`), and is really run. It does the least that the job needs, for two
runtimes on one machine: export and proof, int8, gates, golden vectors, signature, checked installation, self-test,
server. What it leaves out makes the count a lower bound: LiteRT, float parts in an int8 graph, staged rollouts,
telemetry, drift, power cuts, resumed downloads, rotation of keys, more than one device.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import sys
import tempfile
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import onnx
import onnxruntime
import openvino
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

PARITY, DROP_MAX, AGREEMENT_MIN, GOLDEN, GOLDEN_TOLERANCE, RUNS = 1e-4, 0.02, 0.97, 16, 0.05, 200
Run = Callable[[Any], Any]


# Export


def export(pipeline: Any, features: int, path: Path) -> None:
    model = to_onnx(
        pipeline,
        initial_types=[("features", FloatTensorType([1, features]))],
        options={id(pipeline.steps[-1][1]): {"zipmap": False}},
        black_op={"Scaler", "Normalizer", "LinearClassifier"},
        target_opset={"": 17, "ai.onnx.ml": 3},
    )
    cut = onnx.utils.Extractor(model).extract_model(["features"], ["probabilities"])
    del cut.opset_import[:]
    cut.opset_import.extend([onnx.helper.make_opsetid("", 17)])
    cut.ir_version = 8
    onnx.checker.check_model(cut)
    onnx.save(cut, path)


def prove(pipeline: Any, run: Run, samples: Any) -> None:
    for index, sample in enumerate(samples):
        difference = np.abs(pipeline.predict_proba(sample[None]) - run(sample[None])).max()
        if not difference <= PARITY:
            raise SystemExit(f"the export differs by {difference:g} on sample {index}")


# Runtimes


def onnxruntime_run(path: Path) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda sample: session.run(None, {"features": sample})[0]


def openvino_run(path: Path) -> Run:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    return lambda sample: np.array(next(iter(request.infer({"features": sample}).values())))


RUNTIMES = {"onnxruntime": onnxruntime_run, "openvino": openvino_run}


# Quantization


class Samples(CalibrationDataReader):
    def __init__(self, samples: Any) -> None:
        self._left = iter({"features": sample[None]} for sample in samples)

    def get_next(self) -> Any:
        return next(self._left, None)


def onnxruntime_int8(source: Path, target: Path, samples: Any) -> None:
    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(source, prepared)
    quantize_static(
        prepared,
        target,
        Samples(samples),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"QDQDisableWeightAdjustForInt32Bias": True},
    )
    prepared.unlink()


def openvino_files(source: Path, folder: Path, samples: Any) -> list[Path]:
    model = openvino.convert_model(source)
    data = nncf.Dataset([{"features": sample[None]} for sample in samples])
    made = []
    for name, one in (("float", model), ("int8", nncf.quantize(model, data, subset_size=len(samples)))):
        made.append(folder / f"{name}.xml")
        openvino.save_model(one, made[-1], compress_to_fp16=False)
    return made


# Gates


def figures(run: Run, reference: Any, samples: Any, labels: Any) -> dict[str, float]:
    answers = np.concatenate([run(sample[None]) for sample in samples])
    right, before = answers.argmax(1) == labels, reference.argmax(1) == labels
    drop = before.astype(float) - right
    spans = []
    for sample in samples[:RUNS]:
        start = time.perf_counter()
        run(sample[None])
        spans.append(time.perf_counter() - start)
    return {
        "accuracy": float(right.mean()),
        "agreement": float((answers.argmax(1) == reference.argmax(1)).mean()),
        "drop_high": float(drop.mean() + 1.96 * drop.std(ddof=1) / np.sqrt(len(drop))),
        "p50_ms": float(np.median(spans) * 1e3),
        "p95_ms": float(np.quantile(spans, 0.95) * 1e3),
    }


def choose(candidates: dict[str, dict[str, float]]) -> str:
    passing = {
        name: found
        for name, found in candidates.items()
        if found["agreement"] >= AGREEMENT_MIN and found["drop_high"] <= DROP_MAX
    }
    if not passing:
        raise SystemExit(f"no candidate passes: {json.dumps(candidates, indent=2)}")
    return min(passing, key=lambda name: passing[name]["p50_ms"])


# Bundle


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def bundle(folder: Path, files: list[Path], facts: dict[str, Any], run: Run, samples: Any, key: Any) -> Path:
    folder.mkdir()
    for file in files:
        shutil.copyfile(file, folder / file.name)
    np.save(folder / "golden-in.npy", samples[:GOLDEN])
    np.save(folder / "golden-out.npy", np.concatenate([run(sample[None]) for sample in samples[:GOLDEN]]))
    digests = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    manifest = json.dumps({**facts, "files": digests}, sort_keys=True).encode()
    (folder / "manifest.json").write_bytes(manifest)
    (folder / "manifest.sig").write_bytes(key.sign(manifest))
    packed = folder.with_suffix(".zip")
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return packed


# Device


class Refused(Exception):
    pass


class Device:
    def __init__(self, root: Path, trusted: Ed25519PublicKey) -> None:
        self.root, self.trusted = root, trusted
        self.run: Run | None = None
        self.facts: dict[str, Any] = {}
        self.spans: list[float] = []
        self.errors = 0
        self._lock = threading.Lock()

    def install(self, packed: Path) -> None:
        version = self._unpacked(packed)
        try:
            facts = self._verified(version)
            run = self._self_tested(version, facts)
        except Exception:
            shutil.rmtree(version)
            raise
        link = self.root / "current.new"
        link.unlink(missing_ok=True)
        link.symlink_to(version.name)
        link.replace(self.root / "current")
        with self._lock:
            self.run, self.facts = run, facts

    def _unpacked(self, packed: Path) -> Path:
        version = self.root / f"{packed.stem}-{sha256(packed)[:12]}"
        if version.exists():
            shutil.rmtree(version)
        version.mkdir(parents=True)
        with zipfile.ZipFile(packed) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > 1 << 28:
                raise Refused("too large")
            for entry in archive.infolist():
                if "/" in entry.filename or entry.filename.startswith("."):
                    raise Refused(f"path {entry.filename!r}")
                (version / entry.filename).write_bytes(archive.read(entry))
        return version

    def _verified(self, version: Path) -> dict[str, Any]:
        manifest = (version / "manifest.json").read_bytes()
        try:
            self.trusted.verify((version / "manifest.sig").read_bytes(), manifest)
        except InvalidSignature as error:
            raise Refused("signature") from error
        facts: dict[str, Any] = json.loads(manifest)
        present = {path.name for path in version.iterdir()} - {"manifest.json", "manifest.sig"}
        if present != set(facts["files"]):
            raise Refused("files")
        for name, digest in facts["files"].items():
            if sha256(version / name) != digest:
                raise Refused(f"{name} is damaged")
        return facts

    def _self_tested(self, version: Path, facts: dict[str, Any]) -> Run:
        run = RUNTIMES[facts["runtime"]](version / facts["artifact"])
        wanted = np.load(version / "golden-out.npy", allow_pickle=False)
        for sample, answer in zip(np.load(version / "golden-in.npy", allow_pickle=False), wanted, strict=True):
            got = run(sample[None])[0]
            if not np.abs(got - answer).max() <= GOLDEN_TOLERANCE:
                raise Refused(f"golden vector differs by {np.abs(got - answer).max():g}")
        return run

    def answer(self, body: bytes) -> dict[str, Any]:
        features = np.asarray(json.loads(body)["features"], np.float32)
        if features.shape != (self.facts["features"],) or not np.isfinite(features).all():
            raise ValueError(f"features must be {self.facts['features']} finite numbers")
        start = time.perf_counter()
        with self._lock:
            assert self.run is not None
            shares = self.run(features[None])[0]
        self.spans.append(time.perf_counter() - start)
        return {"digit": self.facts["labels"][int(shares.argmax())], "probabilities": shares.tolist()}

    def serve(self) -> http.server.ThreadingHTTPServer:
        device = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                try:
                    body = self.rfile.read(min(int(self.headers.get("Content-Length", 0)), 1 << 20))
                    status, answer = 200, device.answer(body)
                except (ValueError, KeyError, TypeError) as error:
                    device.errors += 1
                    status, answer = 400, {"error": str(error)}
                self._send(status, answer)

            def do_GET(self) -> None:
                p95 = float(np.quantile(device.spans, 0.95) * 1e3) if device.spans else None
                self._send(200, {"requests": len(device.spans), "errors": device.errors, "p95_ms": p95})

            def _send(self, status: int, answer: dict[str, Any]) -> None:
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server


# The job


def released(pipeline: Any, train: Any, test: Any, labels: Any, folder: Path, key: Any) -> Path:
    source = folder / "float.onnx"
    export(pipeline, train.shape[1], source)
    prove(pipeline, onnxruntime_run(source), train[:64])
    reference = np.concatenate([onnxruntime_run(source)(sample[None]) for sample in test])
    onnxruntime_int8(source, folder / "int8.onnx", train[:200])
    files = {f"onnxruntime-{name}": [folder / f"{name}.onnx"] for name in ("float", "int8")}
    for path in openvino_files(source, folder, train[:200]):
        files[f"openvino-{path.stem}"] = [path, path.with_suffix(".bin")]
    runs = {name: RUNTIMES[name.split("-")[0]](made[0]) for name, made in files.items()}
    candidates = {name: figures(run, reference, test, labels) for name, run in runs.items()}
    best = choose(candidates)
    facts = {
        "model": "digits",
        "version": "1.0.0",
        "runtime": best.split("-")[0],
        "artifact": files[best][0].name,
        "features": train.shape[1],
        "labels": [str(one) for one in range(10)],
        "figures": candidates,
    }
    return bundle(folder / "digits-1.0.0", files[best], facts, runs[best], test, key)


def ask(port: int, features: Any) -> dict[str, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", json.dumps({"features": features.tolist()}).encode())
    with urllib.request.urlopen(request, timeout=10) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def main() -> None:
    x, y = load_digits(return_X_y=True)
    train, test, train_y, test_y = train_test_split(x.astype(np.float32), y, test_size=0.5, random_state=7, stratify=y)
    pipeline = make_pipeline(StandardScaler(), MLPClassifier((64, 32), max_iter=400, random_state=7))
    pipeline.fit(train, train_y)
    key = Ed25519PrivateKey.generate()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        packed = released(pipeline, train, test, test_y, folder, key)
        device = Device(folder / "device", key.public_key())
        device.install(packed)
        server = device.serve()
        right = [
            ask(server.server_address[1], one)["digit"] == str(label) for one, label in zip(test, test_y, strict=True)
        ]
        damaged = folder / "damaged.zip"
        with zipfile.ZipFile(packed) as whole, zipfile.ZipFile(damaged, "w") as other:
            for entry in whole.infolist():
                data = whole.read(entry)
                other.writestr(entry, data[:-1] + bytes([data[-1] ^ 1]) if entry.filename == "golden-out.npy" else data)
        try:
            device.install(damaged)
            sys.exit("a damaged bundle was installed")
        except Refused as refusal:
            print(f"damaged bundle: refused ({refusal}); serves on: {ask(server.server_address[1], test[0])['digit']}")
        server.shutdown()
        shipped = f"{device.facts['runtime']} {device.facts['artifact']}"
        print(f"{shipped}: {np.mean(right):.4f} right of {len(right)} over HTTP")


if __name__ == "__main__":
    main()
