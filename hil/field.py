"""A throwaway fleet of one device: the bundle under test and its neighbours as signed releases, on sticks.

A rig proves the bytes of a bundle, not the keys of a fleet: the digest that a device checks is the same in every fleet.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgeops.contracts.bundle import BundleManifest
from edgeops.contracts.enrolment import BrokerAddress, EnrolmentToken, EnrolRequest, EnrolResponse, OfflineAnswer
from edgeops.contracts.wire import decode, encode
from edgeops.releases import assemble
from edgeops.releases.bundles import Bundle, open_bundle, seal
from edgeops.releases.export import export
from edgeops.releases.publish import publish
from edgeops.trust.authority import FleetAuthority
from edgeops.trust.founding import make_fleet

FLEET = "hil"
DEVICE = "board"
BEFORE, TESTED = "1.0.0", "2.0.0"
# Nobody listens there: a board of this fleet is spoken to by its local commands alone.
_NOWHERE = BrokerAddress(host="127.0.0.1", port=9, tls=True)


class Stick(NamedTuple):
    """A release as a file for a device without network, and its bundle."""

    version: str
    file: Path
    bundle: Bundle


class Field:
    """The fleet's keys and its releases.

    Args:
        folder: A new folder.
        bundle: The bundle under test.
        before: The bundle that devices run now; None: the tested one under another name.

    Raises:
        EdgeopsError: E-BUNDLE-DAMAGED or E-BUNDLE-INVALID.
    """

    def __init__(self, folder: Path, bundle: Path, before: Path | None = None) -> None:
        self._folder = folder
        self.home = folder / "home"
        self.tested = open_bundle(bundle)
        self.model = self.tested.manifest.model
        self._publisher = make_fleet(self.home, FLEET)
        self._authority = FleetAuthority.load(self.home / "ca")
        self._before = open_bundle(before) if before is not None else self._renamed("before")

    @property
    def before(self) -> Stick:
        """What the board runs first."""
        return self._stick(BEFORE, self._before)

    @property
    def candidate(self) -> Stick:
        """What is tested."""
        return self._stick(TESTED, self.tested)

    def after(self, number: int) -> Stick:
        """Return a release that follows it: the tested bundle under another name, to update to while power fails."""
        return self._stick(f"3.{number}.0", self._renamed(f"after-{number}"))

    def token(self) -> str:
        """Return what the board needs to trust this fleet."""
        root = self._publisher.root_bytes()
        return EnrolmentToken(
            server="https://127.0.0.1:9",
            fleet=FLEET,
            ca_sha256=self._authority.ca_sha256,
            root_sha256=_sha256(root),
            secret="none",  # noqa: S106  nobody asks for it: the answer below needs none
        ).to_text()

    def answer(self, request: bytes) -> bytes:
        """Answer the board's request to join.

        Raises:
            EdgeopsError: E-WIRE-MALFORMED or E-ENROLL; it is no request.
        """
        asked = decode(request, EnrolRequest, what="the board's request")
        certificate = self._authority.issue_device(asked.csr_pem.encode(), DEVICE)
        response = EnrolResponse(
            fleet=FLEET,
            connection=DEVICE,
            certificate_pem=certificate.decode(),
            ca_pem=self._authority.ca_pem.decode(),
            broker=_NOWHERE,
            artifacts_url="https://127.0.0.1:9",
            profile=asked.profile,
        )
        return encode(OfflineAnswer(response=response, root_json=self._publisher.root_bytes().decode()))

    def _stick(self, version: str, bundle: Bundle) -> Stick:
        file = self._folder / f"{version}.edgeops"
        if not file.exists():
            assemble.create(self.home, [bundle.directory], version=version)
            publish(self.home, self.model, version)
            export(self.home, self.model, version, file)
        return Stick(version, file, bundle)

    def _renamed(self, name: str) -> Bundle:
        """Return the tested bundle under another scheme's name: it answers alike, and has a digest of its own."""
        target = self._folder / f"bundle-{name}"
        if not target.exists():
            shutil.copytree(self.tested.directory, target)
            manifest: BundleManifest = msgspec.structs.replace(
                self.tested.manifest, scheme=f"{self.tested.manifest.scheme}-hil-{name}"
            )
            return seal(target, manifest)
        return open_bundle(target)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
