"""What would change on devices: one bundle against another of the same model and profile. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import msgspec

from edgeops.contracts.bundle import BundleManifest
from edgeops.contracts.evidence import CandidateEvidence, Evidence
from edgeops.releases.pieces import Piece
from edgeops.report.gather import form
from edgeops.report.model import Change, Differences, Report

MISSING = "nothing for this profile"


def compared(report: Report, now: Mapping[str, Piece], before: Mapping[str, tuple[str, Piece]]) -> Report:
    """Return a report with what differs from other bundles.

    Args:
        report: The report.
        now: Its own bundles by profile.
        before: What is compared with, by profile: what it is in words, and the bundle.
    """
    return msgspec.structs.replace(
        report,
        profiles=tuple(
            msgspec.structs.replace(
                one,
                differences=differences(before[one.profile][0], before[one.profile][1], now[one.profile])
                if one.profile in before
                else Differences(against=MISSING, same=False, changes=()),
            )
            for one in report.profiles
        ),
    )


def differences(against: str, before: Piece, after: Piece) -> Differences:
    """Compare two bundles.

    Args:
        against: What `before` is, in words.
        before: What devices hold.
        after: What they would get.
    """
    same = before.digest == after.digest
    changes = () if same else (*_changes(before.manifest, after.manifest), *_measured(before, after))
    return Differences(against=against, same=same, changes=tuple(changes))


def _changes(before: BundleManifest, after: BundleManifest) -> Iterator[Change]:
    old, new = _interface(before), _interface(after)
    for what in dict.fromkeys((*old, *new)):
        if old.get(what) != new.get(what):
            yield Change(what=what, before=old.get(what, "none"), after=new.get(what, "none"), breaking=True)
    for what, told in _INSIDE.items():
        if told(before) != told(after):
            yield Change(what=what, before=told(before), after=told(after))
    if before.preprocessing != after.preprocessing:
        changed = sorted(
            name
            for name in {*before.preprocessing, *after.preprocessing}
            if before.preprocessing.get(name) != after.preprocessing.get(name)
        )
        yield Change(what="preprocessing", before="as it was", after=f"changed for {', '.join(changed)}")


_INSIDE: Mapping[str, Callable[[BundleManifest], str]] = {
    "runtime": lambda one: f"{one.runtime}, {one.runtime_min} or newer",
    "precision": lambda one: one.precision.value,
    "made by": lambda one: one.scheme,
    "outputs that are not finite": lambda one: str(one.nan_policy),
}


def _interface(manifest: BundleManifest) -> dict[str, str]:
    """Return what clients see."""
    return {
        **{f"input {spec.name}": form(spec) for spec in manifest.inputs},
        **{f"output {info.tensor.name}": f"{form(info.tensor)}, {info.kind}" for info in manifest.outputs},
        **{f"labels of {info.tensor.name}": ", ".join(info.labels) for info in manifest.outputs if info.labels},
    }


def _measured(before: Piece, after: Piece) -> Iterator[Change]:
    old, new = _own(before), _own(after)
    for what, unit, digits, less_is_better, value in _FIGURES:
        was, now = None if old is None else value(old), None if new is None else value(new)
        if was is None or now is None or f"{was:.{digits}f}" == f"{now:.{digits}f}":
            continue
        yield Change(
            what=what,
            before=f"{was:.{digits}f}{unit}",
            after=f"{now:.{digits}f}{unit}",
            better=(now < was) is less_is_better,
        )
    yield from _tools(before.evidence, after.evidence)


def _metric(one: CandidateEvidence, *, is_error: bool) -> float | None:
    return one.metric.artifact if one.metric is not None and (one.metric.name == "mae") is is_error else None


_FIGURES: tuple[tuple[str, str, int, bool, Callable[[CandidateEvidence], float | None]], ...] = (
    ("size", " KiB", 1, True, lambda one: one.size_bytes / 1024),
    ("latency, median", " ms", 3, True, lambda one: None if one.latency is None else one.latency.p50_ms),
    ("memory, peak", " MiB", 1, True, lambda one: one.peak_memory_mib),
    ("accuracy", "", 4, False, lambda one: _metric(one, is_error=False)),
    ("mean absolute error", "", 6, True, lambda one: _metric(one, is_error=True)),
)


def _tools(before: Evidence | None, after: Evidence | None) -> Iterator[Change]:
    if before is None or after is None:
        return
    for name in sorted({*before.host.tools, *after.host.tools}):
        was, now = before.host.tools.get(name, "none"), after.host.tools.get(name, "none")
        if was != now:
            yield Change(what=f"tool {name}", before=was, after=now)
    old, new = before.handed_over, after.handed_over
    if old is not None and new is not None:
        for name in sorted({*old.files, *new.files}):
            was, now = old.files.get(name, "none"), new.files.get(name, "none")
            if was != now:
                yield Change(what=f"file {name}", before=was[:12], after=now[:12])


def _own(piece: Piece) -> CandidateEvidence | None:
    if piece.evidence is None:
        return None
    return next((one for one in piece.evidence.candidates if one.scheme == piece.manifest.scheme), None)
