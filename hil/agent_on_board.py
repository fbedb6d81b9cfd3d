"""An agent on a board: enrolled in a throwaway fleet, spoken to by its local commands and its endpoint alone."""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.client.inference import InferenceClient
from edgeops.contracts.errors import ERROR_CODES, EdgeopsError
from edgeops.releases.bundles import Bundle
from edgeops.runtimes import golden
from hil.boards.processes import wait_until
from hil.boards.protocol import Done, LinuxBoard, broken
from hil.field import DEVICE, Field, Stick

ANSWER_WITHIN_S = 300.0
_INSTALL_WITHIN_S = 600.0
_PROGRAM = "agent"


class AgentOnBoard:
    """An agent on a board that has power.

    Args:
        board: The board.
        field: The fleet that it belongs to.
    """

    def __init__(self, board: LinuxBoard, field: Field) -> None:
        self.board, self.field = board, field
        self._vectors = golden.load(field.tested.directory, field.tested.manifest)
        self._endpoint = self._address = ""

    @property
    def state(self) -> str:
        """The agent's state directory, on the board."""
        return f"{self.board.folder}/state"

    @property
    def inputs(self) -> dict[str, NDArray[Any]]:
        """The first golden vector."""
        return {name: array[0] for name, array in self._vectors.inputs.items()}

    def edgeops(self, *arguments: str, check: bool = True, within_s: float = 300.0) -> Done:
        """Run an edgeops command on the board.

        Raises:
            EdgeopsError: What the command ended with, if `check`. E-HIL-BOARD.
        """
        done = self.board.run(*self.board.edgeops(*arguments), within_s=within_s)
        if check and done.status != 0:
            raise error_of(done, " ".join(arguments[:2]))
        return done

    def enrol(self) -> None:
        """Let the board join the fleet, by two files as a device without network does."""
        request = f"{self.board.folder}/request.json"
        with tempfile.TemporaryDirectory(prefix="edgeops-hil-") as name:
            local = Path(name)
            (local / "token").write_text(self.field.token())
            token = self.board.put(local / "token", "token")
            self.edgeops(
                "agent", "enroll", "--state", self.state, "--token-file", token,
                "--profile", self.board.profile, "--name", DEVICE, "--request", request,
            )  # fmt: skip
            asked = self.board.run("cat", request)
            if asked.status != 0:
                raise broken(self.board.name, f"{request}: {asked.err.strip()}")
            (local / "answer").write_bytes(self.field.answer(asked.out))
            answer = self.board.put(local / "answer", "answer.json")
        self.edgeops("agent", "enroll", "--state", self.state, "--token-file", token, "--answer", answer)

    def start(self) -> None:
        """Start the agent, and wait until it runs.

        Raises:
            EdgeopsError: E-HIL-CHECK; the board answers, and the agent does not run. E-HIL-BOARD.
        """
        self._endpoint = self._address = ""
        words = self.board.edgeops("agent", "run", "--state", self.state, "--confirm-after-s", "1")
        self.board.start(_PROGRAM, *words)
        deadline_s = time.monotonic() + ANSWER_WITHIN_S
        while not self.status().get("running"):
            if not wait_until(deadline_s, 0.2):
                end = self.board.console()[-500:]
                raise EdgeopsError("E-HIL-CHECK", f"the agent does not start; the console ends: {end!r}")

    def stop(self) -> None:
        """Ask the agent to end."""
        self.board.stop(_PROGRAM)

    def install(self, place: str) -> Done:
        """Have the agent install a release that lies on the board; the result says whether it did."""
        words = ("agent", "install", "--state", self.state, place)
        return self.edgeops(*words, check=False, within_s=_INSTALL_WITHIN_S)

    def bring(self, stick: Stick) -> None:
        """Copy a release to the board and install it.

        Raises:
            EdgeopsError: Why the device refuses it. E-HIL-CHECK; it took it, but another one serves.
        """
        done = self.install(self.board.put(stick.file, f"{stick.version}.edgeops"))
        if done.status != 0:
            raise error_of(done, "install")
        self.check_serves(stick)

    def roll_back(self) -> None:
        """Go back to the bundle before.

        Raises:
            EdgeopsError: Why the device refuses.
        """
        self.edgeops("agent", "rollback", "--state", self.state, self.field.model, within_s=_INSTALL_WITHIN_S)

    def check_serves(self, stick: Stick) -> None:
        """Hold what serves against a release: its version, and a golden vector over the endpoint.

        Raises:
            EdgeopsError: E-HIL-CHECK; another version serves. E-SELFTEST-GOLDEN; it answers otherwise.
        """
        if (serving := self.serving()) != stick.version:
            raise EdgeopsError("E-HIL-CHECK", f"{serving} serves, expected {stick.version}")
        self.check_answer(stick.bundle)

    def check_answer(self, bundle: Bundle) -> None:
        """Hold the endpoint's answer against the first golden vector of the bundle that serves.

        Raises:
            EdgeopsError: E-SELFTEST-GOLDEN.
        """
        vectors = golden.load(bundle.directory, bundle.manifest)
        with self.client() as client:
            answer = client.infer(self.field.model, {name: array[0] for name, array in vectors.inputs.items()})
        for name, got in answer.items():
            expected = vectors.artifact_outputs[name][0].astype(np.float64)
            furthest = float(np.max(np.abs(got.astype(np.float64) - expected), initial=0.0))
            most = bundle.manifest.golden.tolerances[name].artifact_max_abs
            if not furthest <= most:
                raise EdgeopsError("E-SELFTEST-GOLDEN", f"output {name!r} differs by {furthest:g}, allowed {most:g}")

    def serving(self) -> str:
        """Return the version whose endpoint answers, once one does.

        Raises:
            EdgeopsError: E-AGENT-WORKER; none does in time.
        """
        deadline_s = time.monotonic() + ANSWER_WITHIN_S
        while True:
            component = self.component()
            if component.get("active") and component.get("endpoint"):
                if component["endpoint"] != self._endpoint:
                    self._endpoint, self._address = component["endpoint"], self.board.reach(component["endpoint"])
                with contextlib.suppress(EdgeopsError), InferenceClient(self._address, timeout_s=10) as client:
                    if client.ready():
                        return str(component["active"])
            if not wait_until(deadline_s, 0.2):
                raise EdgeopsError("E-AGENT-WORKER", f"{self.board.name}: no endpoint answers: {component}")

    def client(self) -> InferenceClient:
        """Return a client of the endpoint, once it answers.

        Raises:
            EdgeopsError: As `serving`.
        """
        self.serving()
        return InferenceClient(self._address, timeout_s=ANSWER_WITHIN_S)

    def component(self) -> dict[str, Any]:
        """Return how the model stands on the board; empty while nothing is known of it."""
        found: list[dict[str, Any]] = self.status().get("components", [])
        return next((one for one in found if one["name"] == self.field.model), {})

    def status(self) -> dict[str, Any]:
        """Return what `edgeops agent status` says; empty where it says nothing."""
        done = self.edgeops("agent", "status", "--state", self.state, "--json", check=False)
        try:
            found: dict[str, Any] = json.loads(done.out) if done.status == 0 else {}
        except ValueError:
            return {}
        return found


