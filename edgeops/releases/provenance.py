"""The statement of where a release comes from: made and signed when it is published, verified whenever it is read."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping

from edgeops import __version__
from edgeops.contracts.bundle import AgentManifest
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.provenance import (
    BUILD_TYPE,
    BUILDER_PREFIX,
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    BuildDefinition,
    Builder,
    Metadata,
    Provenance,
    Resource,
    RunDetails,
    Statement,
)
from edgeops.contracts.release import Release
from edgeops.releases.materials import Part


def statement(
    release: Release, parts: Iterable[Part], others: Mapping[str, str], *, fleet: str, run: str = ""
) -> Statement:
    """Return what can be said of a release's making. Pure.

    Args:
        release: The release.
        parts: Its bundles with their evidence.
        others: More files of it, target path → hex SHA-256: the bill of materials.
        fleet: Whose key signs.
        run: Address of the run that made it, as its publisher says.
    """
    parts = tuple(parts)
    told = {part.target.profile: part.evidence for part in parts if part.evidence is not None}
    files = {
        (name, sha256)
        for evidence in told.values()
        if evidence.handed_over is not None
        for name, sha256 in evidence.handed_over.files.items()
    }
    ended = max((evidence.created_at_s for evidence in told.values()), default=None)
    return Statement(
        subject=(
            *(Resource(name=part.target.path, digest={"sha256": part.target.sha256}) for part in parts),
            *(Resource(name=path, digest={"sha256": sha256}) for path, sha256 in sorted(others.items())),
        ),
        predicate=Provenance(
            build_definition=BuildDefinition(
                build_type=BUILD_TYPE,
                external_parameters={
                    "model": release.model,
                    "version": release.version,
                    "profiles": {part.target.profile: _asked(part) for part in parts},
                },
                internal_parameters={
                    "hosts": {
                        profile: {
                            "arch": one.host.arch,
                            "cpu": one.host.cpu,
                            "python": one.host.python,
                            "tools": one.host.tools,
                        }
                        for profile, one in told.items()
                    }
                },
                resolved_dependencies=tuple(
                    Resource(uri=f"file:{name}", digest={"sha256": sha256}) for name, sha256 in sorted(files)
                ),
            ),
            run_details=RunDetails(
                builder=Builder(id=BUILDER_PREFIX + fleet, version={"edgeops": __version__}),
                metadata=Metadata(invocation_id=run, finished_on="" if ended is None else _moment(ended)),
            ),
        ),
    )


def check(found: Statement, release: Release, others: Mapping[str, str], *, what: str) -> None:
    """Check that a statement is provenance of exactly this release's files. Pure.

    Raises:
        EdgeopsError: E-TRUST-TARGET; it is another kind of statement, or of other files.
    """
    if (found.type_, found.predicate_type) != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise EdgeopsError("E-TRUST-TARGET", f"{what} is a {found.predicate_type[:100]!r} of {found.type_[:100]!r}")
    subjects = {one.name: one.digest.get("sha256", "") for one in found.subject}
    wanted = {target.path: target.sha256 for target in release.targets} | dict(others)
    if subjects != wanted:
        odd = sorted(name for name in {*subjects, *wanted} if subjects.get(name) != wanted.get(name))
        raise EdgeopsError("E-TRUST-TARGET", f"{what} is not of these files: {', '.join(odd)[:300]}")


def _asked(part: Part) -> dict[str, str]:
    if isinstance(part.manifest, AgentManifest):
        return {"bundle": part.target.digest}
    told = None if part.evidence is None else part.evidence.handed_over
    return {
        "bundle": part.target.digest,
        "candidate": part.manifest.scheme,
        "handover": "" if told is None else told.digest,
    }


def _moment(at_s: float) -> str:
    return datetime.datetime.fromtimestamp(at_s, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
