"""Assembles a release draft: one model, one bundle per profile, every byte checked, evidence beside."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from edgeops import durable
from edgeops.contracts.bundle import AgentManifest
from edgeops.contracts.deployment import AGENT_COMPONENT
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import Evidence
from edgeops.contracts.names import check_version
from edgeops.contracts.release import Release, ReleaseTarget, target_path
from edgeops.contracts.wire import decode, encode
from edgeops.profiles import registry
from edgeops.releases import catalog
from edgeops.releases.bundles import Bundle, file_digest, open_bundle, pack, seal_agent, unpack
from edgeops.releases.catalog import DRAFTS, EVIDENCE, RELEASE_NAME, RIG, UNPUBLISHED, draft_dir
from edgeops.releases.pieces import evidence_beside
from edgeops.releases.rig_results import check_result


class _Part(NamedTuple):
    name: str
    profile: str
    digest: str
    version: str = ""


class _Made(NamedTuple):
    model: str
    version: str
    notes: str
    at_s: float


def create(
    home: Path,
    bundles: Sequence[Path],
    *,
    version: str,
    model: str | None = None,
    notes: str = "",
    gated: bool = False,
    rig_results: Sequence[Path] = (),
    now: Callable[[], float] = time.time,
) -> Release:
    """Make a draft: the bundles packed, and the evidence that lies beside them. Nothing is signed or published yet.

    Args:
        home: The fleet's home.
        bundles: Bundle directories or packed files; `evidence.json` beside one is taken if it speaks of its digest.
        version: The release's version.
        model: The model that the bundles must be of; None: whatever they all are.
        notes: For people.
        gated: Every bundle must have evidence that it passed its gates.
        rig_results: What rigs that the fleet trusts have signed of these bundles.
        now: Clock.

    Returns:
        The draft; its number is 0 until it is published.

    Raises:
        EdgeopsError: E-RELEASE-EXISTS; published already, or a draft. E-RELEASE-INVALID; not one model, or two bundles
            for one profile. E-RELEASE-GATE; `gated`, and a bundle failed or has no evidence; or a rig did not pass
            them. E-TRUST-SIGNATURE; the rig is not trusted. E-BUNDLE-DAMAGED or
            E-BUNDLE-INVALID. E-NAME. E-TRUST-KEY; not a fleet's home. E-DISK-FULL or E-DISK-WRITE.
    """
    check_version(version)
    if not bundles:
        raise EdgeopsError("E-RELEASE-INVALID", "a release needs at least one bundle")
    with _making(home) as making:
        parts = [
            _take(path, making, making.parent / f"unpacked-{index}", gated=gated) for index, path in enumerate(bundles)
        ]
        model = _one_model(parts, model)
        for file in rig_results:
            (making / RIG).mkdir(exist_ok=True)
            rig, data = check_result(home, file, frozenset(part.digest for part in parts))
            durable.write_file(making / RIG / f"{rig}.json", data)
        return _finish(home, making, _Made(model, version, notes, now()), parts)


def create_agent(
    home: Path, wheels: Mapping[str, Path], *, notes: str = "", now: Callable[[], float] = time.time
) -> Release:
    """Make a draft of a version of the agent, which is named as its edgeops wheel says.

    Args:
        home: The fleet's home.
        wheels: Profile → folder with the wheels for it: edgeops, and what devices do not have installed.
        notes: For people.
        now: Clock.

    Raises:
        EdgeopsError: E-RELEASE-INVALID; no profile, or the folders are of several versions. E-BUNDLE-INVALID; a folder
            has no wheels, or not exactly one of edgeops. E-PROFILE-UNKNOWN. Otherwise as `create`.
    """
    if not wheels:
        raise EdgeopsError("E-RELEASE-INVALID", "a release needs at least one profile")
    with _making(home) as making:
        parts = [_take_wheels(profile, folder, making) for profile, folder in sorted(wheels.items())]
        versions = sorted({part.version for part in parts})
        if len(versions) != 1:
            raise EdgeopsError("E-RELEASE-INVALID", f"wheels of edgeops {' and '.join(versions)}")
        return _finish(home, making, _Made(AGENT_COMPONENT, versions[0], notes, now()), parts)


@contextmanager
def _making(home: Path) -> Iterator[Path]:
    """Give a folder for a draft, with room for what is temporary beside it."""
    drafts = home / DRAFTS
    durable.make_private_dir(drafts)
    with tempfile.TemporaryDirectory(prefix=".draft-", dir=drafts) as name:
        making = Path(name) / "draft"
        (making / EVIDENCE).mkdir(parents=True)
        yield making


def _finish(home: Path, making: Path, made: _Made, parts: Sequence[_Part]) -> Release:
    """Describe a draft whose bundles lie in `making`, and put it in its place."""
    _check_new(home, made.model, made.version)
    release = Release(
        model=made.model,
        version=made.version,
        number=UNPUBLISHED,
        created_at_s=made.at_s,
        targets=tuple(_target(making, made, part) for part in sorted(parts, key=lambda part: part.profile)),
        notes=made.notes,
    )
    durable.write_file(making / RELEASE_NAME, encode(release))
    durable.fsync_tree(making)
    (home / DRAFTS / made.model).mkdir(exist_ok=True)
    durable.rename(making, draft_dir(home, made.model, made.version))
    return release


def _take_wheels(profile: str, folder: Path, making: Path) -> _Part:
    """Make and pack the bundle of the wheels in a folder."""
    registry.load(profile)
    scratch = making.parent / f"wheels-{profile}"
    (scratch / "wheels").mkdir(parents=True)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    version = next((path.name.split("-")[1] for path in files if path.name.startswith("edgeops-")), None)
    if version is None:
        raise EdgeopsError("E-BUNDLE-INVALID", f"{folder} has no wheel of edgeops", "`pip download edgeops` gets one.")
    for path in files:
        shutil.copyfile(path, scratch / "wheels" / path.name)
    bundle = seal_agent(scratch, AgentManifest(agent=version, profile=profile, files={}))
    pack(bundle, making / f"{profile}.edgeops")
    return _Part(AGENT_COMPONENT, profile, bundle.digest, version)


def _take(path: Path, making: Path, scratch: Path, *, gated: bool) -> _Part:
    """Check a bundle, pack it into the draft, and take its evidence."""
    bundle = open_bundle(path) if path.is_dir() else unpack(path, scratch)
    profile = bundle.manifest.profile
    packed = making / f"{profile}.edgeops"
    if packed.exists():
        raise EdgeopsError("E-RELEASE-INVALID", f"two bundles for profile {profile}", "Name one bundle per profile.")
    # Packed anew: the bytes follow from the bundle alone, whoever packed it before.
    pack(bundle, packed)
    evidence = evidence_beside(path, bundle.digest)
    if gated:
        _check_gates(path, bundle, evidence)
    if evidence is not None:
        durable.write_file(making / EVIDENCE / f"{profile}.json", evidence)
    return _Part(bundle.manifest.model, profile, bundle.digest)


def _check_gates(path: Path, bundle: Bundle, evidence: bytes | None) -> None:
    if evidence is None:
        raise EdgeopsError(
            "E-RELEASE-GATE", f"{path}: no evidence speaks of this bundle", "Give what edgeops compile wrote, unmoved."
        )
    found = decode(evidence, Evidence, what=str(path)).candidates
    one = next((item for item in found if item.scheme == bundle.manifest.scheme), None)
    if one is None or not (one.chosen and one.passed):
        why = "not listed" if one is None else one.reason
        raise EdgeopsError(
            "E-RELEASE-GATE", f"{path}: {bundle.manifest.scheme}: {why}", "Compile until a candidate passes."
        )


def _one_model(parts: Sequence[_Part], model: str | None) -> str:
    models = sorted({part.name for part in parts})
    if len(models) != 1 or model not in (None, models[0]):
        raise EdgeopsError(
            "E-RELEASE-INVALID",
            f"bundles of {', '.join(models)}" + (f", not of {model}" if model else ""),
            "A release has one model.",
        )
    return models[0]


def _check_new(home: Path, model: str, version: str) -> None:
    if any(release.version == version for release in catalog.releases(home, model=model)):
        raise EdgeopsError("E-RELEASE-EXISTS", f"{model} {version} is published", "Choose another version.")
    if draft_dir(home, model, version).exists():
        raise EdgeopsError(
            "E-RELEASE-EXISTS", f"there is a draft {model} {version}", "Publish it, or choose another version."
        )


def _target(making: Path, made: _Made, part: _Part) -> ReleaseTarget:
    packed = file_digest(making / f"{part.profile}.edgeops")
    return ReleaseTarget(
        profile=part.profile,
        digest=part.digest,
        path=target_path(made.model, made.version, part.profile),
        length=packed.length,
        sha256=packed.sha256,
    )
