"""What the control plane needs of the fleet's keys, certificates and releases, in one place."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from securesystemslib.signer import Key

from edgeops import durable
from edgeops.contracts.bundle import DriftReference
from edgeops.contracts.deployment import Desired
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.measurement import MeasureCommand
from edgeops.contracts.release import Release
from edgeops.contracts.rig_runs import RigCommand
from edgeops.contracts.samples import SamplesCommand
from edgeops.control.enrolment import CONTROL_IDENTITY
from edgeops.releases import catalog, rig_results
from edgeops.trust import desired as desired_state
from edgeops.trust import measure_commands, rig_commands
from edgeops.trust import samples as sample_commands
from edgeops.trust.authority import FleetAuthority
from edgeops.trust.publisher import Publisher

log = logging.getLogger(__name__)


class Identity(NamedTuple):
    """Files of a certificate and its key."""

    certificate: Path
    key: Path


class FleetTrust:
    """The keys, certificates and releases of one fleet.

    Args:
        home: The fleet's home.

    Raises:
        EdgeopsError: E-TRUST-KEY; the home is not set up.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._authority = FleetAuthority.load(home / "ca")
        self._publisher = Publisher(home)
        self._edition = self._publisher.edition_mark()
        self._signer = self._publisher.desired_signer()
        self.fleet: str = self._authority.fleet
        self.ca_pem: bytes = self._authority.ca_pem
        self.ca_sha256: str = self._authority.ca_sha256
        self.ca_file = home / "ca" / "ca.pem"

    def issue_device(self, csr_pem: bytes, connection: str) -> bytes:
        """Return a device's certificate for the key of its CSR.

        Raises:
            EdgeopsError: E-ENROLL; the CSR is not acceptable.
        """
        return self._authority.issue_device(csr_pem, connection)

    def server_identity(self, hosts: list[str]) -> Identity:
        """Issue and write a server certificate for these names."""
        certificate_pem, key_pem = self._authority.issue_server(hosts)
        return self._write("server", certificate_pem, key_pem)

    def control_identity(self) -> Identity:
        """Issue and write the control plane's own client certificate."""
        certificate_pem, key_pem = self._authority.issue_client(CONTROL_IDENTITY)
        return self._write("control", certificate_pem, key_pem)

    def worker_identity(self, name: str) -> Identity:
        """Issue and write the client certificate of a worker.

        Args:
            name: Its identity on the broker.
        """
        certificate_pem, key_pem = self._authority.issue_client(name)
        return self._write(name, certificate_pem, key_pem)

    def revocation_list(self, revoked: dict[int, float]) -> bytes:
        """Return a signed list (PEM) of serial numbers and since when each is revoked."""
        return self._authority.revocation_list(revoked)

    def brief_client(self, connection: str) -> tuple[bytes, bytes]:
        """Return a certificate and key (PEM) of a device's name that hold for minutes."""
        return self._authority.issue_brief_client(connection)

    def root_json(self) -> bytes:
        """Return the TUF root that devices start from."""
        return self._publisher.root_bytes()

    def root_sha256(self) -> str:
        """Return its SHA-256."""
        return self._publisher.root_sha256()

    def sign(self, desired: Desired) -> bytes:
        """Return a desired state's signed envelope."""
        self._look_for_another_key()
        return desired_state.issue(desired, self._signer)

    def sign_samples(self, command: SamplesCommand) -> bytes:
        """Return the signed envelope of a wish for samples; the key is that of desired state."""
        self._look_for_another_key()
        return sample_commands.issue(command, self._signer)

    def sign_measure(self, command: MeasureCommand) -> bytes:
        """Return the signed envelope of a wish for figures; the key is that of desired state."""
        self._look_for_another_key()
        return measure_commands.issue(command, self._signer)

    def sign_rig(self, command: RigCommand) -> bytes:
        """Return the signed envelope of a command to a rig; the key is that of desired state."""
        self._look_for_another_key()
        return rig_commands.issue(command, self._signer)

    def rig_keys(self) -> dict[str, Key]:
        """Return the keys of the rigs that the fleet trusts, by name.

        Raises:
            EdgeopsError: E-TRUST-KEY; one cannot be read.
        """
        return rig_results.trusted(self._home)

    def desired_keyid(self) -> str:
        """Return the id of the key that signs desired state now: `edgeops trust rotate` may have changed it."""
        self._look_for_another_key()
        return self._signer.public_key.keyid

    def _look_for_another_key(self) -> None:
        edition = self._publisher.edition_mark()
        if edition == self._edition:
            return
        try:
            self._signer = self._publisher.desired_signer()
        except EdgeopsError as error:
            log.error("the key of desired state could not be read again; the one before signs on: %s", error)
        self._edition = edition

    def releases(self) -> list[Release]:
        """Return the published releases."""
        return catalog.releases(self._home)

    def drift_references(self, release: Release) -> dict[str, DriftReference]:
        """Return what a release's bundles were compiled with, by profile.

        Raises:
            EdgeopsError: E-TRUST-TARGET or E-TRUST-METADATA; the repository is damaged.
        """
        return catalog.drift_references(self._publisher, release)

    def renew(self) -> None:
        """Sign TUF's timestamp and snapshot anew, if they are about to expire."""
        self._publisher.renew()

    def _write(self, name: str, certificate_pem: bytes, key_pem: bytes) -> Identity:
        identity = Identity(self._home / "ca" / f"{name}.pem", self._home / "ca" / f"{name}.key")
        durable.write_file(identity.key, key_pem, mode=0o600)
        durable.write_file(identity.certificate, certificate_pem)
        return identity
