"""The figures to reach, each met or missed with what was measured. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from benchmarks.peers.figures import Quality

OWN_PROFILE = "intel-nuc"
INT8_MODELS = ("ocr-det", "mnist-cnn")
FASTEST_MODEL = "ocr-cls"
_INT8_SPEEDUP = 1.5
_PACKED_RATIO = 0.35
# Two medians of the same artifact, timed in rounds, differ by up to this.
_NOISE = 1.05
_COLD_S, _WARM_S, _MEMORY_MIB = 600.0, 10.0, 4096.0
_OF_OLIVE = 0.5
_GOOD = 0.99


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One artifact: who made it, and what was measured; `failure`: why there is none."""

    tool: str
    seconds: float = 0.0
    runtime: str = ""
    precision: str = ""
    scheme: str = ""
    reason: str = ""
    quality: Quality | None = None
    size_bytes: int = 0
    packed_bytes: int = 0
    p50_ms: float | None = None
    failure: str = ""

    @property
    def is_edgeops(self) -> bool:
        """Whether a peer made it, or edgeops."""
        return self.tool.startswith("edgeops ")


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One model: its float form with preprocessing (bytes, bytes compressed, runtime → ms), and all artifacts."""

    name: str
    samples: int
    float_size_bytes: int
    float_packed_bytes: int
    float_ms: dict[str, float]
    rows: tuple[Figures, ...]

    def row(self, tool: str) -> Figures | None:
        """Return the artifact of a tool if it made one."""
        return next((row for row in self.rows if row.tool == tool and row.quality is not None), None)


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One compile of the whole set: seconds, memory of the process tree, and per model seconds and refusals."""

    seconds: float
    peak_memory_mib: float
    model_seconds: dict[str, float]
    refused: dict[str, dict[str, str]]


class Target(NamedTuple):
    """One target: what is asked for, whether it is met, and what was measured."""

    what: str
    met: bool
    measured: str


def judge(found: Sequence[Model], runs: Mapping[str, Run]) -> list[Target]:
    """Hold the figures against the targets."""
    results = [*_beside_peers(found), *_never_slower(found)]
    for model in found:
        own = model.row(f"edgeops {OWN_PROFILE}")
        if own is None:
            continue
        if model.name in INT8_MODELS:
            results += _int8(model, own)
        if model.name == FASTEST_MODEL:
            fastest = own.reason.startswith("fastest")
            results.append(
                Target(f"{model.name}: the fastest candidate that passes", fastest, f"{own.scheme}: {own.reason}")
            )
    cold, warm = runs["cold"], runs["warm"]
    memory = max(cold.peak_memory_mib, warm.peak_memory_mib)
    results += [
        Target(f"whole set cold under {_COLD_S:.0f} s", cold.seconds < _COLD_S, f"{cold.seconds:.0f} s"),
        Target(f"whole set warm under {_WARM_S:.0f} s", warm.seconds < _WARM_S, f"{warm.seconds:.1f} s"),
        Target(f"peak memory under {_MEMORY_MIB:.0f} MiB", memory < _MEMORY_MIB, f"{memory:.0f} MiB"),
        *_beside_olive(found, cold),
    ]
    return results


def broken(name: str, why: str) -> Target:
    """Return the target that a model misses on which the comparison itself failed."""
    return Target(f"{name}: compared at all", False, why)


def _beside_peers(found: Sequence[Model]) -> Iterable[Target]:
    for model in found:
        peers = [row for row in model.rows if row.quality is not None and not row.is_edgeops]
        for row in model.rows:
            if not row.is_edgeops or row.quality is None:
                continue
            worse = [note for peer in peers if (note := _worse(row.quality, peer)) is not None]
            measured = "; ".join(worse) or f"{_said(row.quality)} against {len(peers)} peers"
            yield Target(f"{model.name}: {row.tool} at least as good as each peer", not worse, measured)


def _worse(own: Quality, peer: Figures) -> str | None:
    """Return how a peer is better, or as bad where it should be beaten; None: it is not."""
    assert peer.quality is not None
    for word, mine, theirs in (
        ("cosine", own.cosine, peer.quality.cosine),
        ("agreement", own.agreement, peer.quality.agreement),
    ):
        if mine is None or theirs is None:
            continue
        if mine < theirs or (theirs < _GOOD and mine <= theirs):
            return f"{word} {mine:.6f}, {peer.tool} has {theirs:.6f} (n={own.samples})"
    return None