class Asking:
    """Asks an agent's endpoint again and again while the context lasts.

    Args:
        agent: The agent.
    """

    def __init__(self, agent: AgentOnBoard) -> None:
        self._client, self._model, self._feeds = agent.client(), agent.field.model, agent.inputs
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self.answered = 0
        self.slowest_ms = 0.0
        self.failures: list[str] = []

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(ANSWER_WITHIN_S)

    def _ask(self) -> None:
        with self._client as client:
            while not self._stop.is_set():
                start_s = time.monotonic()
                try:
                    client.infer(self._model, self._feeds)
                except EdgeopsError as error:
                    self.failures.append(f"{error.code}: {error.what}")
                    time.sleep(0.1)
                else:
                    self.answered += 1
                    self.slowest_ms = max(self.slowest_ms, 1000 * (time.monotonic() - start_s))


def error_of(done: Done, what: str) -> EdgeopsError:
    """Return the error that an edgeops command ended with."""
    lines = [line.removeprefix("error ") for line in done.err.strip().splitlines()]
    for line in lines:
        code, _, rest = line.partition(": ")
        if code in ERROR_CODES:
            return EdgeopsError(code, rest)
    return EdgeopsError("E-HIL-CHECK", f"edgeops {what}: status {done.status}: {(lines or ['no word'])[-1][:300]}")
