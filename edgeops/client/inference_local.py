"""Inference in this process: a bundle, checked and loaded without a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from edgeops.client.inference_state import State, states_of
from edgeops.contracts.errors import EdgeopsError
from edgeops.releases.bundles import open_bundle
from edgeops.runtimes.bundle_session import open_session


class LocalModel:
    """A bundle in this process. There is no telemetry, and no update. Not safe for use by two threads at once.

    Args:
        directory: The bundle, as `edgeops compile` leaves it.
        digest: What it must be, `sha256:…`; None: any.
        threads: Inference threads.

    Raises:
        EdgeopsError: E-BUNDLE-DAMAGED or E-BUNDLE-INVALID; E-RUNTIME-MISSING or E-RUNTIME-LOAD.
    """

    def __init__(self, directory: Path, *, digest: str | None = None, threads: int = 1) -> None:
        bundle = open_bundle(directory, expect_digest=digest)
        self._manifest, self._digest = bundle.manifest, bundle.digest
        self._session = open_session(directory, bundle.manifest, threads=threads)

    def infer(
        self, model: str, feeds: Mapping[str, NDArray[Any]], *, outputs: Sequence[str] = ()
    ) -> dict[str, NDArray[Any]]:
        """Run the model; arguments as `InferenceClient.infer`.

        Raises:
            EdgeopsError: E-INFER-MODEL; this is another model. E-INFER-REQUEST; no such output. E-RUNTIME-INPUT or
                E-RUNTIME-RUN.
        """
        self._check(model)
        answer = self._session.run(feeds)
        try:
            return {name: answer[name] for name in outputs} if outputs else answer
        except KeyError as error:
            raise EdgeopsError("E-INFER-REQUEST", f"outputs are {sorted(answer)}, asked for {error}") from None

    def ready(self) -> bool:
        """Say whether it can answer."""
        return True

    def metadata(self, model: str) -> dict[str, Any]:
        """Return the model's name, digest, inputs and outputs.

        Raises:
            EdgeopsError: E-INFER-MODEL; this is another model.
        """
        self._check(model)
        return {
            "name": self._manifest.model,
            "digest": self._digest,
            "inputs": list(self._manifest.inputs),
            "outputs": [info.tensor for info in self._manifest.outputs],
        }

    def states(self, model: str) -> tuple[State, ...]:
        """Return the model's state tensors, for `Stream`.

        Raises:
            EdgeopsError: E-INFER-MODEL; this is another model.
        """
        self._check(model)
        return states_of(self._manifest.states, self._manifest.inputs)

    def close(self) -> None:
        """Free the model's memory."""
        self._session.close()

    def __enter__(self) -> LocalModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, model: str) -> None:
        if model != self._manifest.model:
            raise EdgeopsError("E-INFER-MODEL", f"this is {self._manifest.model}, not {model}")
