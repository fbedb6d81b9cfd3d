"""A model served by real worker processes, driven from a test: the supervisor's loop on a thread."""

from __future__ import annotations

import queue
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeops.agent.cgroups import Groups
from edgeops.agent.channel import Load
from edgeops.agent.loop import Loop
from edgeops.agent.serving import ModelServing
from edgeops.agent.settings import ServingRules
from edgeops.contracts.deployment import SelfTestFigures
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.telemetry import ModelWindow
from edgeops.releases.bundles import Bundle

WITHIN_S = 60.0


# Requests wait for a worker however long it takes to load on a busy machine; tests of the limit have one of their own.
DEFAULT_RULES = ServingRules(wait_s=60.0)


class ServingRig:
    """`ModelServing` with what it says kept in a queue.

    Args:
        rules: What the site wants of it.
        groups: Where workers get control groups.
    """

    def __init__(self, rules: ServingRules = DEFAULT_RULES, groups: Groups | None = None) -> None:
        self.loop = Loop()
        self.said: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.windows: list[ModelWindow] = []
        self._folder = tempfile.TemporaryDirectory()
        self.serving = ModelServing(self.loop, self, [0], Path(self._folder.name) / "model.sock", rules, groups)
        self._thread = threading.Thread(target=self.loop.run, daemon=True)
        self._thread.start()

    def do(self, action: Callable[[ModelServing], None]) -> None:
        """Run an action on the loop's thread, and wait for it."""
        done = threading.Event()
        self.loop.post(lambda: (action(self.serving), done.set())[0])
        assert done.wait(WITHIN_S)

    def expect(self, what: str) -> Any:
        """Wait for something to be said; skip what else is said until then."""
        while True:
            said, value = self.said.get(timeout=WITHIN_S)
            if said == what:
                return value

    def serve(self, bundle: Bundle, release: str = "1.0.0") -> None:
        """Serve a bundle, and wait until it does."""
        self.do(lambda serving: serving.serve(load_of(bundle, release)))
        self.expect("serves")

    def swap(self, bundle: Bundle, release: str) -> SelfTestFigures:
        """Self-test a candidate and let it take over."""
        self.do(lambda serving: serving.try_out(load_of(bundle, release)))
        figures: SelfTestFigures = self.expect("tested")
        self.do(lambda serving: serving.promote())
        self.expect("serves")
        return figures

    @property
    def url(self) -> str:
        return self.serving.endpoint

    @property
    def socket(self) -> str:
        return f"unix:{self.serving.socket_path}"

    @property
    def pid(self) -> int:
        current = self.serving._current
        assert current is not None
        return current.process.pid

    def counted_to_the_end(self) -> list[ModelWindow]:
        """Serve no more, and return all that was ever counted: a worker tells it in parts, every few seconds."""
        self.do(lambda serving: serving.stop())
        self._wait_ended()
        return self.windows

    def _wait_ended(self) -> None:
        ended = threading.Event()

        def look() -> None:
            if self.serving.ended:
                ended.set()
            else:
                self.loop.after(0.02, look)

        self.loop.post(look)
        assert ended.wait(WITHIN_S)

    def close(self) -> None:
        self.do(lambda serving: serving.close())
        self._wait_ended()
        self.loop.post(self.loop.stop)
        self._thread.join()
        self._folder.cleanup()

    def arriving(self, share: float) -> None:
        self.said.put(("arriving", share))

    def building(self, for_s: float) -> None:
        self.said.put(("building", for_s))

    def tested(self, figures: SelfTestFigures) -> None:
        self.said.put(("tested", figures))

    def test_failed(self, error: EdgeopsError) -> None:
        self.said.put(("test_failed", error))

    def serves(self) -> None:
        self.said.put(("serves", None))

    def damaged(self, error: EdgeopsError) -> None:
        self.said.put(("damaged", error))

    def crashed(self, how: str) -> None:
        self.said.put(("crashed", how))

    def alive(self) -> None:
        self.said.put(("alive", None))

    def busy(self, for_s: float) -> None:
        """Not told here."""

    def counted(self, window: ModelWindow) -> None:
        self.windows.append(window)
        self.said.put(("counted", window))


def load_of(bundle: Bundle, release: str) -> Load:
    return Load(directory=str(bundle.directory), release=release, digest=bundle.digest, ram_mib=2048)
