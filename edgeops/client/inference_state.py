"""Models that carry state from call to call: a stream of calls, whose state the client keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.tensors import TensorSpec


class State(NamedTuple):
    """A state tensor: the output whose value is the next call's input, and that input."""

    output: str
    tensor: TensorSpec


class StatefulModel(Protocol):
    """What a stream needs of a client."""

    def infer(
        self, model: str, feeds: Mapping[str, NDArray[Any]], *, outputs: Sequence[str] = ()
    ) -> dict[str, NDArray[Any]]:
        """Run the model."""

    def states(self, model: str) -> tuple[State, ...]:
        """Return the model's state tensors."""


class Stream:
    """Calls that belong together: what the model leaves as state goes into the next call. It begins with zeros.

    The state is the caller's: a server keeps none, so that any number of streams share a model. When a device changes
    the bundle, a stream goes on with its state; one whose model may have learnt other states calls `reset`.

    Args:
        client: What `open_model` gave.
        model: The model's name.

    Raises:
        EdgeopsError: E-RUNTIME-INPUT; the model carries no state. As the client's `infer`.
    """

    def __init__(self, client: StatefulModel, model: str) -> None:
        self._client, self._model = client, model
        self._declared = client.states(model)
        if not self._declared:
            raise EdgeopsError("E-RUNTIME-INPUT", f"{model} carries no state", "Ask the client itself.")
        self._values: dict[str, NDArray[Any]] = {}
        self.reset()

    def infer(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the next call.

        Args:
            feeds: Input name → tensor, without the state.

        Returns:
            Output name → tensor, without the state.

        Raises:
            EdgeopsError: As the client's `infer`; the state is then as before.
        """
        answer = self._client.infer(self._model, {**feeds, **self._values})
        # All or none: a call that failed half is no step of the stream.
        self._values = {state.tensor.name: answer[state.output] for state in self._declared}
        for state in self._declared:
            del answer[state.output]
        return answer

    def reset(self) -> None:
        """Begin a new sequence."""
        self._values = {state.tensor.name: np.zeros(state.tensor.shape, state.tensor.dtype) for state in self._declared}


def states_of(outputs: Mapping[str, str], inputs: Iterable[TensorSpec]) -> tuple[State, ...]:
    """Return state tensors by what a server says: output → the input that it feeds; an unknown input feeds nothing."""
    specs = {spec.name: spec for spec in inputs}
    return tuple(State(output, specs[fed]) for output, fed in outputs.items() if fed in specs)
