"""A release's bill of materials: a CycloneDX ML-BOM of its bundles, the model they come from, data, runtimes and tools.

Source: CycloneDX 1.6, and its model card. The library writes all but the card, which it does not know.
"""

from __future__ import annotations

import datetime
import functools
import json
import uuid
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeops import __version__
from edgeops.contracts.bundle import AgentManifest, BundleManifest
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import Evidence
from edgeops.contracts.release import Release, ReleaseTarget
from edgeops.contracts.tensors import TensorSpec

if TYPE_CHECKING:
    from cyclonedx.model.component import Component
    from cyclonedx.validation.json import JsonStrictValidator

_NAMESPACE = uuid.UUID("6ff3b1d2-5d5c-4f0a-9a6e-2f7c3f1f8e10")
_PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "litert": "ai-edge-litert", "mcu": "tflite-micro"}
_RELEASE = "release"


class Part(NamedTuple):
    """A bundle of the release, with its evidence if it has any."""

    target: ReleaseTarget
    manifest: BundleManifest | AgentManifest
    evidence: Evidence | None


def bill_of_materials(release: Release, parts: Iterable[Part]) -> bytes:
    """Return the bill of materials as JSON; the same release gives the same bytes.

    Raises:
        EdgeopsError: E-DEPENDENCY; the library is not installed. E-INTERNAL; what was written breaks its schema.
    """
    try:
        from cyclonedx.model.bom import Bom, BomMetaData
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.model.tool import ToolRepository
        from cyclonedx.output.json import JsonV1Dot6
    except ImportError as error:
        raise _missing(error) from error
    parts = tuple(parts)
    is_model = all(isinstance(part.manifest, BundleManifest) for part in parts)
    whole = Component(
        name=release.model,
        version=release.version,
        type=ComponentType.MACHINE_LEARNING_MODEL if is_model else ComponentType.APPLICATION,
        bom_ref=_RELEASE,
        description=release.notes or None,
    )
    made = datetime.datetime.fromtimestamp(release.created_at_s, datetime.timezone.utc)
    known_by = (release.model, release.version, *(part.target.sha256 for part in parts))
    serial = uuid.uuid5(_NAMESPACE, "\0".join(known_by))
    bom = Bom(
        serial_number=serial,
        metadata=BomMetaData(timestamp=made, component=whole, tools=ToolRepository(components=_tools(parts))),
    )
    cards: dict[str, dict[str, Any]] = {}
    bundles: list[Component] = []
    shared: dict[str, Component] = {}
    for part in parts:
        bundle = _bundle(release, part)
        bundles.append(bundle)
        sources = _sources(part) | _runtime(part)
        for ref, component in sources.items():
            shared.setdefault(ref, component)
        bom.register_dependency(bundle, [shared[ref] for ref in sources])
        if isinstance(part.manifest, BundleManifest):
            cards[_ref(part)] = _card(part.manifest, part.evidence, part.target.profile)
    for component in (*bundles, *shared.values()):
        bom.components.add(component)
    bom.register_dependency(whole, bundles)
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    for component in document["components"]:
        if component.get("bom-ref") in cards:
            component["modelCard"] = cards[component["bom-ref"]]
    data = json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    check_form(data, what=f"bill of materials of {release.model} {release.version}")
    return data


def check_form(data: bytes, *, what: str) -> None:
    """Check a bill of materials against CycloneDX's schema.

    Raises:
        EdgeopsError: E-DEPENDENCY; the library is not installed. E-WIRE-MALFORMED; it breaks the schema.
    """
    try:
        text = data.decode()
        found = _validator().validate_str(text)
    except UnicodeDecodeError as error:
        raise EdgeopsError("E-WIRE-MALFORMED", f"{what}: {error}") from error
    except ValueError as error:
        raise EdgeopsError("E-WIRE-MALFORMED", f"{what}: not JSON: {error}") from error
    if found is not None:
        raise EdgeopsError("E-WIRE-MALFORMED", f"{what} breaks the schema of CycloneDX 1.6: {str(found)[:400]}")


def check_names(data: bytes, release: Release, *, what: str) -> None:
    """Check that a bill of materials is of this release, and names every one of its bundles by its digest.

    Raises:
        EdgeopsError: E-TRUST-TARGET; it does not.
    """
    document = json.loads(data)
    whole = document.get("metadata", {}).get("component", {})
    hashes = {
        entry.get("content")
        for component in document.get("components", [])
        for entry in component.get("hashes", [])
        if entry.get("alg") == "SHA-256"
    }
    missing = [target.profile for target in release.targets if target.sha256 not in hashes]
    if missing or (whole.get("name"), whole.get("version")) != (release.model, release.version):
        raise EdgeopsError(
            "E-TRUST-TARGET", f"{what} is not of this release; it lacks {', '.join(missing) or 'its name'}"
        )


