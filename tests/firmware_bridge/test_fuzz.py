"""The whole application under the address and undefined sanitizers, fed with whatever a line may bring."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest

from edgeops.contracts.errors import EdgeopsError
from firmware_bridge import packets
from firmware_bridge.build import CLANG, fuzzer, guided_fuzzer
from firmware_bridge.packets import Command

BLOB = bytes(range(256)) * 3
SEEDS = [
    packets.encode(command, number, values)
    for number, (command, values) in enumerate(
        [
            (packets.ECHO, {"d": "hello"}),
            (packets.RESET, {}),
            (packets.IMAGE_STATE, {}),
            (packets.SET_IMAGE_STATE, {"hash": bytes(32), "confirm": False}),
            (packets.UPLOAD, {"off": 0, "len": len(BLOB), "sha": hashlib.sha256(BLOB).digest(), "data": BLOB[:400]}),
            (packets.UPLOAD, {"off": 400, "data": BLOB[400:]}),
            (packets.ERASE, {}),
            (packets.STATISTICS, {"name": "smp"}),
            (packets.MODEL_INFO, {}),
            (packets.MODEL_INPUT, {"off": 0, "data": bytes(16)}),
            (packets.MODEL_RUN, {}),
            (packets.MODEL_OUTPUT, {"off": 0}),
            (Command(9, 9, packets.Op.READ), {"deep": [[[{"a": [1, {"b": None}]}]]]}),
        ]
    )
]


@pytest.fixture(autouse=True)
def compiler(host_compiler: None) -> None:
    """Skip where there is no compiler."""


def fuzz(seed: int, rounds: int, *defines: str) -> subprocess.CompletedProcess[bytes]:
    try:
        program = fuzzer(defines)
    except EdgeopsError as error:
        if "asan" in str(error):
            pytest.skip(f"no sanitizers: apt-get install --yes libasan8 libubsan1 ({error.what})")
        raise
    stream = b"".join(len(packet).to_bytes(2, "big") + packet for packet in SEEDS)
    return subprocess.run([program, str(seed), str(rounds)], input=stream, capture_output=True, timeout=900)


def survives(seed: int, rounds: int) -> None:
    done = fuzz(seed, rounds)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[:4000]
    counts = json.loads(done.stdout)
    assert counts["requests"] > rounds
    assert 0 < counts["errors"] < counts["requests"]


def test_mutated_packets_do_no_harm():
    survives(seed=1, rounds=10_000)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(2, 8))
def test_many_mutated_packets_do_no_harm(seed: int):
    survives(seed, rounds=300_000)


def test_the_sanitizers_see_what_they_are_for():
    """Negative control: with the length check of texts taken out, the same packets read beyond their buffer."""
    done = fuzz(1, 10_000, "EO_MUTANT_UNCHECKED_LENGTH=1")
    assert done.returncode != 0
    assert b"AddressSanitizer" in done.stderr


def guided(folder: Path, runs: int, *defines: str) -> subprocess.CompletedProcess[str]:
    """Run libFuzzer from the seeds on; skip where it is missing."""
    try:
        program = guided_fuzzer(defines)
    except EdgeopsError as error:
        if error.code == "E-DEPENDENCY" or "clang_rt" in error.what:
            pytest.skip(f"no libFuzzer: apt-get install --yes {CLANG.package} ({error.what})")
        raise
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, packet in enumerate(SEEDS):
        (corpus / f"seed-{number}").write_bytes(packet)
    # fmt: off
    options = [
        f"-runs={runs}", "-seed=1", "-max_len=2048", "-timeout=30", "-rss_limit_mb=2048", "-print_final_stats=1",
        f"-artifact_prefix={folder}/",
    ]
    # fmt: on
    return subprocess.run([program, *options, str(corpus)], capture_output=True, text=True, timeout=1500, check=False)


@pytest.mark.full
@pytest.mark.timeout(1600)
def test_what_coverage_leads_to_does_no_harm(tmp_path: Path):
    done = guided(tmp_path, 500_000)
    assert done.returncode == 0, done.stderr[-4000:]
    runs = re.search(r"number_of_executed_units:\s*(\d+)", done.stderr)
    assert runs is not None
    assert int(runs[1]) >= 500_000
    coverage = [int(found) for found in re.findall(r"cov: (\d+)", done.stderr)]
    assert coverage[-1] > coverage[0], "it found its way to code that the seeds do not reach"


@pytest.mark.full
def test_guided_by_coverage_a_missing_check_is_found(tmp_path: Path):
    """Negative control."""
    done = guided(tmp_path, 500_000, "EO_MUTANT_UNCHECKED_LENGTH=1")
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr
