"""Where in a graph an artifact begins to answer otherwise than what it was made from. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from edgeops.contracts.evidence import Opening, OutputError


class Layer(NamedTuple):
    """A node of the graph without the error: its name, operator, and the tensors that it reads and writes."""

    name: str
    operator: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


def opening(
    layers: Sequence[Layer], errors: Mapping[str, OutputError], output: str, bad: Callable[[OutputError], bool]
) -> Opening | None:
    """Return the layer at which an output's error opens, None if the output is not bad.

    It is found by walking back from the output along the worst of the bad tensors: the layer whose own output is bad
    while all that it reads is good. So the error stays bad from there to the output along that path; a tensor that
    is bad for a while and recovers is passed by. A tensor that was not compared is looked through.

    Args:
        layers: In topological order.
        errors: Tensor → how it differs; only those that both graphs have.
        output: The graph's output to explain.
        bad: Whether an error is beyond what is asked for.
    """
    writers = {name: layer for layer in layers for name in layer.writes}
    tensor = output
    if output not in errors or output not in writers or not bad(errors[output]):
        return None
    trail = {tensor}
    while True:
        layer = writers[tensor]
        read, unseen = _before(layer, errors, writers)
        before = sorted(read, key=lambda name: errors[name].sqnr_db)
        # Two tensors of one name, which a converter may make, must not lead in a circle.
        worse = next((name for name in before if name in writers and name not in trail and bad(errors[name])), None)
        if worse is None:
            return Opening(
                output=output,
                node=layer.name,
                operator=layer.operator,
                tensor=tensor,
                unseen=tuple(f"{one.operator} {one.name}" for one in unseen),
                before=errors[before[0]] if before else None,
                after=errors[tensor],
            )
        tensor = worse
        trail.add(tensor)


def _before(
    layer: Layer, errors: Mapping[str, OutputError], writers: Mapping[str, Layer]
) -> tuple[list[str], list[Layer]]:
    """Return the nearest compared tensors before a layer, and the layers between, whose tensors were not compared."""
    pending, seen = list(layer.reads), set()
    read: list[str] = []
    unseen: list[Layer] = []
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in errors:
            read.append(name)
        elif name in writers:
            unseen.append(writers[name])
            pending.extend(writers[name].reads)
    return read, unseen
