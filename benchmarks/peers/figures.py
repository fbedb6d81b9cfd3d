"""The same figures for every artifact, whoever made it: errors against the source, size, and latency in rounds."""

from __future__ import annotations

import statistics
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.kit import Kit
from edgeops.contracts.handover import Output
from edgeops.runtimes import compare
from edgeops.runtimes.protocol import Session

Run = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]

_WARMUP_ROUNDS = 3
_LEAST_ROUNDS = 15
_MOST_ROUNDS = 400


class Quality(NamedTuple):
    """The worst output's figures: mean cosine, share of equal class decisions (None: no classes), SQNR, samples."""

    cosine: float
    agreement: float | None
    sqnr_db: float
    samples: int


def quality(kit: Kit, answers: Mapping[str, NDArray[Any]], name_of: Callable[[Output], str]) -> Quality:
    """Compare answers with the untouched source's.

    Args:
        kit: The model.
        answers: Output → [n, ...].
        name_of: How `answers` name an output.
    """
    errors = [
        compare.output_error(
            item.name, item.kind, kit.reference[item.model_output or item.name], answers[name_of(item)]
        )
        for item in kit.handover.outputs
    ]
    agreements = [error.agreement for error in errors if error.agreement is not None]
    return Quality(
        min(error.cosine for error in errors),
        min(agreements, default=None),
        min(error.sqnr_db for error in errors),
        errors[0].samples,
    )


def sizes(files: Iterable[Path]) -> tuple[int, int]:
    """Return bytes as they are, and compressed by zlib."""
    contents = [path.read_bytes() for path in files]
    return sum(map(len, contents)), sum(len(zlib.compress(content, 9)) for content in contents)


def in_rounds(runs: Mapping[str, Callable[[], object]], budget_s: float) -> dict[str, float]:
    """Time all functions in turns, so that each sees the same load of the machine; each round begins with another.

    Returns:
        Name → median milliseconds.
    """
    names = list(runs)
    for _ in range(_WARMUP_ROUNDS):
        for run in runs.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    for index in range(_MOST_ROUNDS):
        first = index % len(names)
        for name in (*names[first:], *names[:first]):
            begun = time.perf_counter_ns()
            runs[name]()
            times[name].append((time.perf_counter_ns() - begun) / 1e6)
        if index + 1 >= _LEAST_ROUNDS and time.perf_counter() - start > budget_s:
            break
    return {name: statistics.median(values) for name, values in times.items()}


def by_names(session: Session, inputs: Sequence[str], outputs: Sequence[str]) -> Run:
    """Return a session's `run` by the model's own names: a converter may rename tensors but keeps their order."""
    own_inputs, own_outputs = ([spec.name for spec in specs] for specs in (session.inputs, session.outputs))
    fed = own_inputs if set(own_inputs) != set(inputs) else inputs
    given = own_outputs if set(own_outputs) != set(outputs) else outputs

    def run(feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        answers = session.run({own: feeds[name] for own, name in zip(fed, inputs, strict=True)})
        return {name: answers[own] for own, name in zip(given, outputs, strict=True)}

    return run


def run_all(run: Run, samples: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Run samples [n, *shape] one by one; returns output → [n, *shape]."""
    count = len(next(iter(samples.values())))
    rows = [run({name: np.asarray(values[index]) for name, values in samples.items()}) for index in range(count)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
