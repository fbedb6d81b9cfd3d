"""edgeops beside the tools that it stands on, in one run: `make bench-compile`, or `python -m benchmarks.compile`.

Every model of `benchmarks/models` is compiled for three Linux profiles, cold and warm, and quantized by plain
onnxruntime, NNCF and Olive with the settings that their documentation recommends, from the same calibration data. Every
artifact is judged on the same samples against the untouched source, and timed in rounds with all others of its model.
The end says which of the targets are met, and writes everything as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np

from benchmarks import models
from benchmarks.peers import targets
from benchmarks.peers.environment import olive_python
from benchmarks.peers.figures import by_names, in_rounds, quality, run_all, sizes
from benchmarks.peers.kit import Kit, make_kit
from benchmarks.peers.targets import Figures, Model, Run
from edgeops.compiler.toolchain import ONNX2TF, ensure
from edgeops.contracts.errors import EdgeopsError
from edgeops.intake.cache import cache_dir
from edgeops.profiles import registry
from edgeops.releases.bundles import open_bundle
from edgeops.runtimes.bundle_session import open_session
from edgeops.runtimes.protocol import LoadOptions
from edgeops.runtimes.registry import backend

# This machine's own, the one with every runtime of this machine, and the most used board.
PROFILES = ("intel-nuc", "generic-x86-64", "raspberry-pi-4")
PEERS = {"onnxruntime": "onnxruntime_static", "nncf": "nncf_default", "olive": "olive_static"}
R = TypeVar("R")
_ROOT = Path(__file__).parent.parent
_PEER_TIMEOUT_S = 900
_MEMORY_POLL_S = 0.1


class Peer(NamedTuple):
    """What a peer made of a kit: seconds, and the artifact or why there is none."""

    seconds: float
    artifact: Path | None
    failure: str


def main() -> None:
    """Run everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(models.MODELS), help="names, with commas")
    parser.add_argument("--json", type=Path, default=_ROOT / "build" / "bench-compile.json", help="file to write")
    parser.add_argument("--latency-s", type=float, default=4.0, help="seconds of timing per model, about")
    options = parser.parse_args()
    names = options.models.split(",")
    say("making models and the peers' environment, where they are not cached")
    broken: dict[str, str] = {}
    handovers = {name: folder for name in names if (folder := _unless_broken(broken, name, models.handover, name))}
    ensure(ONNX2TF)
    olive = olive_python()
    # What the system reads from disk for the first time must not count against anyone.
    subprocess.run([str(olive), "-c", "import olive.workflows"], check=True, env=_environment(), capture_output=True)
    with tempfile.TemporaryDirectory(prefix="bench-compile-") as scratch:
        work = Path(scratch)
        runs = _compile_set(work, handovers)
        compared = [
            _unless_broken(broken, name, _compare, work, name, folder, runs, str(olive), options.latency_s)
            for name, folder in handovers.items()
        ]
    found = [model for model in compared if model is not None]
    for model in found:
        print(targets.table(model))
    results = [*targets.judge(found, runs), *(targets.broken(name, why) for name, why in broken.items())]
    print(targets.summary(results, runs))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    whole = {"models": found, "runs": runs, "targets": results}
    options.json.write_bytes(msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n")
    say(f"written to {options.json}")


def _unless_broken(broken: dict[str, str], name: str, work: Callable[..., R], *arguments: object) -> R | None:
    """Return what is made of a model; a defect that it meets costs this model, and is a missed target."""
    try:
        return work(*arguments)
    except Exception as error:  # noqa: BLE001  told as a missed target; the other models go on
        traceback.print_exc()
        broken[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return None


def say(text: str) -> None:
    """Print progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _compile_set(work: Path, handovers: Mapping[str, Path]) -> dict[str, Run]:
    """Compile the whole set cold, then warm."""
    cache = work / "cache"
    cache.mkdir()
    # Isolated converters are made once in a machine's life, as the peers' environments are.
    (cache / "toolchains").symlink_to((cache_dir() / "toolchains").resolve())
    runs = {}
    for temperature in ("cold", "warm"):
        say(f"edgeops: {len(handovers)} models for {', '.join(PROFILES)}, {temperature}")
        command = [sys.executable, "-m", "benchmarks.compile_set", str(work / "edgeops"), ",".join(PROFILES)]
        start = time.monotonic()
        with subprocess.Popen(
            [*command, *map(str, handovers.values())],
            cwd=_ROOT,
            env={**_environment(), "EDGEOPS_CACHE": str(cache)},
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            peak = _PeakMemory(process.pid)
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(json.loads(line))
                say(f"  {lines[-1]['folder']}: {lines[-1]['seconds']:.1f} s")
            process.wait()
            memory_mib = peak.stop()
        if process.returncode != 0:
            raise SystemExit(f"compile_set ended with status {process.returncode}")
        by_folder = {line["folder"]: line for line in lines}
        runs[temperature] = Run(
            seconds=time.monotonic() - start,
            peak_memory_mib=memory_mib,
            model_seconds={name: by_folder[folder.name]["seconds"] for name, folder in handovers.items()},
            refused={name: by_folder[folder.name]["refused"] for name, folder in handovers.items()},
        )
    return runs


class _PeakMemory:
    """Watches the memory of a process and all that it starts: proportional set sizes, added up.

    A page that several processes share counts once, so the sum is what the machine has to hold.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._most = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Return the peak in MiB."""
        self._stop.set()
        self._thread.join()
        return self._most / 2**20

    def _watch(self) -> None:
        import psutil

        while not self._stop.wait(_MEMORY_POLL_S):
            total = 0
            try:
                root = psutil.Process(self._pid)
                family = [root, *root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for member in family:
                # One that has just ended takes nothing.
                try:
                    total += member.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            self._most = max(self._most, total)


def _compare(work: Path, name: str, handover: Path, runs: Mapping[str, Run], olive: str, latency_s: float) -> Model:
    say(f"{name}: peers")
    kit = make_kit(handover, work / "kits" / name)
    peers = {peer: _run_peer(peer, kit, work / "peers" / name / peer, olive) for peer in PEERS}
    for peer, result in peers.items():
        say(f"  {peer}: {result.seconds:.1f} s" + (f", no artifact: {result.failure}" if result.failure else ""))
    say(f"{name}: figures")
    threads = min(registry.load(PROFILES[0]).serving.threads, len(os.sched_getaffinity(0)))
    timed: dict[str, Callable[[], object]] = {}
    rows: dict[str, Figures] = {}
    float_size = sizes([kit.folder / "baked.onnx"])
    # Device tensors in, as edgeops' artifacts have it: preprocessing is part of the work.
    first = {tensor: np.asarray(values[0]) for tensor, values in kit.device.items()}
    for runtime in ("onnxruntime", "openvino"):
        try:
            session = backend(runtime).load(kit.folder / "baked.onnx", LoadOptions(threads))
        except EdgeopsError:
            continue
        run = by_names(session, list(kit.device), list(kit.reference))
        timed[f"float {runtime}"] = lambda run=run: run(first)
    for peer, result in peers.items():
        if result.artifact is None:
            rows[peer] = Figures(tool=peer, seconds=result.seconds, failure=result.failure)
            continue
        runtime = "openvino" if result.artifact.suffix == ".xml" else "onnxruntime"
        try:
            session = backend(runtime).load(result.artifact, LoadOptions(threads))
            run = by_names(session, list(kit.judged), list(kit.reference))
            answers = run_all(run, kit.judged)
        except EdgeopsError as error:
            rows[peer] = Figures(tool=peer, seconds=result.seconds, failure=f"{error.code}: {error.what}")
            continue
        feed = {tensor: np.asarray(values[0]) for tensor, values in kit.judged.items()}
        timed[peer] = lambda run=run, feed=feed: run(feed)
        own, packed = sizes(result.artifact.parent.iterdir())
        rows[peer] = Figures(
            tool=peer,
            runtime=runtime,
            seconds=result.seconds,
            quality=quality(kit, answers, lambda item: item.model_output or item.name),
            size_bytes=own,
            packed_bytes=packed,
        )
    for profile in PROFILES:
        row = f"edgeops {profile}"
        refused = runs["cold"].refused[name].get(profile)
        if refused is not None:
            rows[row] = Figures(tool=row, failure=refused)
            continue
        folder = work / "edgeops" / handover.name / profile
        bundle = open_bundle(folder / "bundle")
        session = open_session(bundle.directory, bundle.manifest, threads=threads)
        timed[row] = lambda session=session: session.run(first)
        artifact = bundle.directory / bundle.manifest.artifact
        own, packed = sizes(artifact.parent / file for file in _artifact_files(artifact))
        rows[row] = Figures(
            tool=row,
            runtime=bundle.manifest.runtime,
            precision=str(bundle.manifest.precision),
            scheme=bundle.manifest.scheme,
            reason=_reason(folder / "evidence.json"),
            seconds=runs["cold"].model_seconds[name],
            quality=quality(kit, run_all(session.run, kit.device), lambda item: item.name),
            size_bytes=own,
            packed_bytes=packed,
        )
    times = in_rounds(timed, latency_s)
    return Model(
        name=name,
        samples=len(next(iter(kit.device.values()))),
        float_size_bytes=float_size[0],
        float_packed_bytes=float_size[1],
        float_ms={name.removeprefix("float "): value for name, value in times.items() if name.startswith("float ")},
        rows=tuple(msgspec.structs.replace(row, p50_ms=times.get(tool)) for tool, row in rows.items()),
    )


def _artifact_files(artifact: Path) -> Sequence[str]:
    return [path.name for path in artifact.parent.iterdir() if path.stem == artifact.stem and path.is_file()]


def _reason(evidence: Path) -> str:
    candidates: list[dict[str, Any]] = json.loads(evidence.read_bytes())["candidates"]
    return next(str(one["reason"]) for one in candidates if one["chosen"])


def _run_peer(peer: str, kit: Kit, out: Path, olive: str) -> Peer:
    out.mkdir(parents=True)
    program = str(_ROOT / "benchmarks" / "peers" / f"{PEERS[peer]}.py")
    command = [olive if peer == "olive" else sys.executable, program, str(kit.folder), str(out)]
    start = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=out, env=_environment(), capture_output=True, text=True, timeout=_PEER_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Peer(time.monotonic() - start, None, f"took more than {_PEER_TIMEOUT_S} s")
    seconds = time.monotonic() - start
    made = [path for path in (out / "model.onnx", out / "model.xml") if path.exists()]
    if done.returncode != 0 or not made:
        return Peer(seconds, None, " ".join((done.stderr or done.stdout).split())[-200:])
    return Peer(seconds, made[0], "")


def _environment() -> dict[str, str]:
    return {**os.environ, "TQDM_DISABLE": "1", "OLIVE_DISABLE_TELEMETRY": "1"}


if __name__ == "__main__":
    main()
