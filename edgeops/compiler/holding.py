"""Which declared steps an artifact of a runtime holds; the agent does the others. Pure."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from edgeops.contracts.handover import (
    ArgMax,
    Input,
    LogMel,
    Pad,
    Resize,
    ResultStep,
    Softmax,
    Standardize,
    Step,
    TopK,
)
from edgeops.runtimes.steps import TensorForm, propagate

Holds = Callable[[Step | ResultStep], bool]

# Energies span ten powers of ten, and int8 holds two: a microcontroller has nothing finer. Its interpreter has no TopK.
_NOT_ON_MCU = (LogMel, Standardize, Resize, Pad, ArgMax, Softmax, TopK)


def held_by(runtime: str, *, ready: bool) -> Holds:
    """Return whether artifacts of a runtime hold a step.

    Args:
        runtime: Its name.
        ready: The model is taken as it is: its file cannot be added to.
    """
    if ready:
        return lambda step: False
    if runtime == "mcu":
        return lambda step: not isinstance(step, _NOT_ON_MCU)
    return lambda step: True


def split_input(spec: Input, holds: Holds) -> tuple[tuple[Step, ...], Input]:
    """Return the agent's steps, and the input as the artifact takes it.

    The agent comes first: it does all steps up to the last one that the artifact does not hold.
    """
    last = max((index for index, step in enumerate(spec.preprocess) if not holds(step)), default=-1)
    agent = (*spec.agent, *spec.preprocess[: last + 1])
    form = propagate(agent, TensorForm(spec.dtype, spec.shape), where=f"input {spec.name!r}", key="agent")
    rest = spec.preprocess[last + 1 :]
    return agent, msgspec.structs.replace(spec, dtype=form.dtype, shape=form.shape, agent=(), preprocess=rest)


def split_results(steps: tuple[ResultStep, ...], holds: Holds) -> tuple[tuple[ResultStep, ...], tuple[ResultStep, ...]]:
    """Return the steps that the artifact holds, and the agent's: from the first on that it does not."""
    first = next((index for index, step in enumerate(steps) if not holds(step)), len(steps))
    return steps[:first], steps[first:]
