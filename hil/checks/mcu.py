"""The product's own conformance on a microcontroller: a model blob sent, tried, kept, cut and asked over its line."""

from __future__ import annotations

import contextlib
import functools
import random
import time
from collections.abc import Callable, Iterator

import numpy as np

from edgeops.agent.gateway.model import LinkSession
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rigs import CheckResult, Figures
from edgeops.releases.bundles import open_bundle
from edgeops.runtimes import golden
from edgeops.runtimes.bundle_session import BundleSession
from firmware_bridge import blobs
from firmware_bridge.link import SmpLink, check_fit
from hil.boards.protocol import McuBoard, broken
from hil.checks import accuracy
from hil.checks.cuts import cut_during
from hil.checks.plan import Effort, Found, Say, Subject, failed, judged, passed, skipped
from hil.checks.sequence import Step, run_steps

_BACK_WITHIN_S = 30.0
_FLIPPED_BIT = 0x10
# While the power is cut: long enough for a board that lives, short for one that is off.
_SHORT_S = 0.5


def bring(link: SmpLink, blob: bytes, header: blobs.Header) -> None:
    """Send a signed blob, try it with one inference, and keep it.

    Raises:
        EdgeopsError: As `SmpLink`'s requests.
    """
    link.upload(blob)
    link.test(blobs.identity(blob))
    link.reset(back_within_s=_BACK_WITHIN_S)
    link.infer(bytes(header.input.nbytes))
    link.confirm(blobs.identity(blob))


