"""What is done with a model on a microcontroller, over its link: install, try out, ask. Runs on the line's thread.

Imported by that thread alone: it needs numpy, which the supervisor does not load otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeops.agent.channel import Load
from edgeops.agent.gateway.line import Cancelled
from edgeops.agent.slots import read_slot
from edgeops.contracts.bundle import BundleManifest
from edgeops.contracts.deployment import SelfTestFigures
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import Latency
from edgeops.contracts.tensors import TensorSpec
from edgeops.releases.blob_signing import RUNTIME, raw_trailer
from edgeops.releases.bundles import open_bundle
from edgeops.runtimes import golden
from edgeops.runtimes.bundle_session import BundleSession
from edgeops.runtimes.protocol import FeedCheck, Tensors
from firmware_bridge import blobs
from firmware_bridge.link import ModelInfo, SmpLink, check_fit

_TRIAL_ENDED = "the device was reset and went back to the model before"


class Installable(NamedTuple):
    """A checked bundle as its device takes it: the blob with its trailer, and how devices name that."""

    manifest: BundleManifest
    directory: Path
    header: blobs.Header
    signed: bytes
    identity: bytes


def read_installable(load: Load) -> Installable:
    """Read a bundle in a slot, with the signature that came with its release.

    Raises:
        EdgeopsError: E-BUNDLE-DAMAGED or E-BUNDLE-INVALID; the bundle. E-MCU-BLOB; it is no blob, or has no signature.
    """
    directory = Path(load.directory)
    bundle = open_bundle(directory, expect_digest=load.digest)
    if bundle.manifest.runtime != RUNTIME:
        raise EdgeopsError("E-BUNDLE-INVALID", f"a bundle for {bundle.manifest.runtime} is none for a microcontroller")
    blob = (directory / bundle.manifest.artifact).read_bytes()
    header = blobs.read(blob)
    trailer = read_slot(directory.parent).trailer
    if not trailer:
        raise EdgeopsError("E-MCU-BLOB", "the release has no signature for this blob", "Publish it again.")
    signed = blob + raw_trailer(trailer)
    return Installable(bundle.manifest, directory, header, signed, blobs.identity(signed))


def run_on_trial(
    link: SmpLink, model: Installable, *, on_progress: Callable[[float], None], cancelled: Callable[[], bool]
) -> None:
    """Bring a model to the device and let it run there, confirmed or not; without effect where it runs.

    An upload goes on where it was cut off.

    Raises:
        EdgeopsError: E-MCU-REFUSED; the device refuses it. E-MCU-BLOB; it does not fit. E-TRIAL; it does not stay.
        Cancelled: As asked.
    """
    info = link.model_info()
    if info.hash == model.identity:
        return
    check_fit(model.header, len(model.signed), info)
    if info.trial:
        link.reset()  # while a trial runs no slot is free
        if link.model_info().hash == model.identity:
            return
    if not any(image.hash == model.identity for image in link.images()):

        def progress(done: int, whole: int) -> None:
            if cancelled():
                raise Cancelled
            on_progress(done / whole)

        link.upload(model.signed, on_progress=progress)
    link.test(model.identity)
    link.reset()
    if link.model_info().hash != model.identity:
        raise EdgeopsError("E-TRIAL", f"{_TRIAL_ENDED}: {_why(link.model_info())}")


def keep(link: SmpLink, model: Installable) -> None:
    """Have the device run a model for good; without effect where it does.

    Raises:
        EdgeopsError: As `run_on_trial`.
    """
    run_on_trial(link, model, on_progress=lambda _: None, cancelled=lambda: False)
    confirm(link, model)


def confirm(link: SmpLink, model: Installable) -> None:
    """Have the device keep the model that it runs; without effect where it does.

    Raises:
        EdgeopsError: E-TRIAL; it does not run it any more. E-MCU-REFUSED; the device refuses.
    """
    info = link.model_info()
    if info.hash != model.identity:
        raise EdgeopsError("E-TRIAL", f"{_TRIAL_ENDED}: {_why(info)}")
    if info.trial:
        link.confirm(model.identity)


def end_trial(link: SmpLink, identities: Collection[bytes]) -> None:
    """Have the device return to what it ran before, if one of these models is on trial there."""
    info = link.model_info()
    if info.trial and info.hash in identities:
        link.reset()


def self_test(link: SmpLink, model: Installable, *, install_s: float) -> SelfTestFigures:
    """Replay the golden vectors on the device, and hold its latency and memory against the budgets.

    Raises:
        EdgeopsError: E-SELFTEST-GOLDEN, E-SELFTEST-BUDGET. As `SmpLink.infer`.
    """
    manifest = model.manifest
    session = LinkSession(link, model.header)
    vectors = golden.load(model.directory, manifest)
    found = golden.replay(BundleSession(session, manifest), manifest, vectors)
    latency = _latency(session.durations_ms)
    memory_mib = model.header.ram_size / 2**20
    limits = (
        ("p95 latency in ms", latency.p95_ms, manifest.budgets.latency_p95_ms),
        ("memory in MiB", memory_mib, manifest.budgets.peak_memory_mib),
    )
    for what, measured, limit in limits:
        if limit is not None and measured > limit:
            raise EdgeopsError("E-SELFTEST-BUDGET", f"{what} is {measured:.4g}, the budget is {limit:.4g}")
    return SelfTestFigures(
        vectors=found.vectors,
        worst_output=found.worst_output,
        max_abs_diff=found.max_abs_diff,
        min_cosine=found.min_cosine,
        load_ms=1000 * install_s,
        latency=latency,
        peak_memory_mib=memory_mib,
        provider=link.system_info(),
    )


class Sign(NamedTuple):
    """A sign of life: what ran, the duration of an inference, and the device's counts since its boot."""

    runs: bool
    duration_ms: float
    counts: dict[str, int]
    why_not: str