def _bundle(release: Release, part: Part) -> Component:
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component, ComponentType

    manifest = part.manifest
    if isinstance(manifest, BundleManifest):
        kind, inner = ComponentType.MACHINE_LEARNING_MODEL, [manifest.artifact]
        properties = {
            "precision": manifest.precision.value,
            "scheme": manifest.scheme,
            "runtime": manifest.runtime,
            "runtime-min": manifest.runtime_min,
            "arch": manifest.arch,
        }
    else:
        kind, inner, properties = ComponentType.APPLICATION, sorted(manifest.files), {}
    properties |= {"profile": part.target.profile, "bundle": part.target.digest}
    return Component(
        name=part.target.path,
        version=release.version,
        type=kind,
        bom_ref=_ref(part),
        hashes=_hashes(part.target.sha256),
        properties=[Property(name=f"edgeops:{name}", value=value) for name, value in sorted(properties.items())],
        components=[
            Component(
                name=name,
                type=ComponentType.FILE,
                bom_ref=f"{_ref(part)}/{name}",
                hashes=_hashes(manifest.files[name].sha256),
            )
            for name in inner
        ],
    )


def _sources(part: Part) -> dict[str, Component]:
    """Return what the bundle was made from: the model that was handed over, and the data."""
    from cyclonedx.model.component import Component, ComponentType

    told = None if part.evidence is None else part.evidence.handed_over
    if told is None:
        return {}
    return {
        f"source/{sha256}": Component(
            name=name,
            type=ComponentType.DATA if name.endswith(".npz") else ComponentType.MACHINE_LEARNING_MODEL,
            bom_ref=f"source/{sha256}",
            hashes=_hashes(sha256),
            description=(told.description or None) if name == told.file else None,
        )
        for name, sha256 in sorted(told.files.items())
    }


def _runtime(part: Part) -> dict[str, Component]:
    from cyclonedx.model.component import Component, ComponentScope, ComponentType
    from packageurl import PackageURL

    if not isinstance(part.manifest, BundleManifest):
        return {}
    name = _PACKAGES.get(part.manifest.runtime, part.manifest.runtime)
    ref = f"runtime/{name}"
    return {
        ref: Component(
            name=name,
            type=ComponentType.FRAMEWORK,
            bom_ref=ref,
            scope=ComponentScope.REQUIRED,
            purl=PackageURL("pypi", None, name.lower()),
        )
    }


def _tools(parts: Iterable[Part]) -> list[Component]:
    """Return the tools that compiled, and edgeops itself, which wrote this."""
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    found = {("edgeops", __version__)}
    for part in parts:
        if part.evidence is not None:
            found |= set(part.evidence.host.tools.items())
    return [
        Component(
            name=name,
            version=version,
            type=ComponentType.APPLICATION,
            bom_ref=f"tool/{name}@{version}",
            purl=PackageURL("pypi", None, name.lower(), version),
        )
        for name, version in sorted(found)
    ]


def _card(manifest: BundleManifest, evidence: Evidence | None, profile: str) -> dict[str, Any]:
    card: dict[str, Any] = {
        "modelParameters": {
            "inputs": [{"format": _form(spec)} for spec in manifest.inputs],
            "outputs": [{"format": f"{_form(info.tensor)}, {info.kind}"} for info in manifest.outputs],
        }
    }
    one = None
    if evidence is not None:
        one = next((item for item in evidence.candidates if item.scheme == manifest.scheme), None)
    if one is not None and one.metric is not None:
        metric: dict[str, Any] = {"type": one.metric.name, "value": f"{one.metric.artifact:.6g}", "slice": profile}
        if one.metric.artifact_interval is not None:
            low, high = one.metric.artifact_interval
            metric["confidenceInterval"] = {"lowerBound": f"{low:.6g}", "upperBound": f"{high:.6g}"}
        card["quantitativeAnalysis"] = {"performanceMetrics": [metric]}
    return card


def _hashes(sha256: str) -> list[Any]:
    from cyclonedx.model import HashAlgorithm, HashType

    return [HashType(alg=HashAlgorithm.SHA_256, content=sha256)]


def _ref(part: Part) -> str:
    return f"bundle/{part.target.profile}"


def _form(spec: TensorSpec) -> str:
    return f"{spec.name}: {spec.dtype}{list(spec.shape)}"


@functools.cache
def _validator() -> JsonStrictValidator:
    try:
        from cyclonedx.schema import SchemaVersion
        from cyclonedx.validation.json import JsonStrictValidator
    except ImportError as error:
        raise _missing(error) from error
    return JsonStrictValidator(SchemaVersion.V1_6)


def _missing(error: ImportError) -> EdgeopsError:
    return EdgeopsError(
        "E-DEPENDENCY",
        f"a bill of materials needs cyclonedx-python-lib: {error}",
        "`pip install 'edgeops[sbom]'`, or publish with --no-bom.",
    )