class McuChecks:
    """All checks of one microcontroller, in their order; those that need what failed before are skipped.

    Args:
        board: Off, or on.
        subject: What is tested.
        effort: How much.
        timing: Whether its times are judged.
        say: Hears what goes on.
    """

    def __init__(self, board: McuBoard, subject: Subject, effort: Effort, *, timing: bool, say: Say) -> None:
        self._board, self._subject, self._effort, self._timing, self._say = board, subject, effort, timing, say
        bundle = open_bundle(subject.bundle)
        self._bundle, self._manifest = bundle, bundle.manifest
        self._blob = (bundle.directory / bundle.manifest.artifact).read_bytes()
        self._header = blobs.read(self._blob)
        self._counter = 0
        self._update_s = 10.0
        self._random = random.Random(bundle.digest)  # noqa: S311  moments of power cuts, repeatable

    def run(self) -> Iterator[CheckResult]:
        """Make all checks; yield each result as it is there."""
        steps = [
            Step("boot", self._boot, True), Step("size", self._size, True), Step("install", self._install, True),
            Step("update", self._update, True), Step("golden", self._golden), Step("latency", self._latency),
            Step("memory", self._memory), Step("accuracy", self._accuracy), Step("rollback", self._rollback),
            Step("corrupted-download", self._corrupted), Step("power-cut", self._power_cut), Step("soak", self._soak),
        ]  # fmt: skip
        # A soak looks for just that, and is not begun anew.
        cycled = [step._replace(check=functools.partial(self._awake, step.check)) for step in steps[1:-1]]
        made = [steps[0], *cycled, steps[-1]]
        yield from run_steps(made, lambda name: self._say(f"{self._board.name}: {name}"), self._effort.only)

    def _awake(self, check: Callable[[], Found]) -> Found:
        """Make a check; a board that falls silent in it is power-cycled, and the check is made once more.

        Silent twice, it is what runs on the board. Silent once, nobody knows: the board or its line failed.
        """
        try:
            return check()
        except EdgeopsError as error:
            if error.code != "E-MCU-SILENT":
                raise
            silent = error
        state = self._board.console()
        self._board.power_off()
        self._board.power_on()
        try:
            check()
        except EdgeopsError as error:
            again = "it was power-cycled, answered, and failed again" + (f" (before: {state})" if state else "")
            raise EdgeopsError(error.code, f"{error.what}; {again}", error.next_step) from error
        what = f"{silent.what}; it was power-cycled, and then the check could be made"
        raise broken(self._board.name, what, state)

    def _boot(self) -> Found:
        start_s = time.monotonic()
        self._board.power_on()
        took_s = time.monotonic() - start_s
        with self._board.link() as link:
            firmware, info = link.system_info(), link.model_info()
        self._counter = info.floor
        return passed(f"it answers: {firmware}", boot_s=round(took_s, 2), firmware=firmware, slot=info.slot)

    def _size(self) -> Found:
        with self._board.link() as link:
            info = link.model_info()
        size = len(self._blob) + blobs.TRAILER_SIZE
        figures: Figures = {"blob_bytes": size, "slot_bytes": info.slot, "ram_bytes": self._header.ram_size}
        said = f"{size} of {info.slot} bytes of a slot, {self._header.ram_size} of {info.ram} bytes of RAM"
        try:
            check_fit(self._header, size, info)
        except EdgeopsError as error:
            return failed(error.what, "E-SELFTEST-BUDGET", **figures)
        return passed(said, **figures)

    def _install(self) -> Found:
        with self._board.link() as link:
            self._bring(link, self._next())
        return passed("uploaded, tried, answered and kept")

    def _update(self) -> Found:
        start_s = time.monotonic()
        with self._board.link() as link:
            self._bring(link, self._next())
        took_s = self._update_s = time.monotonic() - start_s
        rate = len(self._blob) / 1024 / took_s
        return passed(f"updated in {took_s:.1f} s", update_s=round(took_s, 2), overall_kib_per_s=round(rate, 2))

    def _golden(self) -> Found:
        with self._asking() as (session, _):
            replayed = golden.replay(session, self._manifest, golden.load(self._bundle.directory, self._manifest))
            provider = session.provider
        return passed(
            f"{replayed.vectors} golden vectors hold on {provider}",
            vectors=replayed.vectors,
            own_max_abs=replayed.max_abs_diff,
            source_min_cosine=replayed.min_cosine,
        )

    def _latency(self) -> Found:
        vectors = golden.load(self._bundle.directory, self._manifest)
        feeds = {name: array[0] for name, array in vectors.inputs.items()}
        with self._asking() as (session, raw):
            for _ in range(self._effort.runs):
                session.run(feeds)
        p50, p95 = (float(value) for value in np.percentile(raw.durations_ms, (50, 95)))
        budget = self._manifest.budgets.latency_p95_ms
        figures: Figures = {"p50_ms": p50, "p95_ms": p95, "runs": len(raw.durations_ms), "budget_p95_ms": budget}
        said = f"p50 {p50:.3f} ms, p95 {p95:.3f} ms by its own clock" + (f", budget {budget:g} ms" if budget else "")
        if not self._timing:
            return passed(f"{said}; emulated, so shown and not judged", judged=False, **figures)
        return judged(budget is None or p95 <= budget, said, "E-SELFTEST-BUDGET", judged=True, **figures)

    def _memory(self) -> Found:
        arena_kib = self._header.arena_size / 1024
        budget = self._manifest.budgets.peak_memory_mib
        said = f"an arena of {arena_kib:.1f} KiB" + (f", budget {budget * 1024:g} KiB" if budget else "")
        figures: Figures = {"arena_kib": round(arena_kib, 2), "ram_bytes": self._header.ram_size}
        holds = budget is None or self._header.ram_size <= budget * (1 << 20)
        return judged(holds, said, "E-SELFTEST-BUDGET", **figures)

    def _accuracy(self) -> Found:
        handover = self._subject.handover
        if handover is None:
            return skipped("no labelled data was given (--handover)")
        with self._asking() as (session, _):
            return accuracy.judge(handover, self._manifest, session.run, self._effort, self._subject.accuracy)

    def _rollback(self) -> Found:
        """A trial that nobody confirms ends with a reset, and what was before runs on."""
        with self._board.link() as link:
            before = link.model_info().version
            blob = self._next()
            link.upload(blob)
            link.test(blobs.identity(blob))
            link.reset(back_within_s=_BACK_WITHIN_S)
            tried = link.model_info()
            link.reset(back_within_s=_BACK_WITHIN_S)
            after = link.model_info()
        if not tried.trial or after.version != before or after.trial:
            return failed(f"{after.version} runs after the trial, expected {before}", "E-HIL-CHECK")
        return passed(f"{tried.version} was tried, not confirmed, and {before} runs again")

    def _corrupted(self) -> Found:
        blob = bytearray(self._next())
        blob[blobs.HEADER_SIZE + (len(self._blob) - blobs.HEADER_SIZE) // 2] ^= _FLIPPED_BIT
        with self._board.link() as link:
            before = link.model_info().version
            try:
                link.upload(bytes(blob))
                link.test(blobs.identity(bytes(blob)))
            except EdgeopsError as error:
                if error.code != "E-MCU-REFUSED":
                    raise
                refused = error.what
            else:
                return failed("a damaged blob was taken", "E-HIL-CHECK")
            if (after := link.model_info().version) != before:
                return failed(f"{after} runs after a damaged upload, expected {before}", "E-HIL-CHECK")
        return passed(f"refused: {refused.rpartition(': ')[2]}; {before} runs on")

    def _power_cut(self) -> Found:
        """Cut the power at random moments of updates; one of the two runs afterwards, whole."""
        served: list[str] = []
        for _ in range(self._effort.cuts):
            with self._board.link() as link:
                before = str(link.model_info().version)
            blob = self._next()
            wanted = blobs.read_trailer(blob[-blobs.TRAILER_SIZE :]).version
            self._cut_while_installing(blob)
            self._board.power_on()
            with self._board.link() as link:
                if link.model_info().trial:
                    link.reset(back_within_s=_BACK_WITHIN_S)
                running = str(link.model_info().version)
            served.append(running)
            if running not in (before, wanted):
                return failed(f"after a cut {running} runs, expected {before} or {wanted}", "E-HIL-CHECK")
            self._golden()
        with self._board.link() as link:
            self._bring(link, self._next())
        figures: Figures = {
            "cuts": self._effort.cuts,
            "ran_after_cuts": ", ".join(served),
            "by": self._board.cut,
        }
        return passed(f"{self._effort.cuts} cuts survived ({self._board.cut}), then an update went through", **figures)

    def _cut_while_installing(self, blob: bytes) -> None:
        def install() -> None:
            with self._board.link(_SHORT_S) as link:
                self._bring(link, blob)

        cut_during(install, self._board.power_off, self._random.uniform(0.0, 1.2 * self._update_s))

    def _soak(self) -> Found:
        if not self._effort.soak_s:
            return skipped("no time was given for it (--soak)")
        vectors = golden.load(self._bundle.directory, self._manifest)
        deadline_s, asked = time.monotonic() + self._effort.soak_s, 0
        with self._asking() as (session, _):
            while time.monotonic() < deadline_s:
                golden.replay(session, self._manifest, vectors)
                asked += vectors.inputs[next(iter(vectors.inputs))].shape[0]
        return passed(f"{asked} inferences in {self._effort.soak_s:g} s, all right", inferences=asked)

    # Steps of checks

    def _next(self) -> bytes:
        """Return the blob under test, signed as the next version."""
        self._counter += 1
        return self._board.sign(self._blob, version=f"{self._counter}.0.0", counter=self._counter)

    def _bring(self, link: SmpLink, blob: bytes) -> None:
        bring(link, blob, self._header)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[tuple[BundleSession, LinkSession]]:
        with self._board.link() as link:
            raw = LinkSession(link, self._header)
            yield BundleSession(raw, self._manifest), raw