def _never_slower(found: Sequence[Model]) -> Iterable[Target]:
    for model in found:
        own = model.row(f"edgeops {OWN_PROFILE}")
        if own is None or own.p50_ms is None or own.runtime not in model.float_ms:
            continue
        ratio = own.p50_ms / model.float_ms[own.runtime]
        yield Target(f"{model.name}: not slower than float {own.runtime}", ratio <= _NOISE, f"{ratio:.2f}×")


def _int8(model: Model, own: Figures) -> Iterable[Target]:
    name = model.name
    yield Target(f"{name}: int8 chosen on {OWN_PROFILE}", own.precision == "int8", own.scheme)
    speedup = model.float_ms["onnxruntime"] / (own.p50_ms or float("inf"))
    yield Target(
        f"{name}: at least {_INT8_SPEEDUP}× faster than float onnxruntime", speedup >= _INT8_SPEEDUP, f"{speedup:.2f}×"
    )
    packed = own.packed_bytes / model.float_packed_bytes
    yield Target(f"{name}: compressed at most {_PACKED_RATIO} of float's", packed <= _PACKED_RATIO, f"{packed:.3f}")


def _beside_olive(found: Sequence[Model], cold: Run) -> Iterable[Target]:
    for model in found:
        olive = model.row("olive")
        if olive is not None:
            ratio = cold.model_seconds[model.name] / olive.seconds
            measured = f"{cold.model_seconds[model.name]:.1f} s, Olive {olive.seconds:.1f} s: {ratio:.2f}"
            yield Target(f"{model.name}: three profiles in half of Olive's time for one", ratio <= _OF_OLIVE, measured)


def table(model: Model) -> str:
    """Return one model's artifacts as lines of text."""
    floats = ", ".join(f"{runtime} {value:.2f} ms" for runtime, value in sorted(model.float_ms.items()))
    lines = [
        "",
        f"{model.name}: n={model.samples}; float {model.float_size_bytes / 1024:.0f} KiB, "
        f"{model.float_packed_bytes / 1024:.0f} KiB compressed; {floats}",
        f"  {'':22} {'artifact':32} {'cosine':>9} {'agreement':>9} {'SQNR dB':>8} {'KiB':>7} {'packed':>7} "
        f"{'ms':>8} {'/float':>7} {'made in':>8}",
    ]
    base = model.float_ms.get("onnxruntime")
    for row in model.rows:
        if row.quality is None:
            lines.append(f"  {row.tool:22} none: {row.failure[:130]}")
            continue
        agreement = "–" if row.quality.agreement is None else f"{row.quality.agreement:.5f}"
        speed = "–" if row.p50_ms is None or not base else f"{row.p50_ms / base:.2f}"
        lines.append(
            f"  {row.tool:22} {row.scheme or row.runtime:32} {row.quality.cosine:9.6f} {agreement:>9} "
            f"{row.quality.sqnr_db:8.1f} {row.size_bytes / 1024:7.0f} "
            f"{row.packed_bytes / model.float_packed_bytes:7.2f} {row.p50_ms or 0:8.3f} {speed:>7} {row.seconds:7.1f}s"
        )
    return "\n".join(lines)


def summary(results: Sequence[Target], runs: Mapping[str, Run]) -> str:
    """Return times and targets as lines of text, those that are missed last."""
    lines = ["", "seconds of edgeops per model, all profiles, cold / warm:"]
    for name, seconds in runs["cold"].model_seconds.items():
        lines.append(f"  {name:22} {seconds:7.1f} / {runs['warm'].model_seconds[name]:5.2f}")
    ordered = sorted(results, key=lambda target: not target.met)
    lines += ["", "targets:", *(f"  {'met   ' if one.met else 'MISSED'} {one.what}: {one.measured}" for one in ordered)]
    met = sum(one.met for one in results)
    lines.append(f"  {met} of {len(results)} met")
    return "\n".join(lines)


def _said(quality: Quality) -> str:
    agreement = "" if quality.agreement is None else f", agreement {quality.agreement:.5f}"
    return f"cosine {quality.cosine:.6f}{agreement}"