def ask(link: SmpLink, model: Installable, *, infer: bool) -> Sign:
    """Find out whether a model runs; with `infer`, that it gives its first golden vector.

    Raises:
        EdgeopsError: E-SELFTEST-GOLDEN; it gives something else. As `SmpLink.infer`.
    """
    info = link.model_info()
    if info.hash != model.identity:
        return Sign(False, 0.0, {}, f"{_TRIAL_ENDED}: {_why(info)}")
    duration_ms = 0.0
    if infer:
        session = LinkSession(link, model.header)
        vectors = golden.load(model.directory, model.manifest)
        bound = BundleSession(session, model.manifest)
        got = bound.run({name: values[0] for name, values in vectors.inputs.items()})
        for name, reference in vectors.artifact_outputs.items():
            difference = float(np.abs(got[name].astype(np.float64) - reference[0]).max(initial=0.0))
            if difference > model.manifest.golden.tolerances[name].artifact_max_abs:
                raise EdgeopsError("E-SELFTEST-GOLDEN", f"output {name!r} is {difference:.4g} from its golden vector")
        duration_ms = session.durations_ms[-1]
    return Sign(True, duration_ms, link.statistics("model"), "")


class LinkSession:
    """A model on a device as a `Session`.

    Args:
        link: The device; not closed with the session.
        header: Of the blob that runs there.
    """

    def __init__(self, link: SmpLink, header: blobs.Header) -> None:
        self._link, self._header = link, header
        self._check = FeedCheck(self.inputs)
        self.durations_ms: list[float] = []

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The blob's input."""
        return (self._header.input,)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The blob's output."""
        return (self._header.output,)

    @property
    def provider(self) -> str:
        """What the device calls itself."""
        return self._link.system_info()

    @property
    def arena_bytes(self) -> int | None:
        """The arena that the blob needs."""
        return self._header.arena_size

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Run one inference; see `Session.run`."""
        self._check(feeds)
        found = self._link.infer(np.ascontiguousarray(feeds[self._header.input.name]).tobytes())
        self.durations_ms.append(1000 * found.ticks / found.ticks_hz)
        spec = self._header.output
        if len(found.output) != spec.nbytes:
            raise EdgeopsError("E-RUNTIME-RUN", f"the device gave {len(found.output)} bytes of {spec.nbytes}")
        return {spec.name: np.frombuffer(found.output, spec.dtype).reshape(spec.shape)}

    def close(self) -> None:
        """Leave the device as it is."""


def install_and_test(
    link: SmpLink, model: Installable, *, on_progress: Callable[[float], None], cancelled: Callable[[], bool]
) -> SelfTestFigures:
    """Bring a model to the device on trial and test it there; see `run_on_trial` and `self_test`."""
    began_s = time.monotonic()
    run_on_trial(link, model, on_progress=on_progress, cancelled=cancelled)
    return self_test(link, model, install_s=time.monotonic() - began_s)


def _latency(durations_ms: list[float]) -> Latency:
    p50_ms, p95_ms = (float(value) for value in np.percentile(durations_ms, (50, 95)))
    return Latency(p50_ms=p50_ms, p95_ms=p95_ms, runs=len(durations_ms))


def _why(info: ModelInfo) -> str:
    runs = "nothing" if info.model is None else f"{info.model} {info.version}"
    return f"it runs {runs}, its last trial ended with {info.outcome}"
