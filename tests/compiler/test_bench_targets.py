"""The benchmark's verdicts: a peer that is better by anything is said to be."""

from __future__ import annotations

import pytest

from benchmarks.peers.figures import Quality
from benchmarks.peers.targets import Figures, Model, Run, broken, judge, summary, table


def row(tool: str, cosine: float, agreement: float | None = None, **more) -> Figures:
    return Figures(tool=tool, quality=Quality(cosine, agreement, 20.0, 100), seconds=20.0, **more)


def runs(seconds: float) -> dict[str, Run]:
    one = Run(seconds=seconds, peak_memory_mib=100.0, model_seconds={"ocr-det": seconds}, refused={"ocr-det": {}})
    return {"cold": one, "warm": one}


def model(own: Figures, *peers: Figures) -> Model:
    return Model(
        name="ocr-det", samples=100, float_size_bytes=100, float_packed_bytes=100,
        float_ms={"onnxruntime": 3.0, "openvino": 2.0}, rows=(*peers, own),
    )  # fmt: skip


GOOD = {"runtime": "openvino", "precision": "int8", "packed_bytes": 30, "p50_ms": 1.5}


def missed(own: Figures, *peers: Figures, seconds: float = 5.0) -> list[str]:
    found, times = [model(own, *peers)], runs(seconds)
    results = judge(found, times)
    assert summary(results, times).count("MISSED") == sum(not one.met for one in results)
    assert all(peer.tool in table(found[0]) for peer in peers)
    return [one.what for one in results if not one.met]


def test_all_targets_are_met_by_a_faster_smaller_better_artifact():
    assert missed(row("edgeops intel-nuc", 0.995, **GOOD), row("nncf", 0.98), row("olive", 0.995)) == []


@pytest.mark.parametrize(
    ("own", "peer"),
    [
        (row("edgeops intel-nuc", 0.9990, **GOOD), row("nncf", 0.9991)),
        (row("edgeops intel-nuc", 0.9990, 0.98, **GOOD), row("nncf", 0.9990, 0.99)),
        (row("edgeops intel-nuc", 0.98, **GOOD), row("nncf", 0.98)),
    ],
)
def test_peer_that_is_better_or_as_bad_is_a_miss(own: Figures, peer: Figures):
    assert missed(own, peer) == ["ocr-det: edgeops intel-nuc at least as good as each peer"]


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"p50_ms": 2.2}, ("not slower than float openvino", "faster than float onnxruntime")),
        ({"packed_bytes": 36}, ("compressed at most",)),
        ({"precision": "fp16"}, ("int8 chosen",)),
    ],
)
def test_each_figure_alone_misses_its_target(changed: dict, what: tuple[str, ...]):
    found = missed(row("edgeops intel-nuc", 0.995, **(GOOD | changed)), row("nncf", 0.98))
    assert len(found) == len(what)
    assert all(any(words in one for one in found) for words in what)


def test_slow_compile_misses_the_targets_of_time():
    found = missed(row("edgeops intel-nuc", 0.995, **GOOD), row("olive", 0.98), seconds=700.0)
    assert len(found) == 3


def test_a_model_that_cannot_be_compared_is_a_missed_target_and_no_model_less():
    one = broken("ocr-det", "RuntimeError: out of luck")
    assert "MISSED ocr-det: compared at all: RuntimeError: out of luck" in summary([one], runs(5.0))
