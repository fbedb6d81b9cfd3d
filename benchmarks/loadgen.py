"""MLPerf's load generator against `edgeops.client.inference`: `python -m benchmarks.loadgen [--seconds 60]`.

Scenarios SingleStream and Offline, for the models of `benchmarks/serving.py`, with telemetry on. A run is VALID by
LoadGen's own rules for the time given; MLPerf asks submitters for 600 s. Needs `pip install 'edgeops[loadgen]'`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlperf_loadgen as loadgen
import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks import serving_kit
from benchmarks.serving_kit import Kit
from benchmarks.serving_load import called

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "agent"))

from serving_rig import ServingRig

from edgeops.client.inference import InferenceModel, open_model

SAMPLES = 64
SCENARIOS = ("SingleStream", "Offline")
_FIELDS = {
    "SingleStream": ("50.00 percentile latency (ns)", "90.00 percentile latency (ns)", "QPS w/o loadgen overhead"),
    "Offline": ("Samples per second",),
}


def main() -> None:
    """Run each scenario for each model, print what LoadGen says, and fail if a run is not VALID."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="least time of each run")
    parser.add_argument("--by", choices=("socket", "http", "process"), default="socket")
    parser.add_argument("--out", type=Path, default=Path("build/bench-loadgen.json"))
    chosen = parser.parse_args()
    print(f"{platform.machine()}, {psutil.cpu_count()} cores, load {psutil.getloadavg()[0]:.1f}", flush=True)
    found: dict[str, dict[str, dict[str, str]]] = {}
    for name in serving_kit.NAMES:
        kit = serving_kit.make(name)
        rig = ServingRig()
        try:
            rig.serve(kit.bundle)
            address = {"socket": rig.socket, "http": rig.url, "process": str(kit.bundle.directory)}[chosen.by]
            with contextlib.closing(open_model(address)) as client:
                for scenario in SCENARIOS:
                    said = found.setdefault(name, {})[scenario] = run(kit, client, scenario, chosen.seconds)
                    told = "; ".join(f"{field}: {said[field]}" for field in _FIELDS[scenario] if field in said)
                    print(f"{name}, {scenario}, by {chosen.by}: {said['Result is']}; {told}", flush=True)
        finally:
            rig.close()
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(found, indent=2) + "\n")
    print(f"written to {chosen.out}")
    if not all(said["Result is"] == "VALID" for by in found.values() for said in by.values()):
        raise SystemExit("a run is not VALID")


def run(kit: Kit, client: InferenceModel, scenario: str, for_s: float) -> dict[str, str]:
    """Run one scenario; return the fields of LoadGen's summary."""
    drawn = np.random.default_rng(7).uniform(0, 1, (SAMPLES, *kit.tensor.shape)).astype(kit.tensor.dtype)
    samples: list[NDArray[Any]] = list(drawn)
    once = called(lambda: client.infer(kit.name, {kit.input: samples[0]}), min(1.0, for_s / 4))

    def issue(queries: Sequence[Any]) -> None:
        for query in queries:
            output = client.infer(kit.name, {kit.input: samples[query.index]})[kit.output]
            answer = loadgen.QuerySampleResponse(query.id, output.ctypes.data, output.nbytes)
            loadgen.QuerySamplesComplete([answer])

    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, scenario)
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = int(for_s * 1e3)
    # LoadGen makes its queries beforehand, and must not run out of them.
    settings.single_stream_expected_latency_ns = max(1, int(once.p50_ms * 0.5e6))
    # So many samples that the shortest time is passed even if nothing disturbs.
    settings.offline_expected_qps = 1.5e3 / once.p50_ms
    with tempfile.TemporaryDirectory(prefix="bench-loadgen-") as folder:
        log = loadgen.LogSettings()
        log.log_output.outdir = folder
        log.log_output.copy_summary_to_stdout = False
        log.enable_trace = False
        nothing = lambda *_: None  # noqa: E731
        system = loadgen.ConstructSUT(issue, nothing)
        library = loadgen.ConstructQSL(SAMPLES, SAMPLES, nothing, nothing)
        try:
            loadgen.StartTestWithLogSettings(system, library, settings, log)
        finally:
            loadgen.DestroyQSL(library)
            loadgen.DestroySUT(system)
        summary = (Path(folder) / "mlperf_log_summary.txt").read_text()
    return {
        field.strip(): value.strip() for field, value in re.findall(r"^([^:\n]+?)\s*: (.+)$", summary, re.MULTILINE)
    }


if __name__ == "__main__":
    main()
