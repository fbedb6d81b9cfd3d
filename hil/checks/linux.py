"""The product's own conformance on a board with an agent: measured, installed, updated, cut and asked."""

from __future__ import annotations

import random
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from edgeops.contracts.errors import ERROR_CODES, EdgeopsError
from edgeops.contracts.measurement import Measured, Measurements
from edgeops.contracts.rigs import CheckResult, Figures
from edgeops.contracts.wire import decode
from edgeops.releases.bundles import open_bundle
from hil.agent_on_board import AgentOnBoard, Asking, error_of
from hil.boards.protocol import LinuxBoard
from hil.checks import accuracy
from hil.checks.cuts import cut_during
from hil.checks.plan import Effort, Found, Say, Subject, failed, judged, passed, skipped
from hil.checks.sequence import Step, run_steps
from hil.field import Field

_MIB = 1 << 20
_FLIPPED_BIT = 0x10


class LinuxChecks:
    """All checks of one board, in their order; those that need what failed before are skipped.

    Args:
        board: Off, or on.
        subject: What is tested.
        effort: How much.
        timing: Whether latency is judged.
        folder: A new folder of this machine for releases.
        say: Hears what goes on.
    """

    def __init__(
        self, board: LinuxBoard, subject: Subject, effort: Effort, *, timing: bool, folder: Path, say: Say
    ) -> None:
        self._board, self._subject, self._effort, self._timing, self._say = board, subject, effort, timing, say
        self._bundle = open_bundle(subject.bundle)
        self._manifest = self._bundle.manifest
        self._field = Field(folder, subject.bundle, subject.before)
        self._agent = AgentOnBoard(board, self._field)
        self._measured: Measured | None = None
        self._update_s = 5.0
        self._random = random.Random(self._bundle.digest)  # noqa: S311  moments of power cuts, repeatable

    def run(self) -> Iterator[CheckResult]:
        """Make all checks; yield each result as it is there."""
        steps = [
            Step("boot", self._boot, True), Step("size", self._size), Step("golden", self._golden),
            Step("latency", self._latency), Step("memory", self._memory), Step("install", self._enrol, True),
            Step("update", self._update, True), Step("accuracy", self._accuracy), Step("rollback", self._rollback),
            Step("corrupted-download", self._corrupted), Step("power-cut", self._power_cut), Step("soak", self._soak),
        ]  # fmt: skip
        yield from run_steps(steps, lambda name: self._say(f"{self._board.name}: {name}"), self._effort.only)

    # Without the agent

    def _boot(self) -> Found:
        start_s = time.monotonic()
        self._board.power_on()
        took_s = time.monotonic() - start_s
        version = self._agent.edgeops("--version")
        return passed(f"it answers, with {version.out.decode().strip()}", boot_s=round(took_s, 2))

    def _size(self) -> Found:
        size_mib = sum(entry.length for entry in self._manifest.files.values()) / _MIB
        most = self._manifest.budgets.size_mib
        artifact_mib = self._manifest.files[self._manifest.artifact].length / _MIB
        said = f"the artifact takes {artifact_mib:.3f} MiB" + (f", the budget is {most:.3f}" if most else "")
        figures: Figures = {
            "artifact_mib": round(artifact_mib, 4),
            "bundle_mib": round(size_mib, 4),
            "budget_mib": most,
        }
        return judged(most is None or artifact_mib <= most, said, "E-SELFTEST-BUDGET", **figures)

    def _golden(self) -> Found:
        place = self._board.put(self._bundle.directory, "bundle")
        done = self._agent.edgeops("measure", place, "--runs", str(self._effort.runs), "--json", check=False)
        try:
            found = decode(done.out, Measurements, what="measurements of the board")
        except EdgeopsError:
            raise error_of(done, "measure") from None
        (figures,) = found.bundles
        if figures.measured is None:
            code = figures.failure.partition(":")[0]
            return failed(figures.failure, code if code in ERROR_CODES else "E-MEASURE")
        self._measured = figures.measured
        return passed(
            f"{figures.measured.golden_vectors} golden vectors hold on {figures.measured.provider}",
            vectors=figures.measured.golden_vectors,
            source_min_cosine=figures.measured.source_min_cosine,
            own_max_abs=figures.measured.own_max_abs,
            provider=figures.measured.provider,
            runtime=f"{figures.runtime} {figures.runtime_version}",
            processor=found.processor,
            power_mode=found.power_mode or None,
            clocks=found.clocks or None,
        )

    def _latency(self) -> Found:
        if self._measured is None:
            return skipped("the bundle was not measured")
        got, budget = self._measured.latency, self._manifest.budgets.latency_p95_ms
        figures: Figures = {
            "p50_ms": got.p50_ms,
            "p95_ms": got.p95_ms,
            "runs": got.runs,
            "budget_p95_ms": budget,
        }
        said = f"p50 {got.p50_ms:.3f} ms, p95 {got.p95_ms:.3f} ms" + (f", budget {budget:g} ms" if budget else "")
        if not self._timing:
            return passed(f"{said}; emulated, so shown and not judged", judged=False, **figures)
        return judged(budget is None or got.p95_ms <= budget, said, "E-SELFTEST-BUDGET", judged=True, **figures)

    def _memory(self) -> Found:
        if self._measured is None:
            return skipped("the bundle was not measured")
        peak, budget = self._measured.peak_memory_mib, self._manifest.budgets.peak_memory_mib
        said = f"peak {peak:.0f} MiB, loaded in {self._measured.load_ms:.0f} ms" + (
            f", budget {budget:g} MiB" if budget else ""
        )
        figures: Figures = {
            "peak_mib": round(peak, 1),
            "load_ms": round(self._measured.load_ms, 1),
            "budget_mib": budget,
        }
        if not self._timing:
            return passed(f"{said}; of an emulator too, so shown and not judged", judged=False, **figures)
        return judged(budget is None or peak <= budget, said, "E-SELFTEST-BUDGET", judged=True, **figures)

    # With the agent

    def _enrol(self) -> Found:
        self._agent.enrol()
        self._agent.start()
        start_s = time.monotonic()
        self._agent.bring(self._field.before)
        took_s = time.monotonic() - start_s
        return passed(f"enrolled, and {self._field.before.version} serves", install_s=round(took_s, 2))

    def _update(self) -> Found:
        start_s = time.monotonic()
        with Asking(self._agent) as asking:
            self._agent.bring(self._field.candidate)
        took_s = self._update_s = time.monotonic() - start_s
        figures: Figures = {
            "install_s": round(took_s, 2), "requests": asking.answered, "failed_requests": len(asking.failures),
        }  # fmt: skip
        if asking.failures:
            return failed(f"{len(asking.failures)} requests failed: {asking.failures[0]}", "E-HIL-CHECK", **figures)
        return passed(f"it serves after {took_s:.1f} s; {asking.answered} requests meanwhile, none failed", **figures)

    def _accuracy(self) -> Found:
        handover = self._subject.handover
        if handover is None:
            return skipped("no labelled data was given (--handover)")
        with self._agent.client() as client:
            return accuracy.judge(
                handover,
                self._manifest,
                lambda feeds: client.infer(self._field.model, feeds),
                self._effort,
                self._subject.accuracy,
            )

    def _rollback(self) -> Found:
        self._agent.roll_back()
        self._agent.check_serves(self._field.before)
        self._agent.roll_back()
        self._agent.check_serves(self._field.candidate)
        return passed("back to what it had, and forth again, without network")

    def _corrupted(self) -> Found:
        """One bit of the bundle differs, in a file that is whole otherwise: nothing may change on the device."""
        with tempfile.TemporaryDirectory(prefix="edgeops-hil-") as name:
            damaged = Path(name) / "damaged.edgeops"
            flip_a_bit(self._field.after(0).file, damaged)
            done = self._agent.install(self._board.put(damaged, "damaged.edgeops"))
        if done.status == 0:
            return failed("a damaged release was taken", "E-HIL-CHECK")
        refused = error_of(done, "install")
        self._agent.check_serves(self._field.candidate)
        return passed(f"refused with {refused.code}; what served serves on", refused_with=refused.code)

    def _power_cut(self) -> Found:
        """Cut the power at random moments of updates; whole bundles only, and the last update gets through."""
        allowed = {self._field.candidate.version}
        served: list[str] = []
        for number in range(1, self._effort.cuts + 1):
            stick = self._field.after(number)
            allowed.add(stick.version)
            self._cut_while_installing(self._board.put(stick.file, "after.edgeops"))
            self._board.power_on()
            self._agent.start()
            served.append(self._agent.serving())
            if served[-1] not in allowed:
                return failed(f"after a cut {served[-1]} serves, allowed are {sorted(allowed)}", "E-HIL-CHECK")
            self._agent.check_answer(stick.bundle)
            allowed = {served[-1], stick.version}
        self._agent.bring(self._field.after(self._effort.cuts + 1))
        figures: Figures = {
            "cuts": self._effort.cuts,
            "served_after_cuts": ", ".join(served),
            "by": self._board.cut,
        }
        return passed(f"{self._effort.cuts} cuts survived ({self._board.cut}), then the update went through", **figures)

    def _cut_while_installing(self, place: str) -> None:
        cut_during(
            lambda: self._agent.install(place), self._board.power_off, self._random.uniform(0.0, 1.2 * self._update_s)
        )

    def _soak(self) -> Found:
        if not self._effort.soak_s:
            return skipped("no time was given for it (--soak)")
        with Asking(self._agent) as asking:
            time.sleep(self._effort.soak_s)
        figures: Figures = {
            "seconds": self._effort.soak_s, "requests": asking.answered, "failed_requests": len(asking.failures),
            "slowest_ms": round(asking.slowest_ms, 3),
        }  # fmt: skip
        if asking.failures or not asking.answered:
            why = asking.failures[0] if asking.failures else "no request was answered"
            return failed(f"{len(asking.failures)} requests failed: {why}", "E-HIL-CHECK", **figures)
        return passed(f"{asking.answered} requests in {self._effort.soak_s:g} s, none failed", **figures)


def flip_a_bit(source: Path, target: Path) -> None:
    """Copy an exported release; in the middle of its largest file, which is the bundle, one bit differs."""
    with zipfile.ZipFile(source) as whole, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as damaged:
        largest = max(whole.infolist(), key=lambda info: info.file_size).filename
        for info in whole.infolist():
            data = bytearray(whole.read(info))
            if info.filename == largest:
                data[len(data) // 2] ^= _FLIPPED_BIT
            damaged.writestr(zipfile.ZipInfo(info.filename, info.date_time), bytes(data))
