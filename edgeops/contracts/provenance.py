"""Where a release comes from: an in-toto statement with SLSA provenance, signed as a statement of its own.

Source: in-toto attestation framework, Statement v1 and DSSE payload type; SLSA v1.0, provenance predicate.
"""

from __future__ import annotations

from typing import Any

import msgspec

from edgeops.contracts.wire import Wire

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
BUILD_TYPE = "urn:edgeops:build:compile:v1"
BUILDER_PREFIX = "urn:edgeops:fleet:"


class Resource(Wire, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """An artifact by its digests: `name` for a subject, `uri` for what something was made from."""

    digest: dict[str, str]
    name: str = ""
    uri: str = ""


class BuildDefinition(Wire, frozen=True, kw_only=True, rename="camel"):
    """What was asked for.

    Args:
        build_type: What the parameters mean: `BUILD_TYPE`.
        external_parameters: `model`, `version`, and `profiles`: profile → digests of hand-over and bundle, candidate.
        internal_parameters: `hosts`: profile → architecture, processor and tools of the machine that compiled.
        resolved_dependencies: The files of the hand-overs.
    """

    build_type: str
    external_parameters: dict[str, Any]
    internal_parameters: dict[str, Any] = {}
    resolved_dependencies: tuple[Resource, ...] = ()


class Builder(Wire, frozen=True, kw_only=True, rename="camel"):
    """Who vouches for it: the fleet whose key signs, and the version of edgeops that wrote it."""

    id: str
    version: dict[str, str] = {}


class Metadata(Wire, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Which run: an address that the publisher named, and when the last compile ended (RFC 3339); empty: not known."""

    invocation_id: str = ""
    finished_on: str = ""


class RunDetails(Wire, frozen=True, kw_only=True, rename="camel"):
    """How it was made."""

    builder: Builder
    metadata: Metadata = Metadata()
    byproducts: tuple[Resource, ...] = ()


class Provenance(Wire, frozen=True, kw_only=True, rename="camel"):
    """The predicate."""

    build_definition: BuildDefinition
    run_details: RunDetails


class Statement(Wire, frozen=True, kw_only=True, rename="camel"):
    """The statement: `subject` are the release's bundles and its bill of materials."""

    subject: tuple[Resource, ...]
    predicate: Provenance
    predicate_type: str = PREDICATE_TYPE
    type_: str = msgspec.field(default=STATEMENT_TYPE, name="_type")
