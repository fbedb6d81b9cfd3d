"""The door at which devices join, and those that knock."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from registry_fleet import FLEET
from sqlalchemy import select

from edgeops.contracts.enrolment import EnrolmentToken, EnrolRequest
from edgeops.control import enrolment
from edgeops.control.database import Database
from edgeops.control.enrolment import FirstTrust, TokenScope, issue_token
from edgeops.control.models import Device
from edgeops.trust.authority import FleetAuthority
from edgeops.trust.device import DeviceIdentity

NOW = 1_800_000_000.0


class Door(NamedTuple):
    database: Database
    authority: FleetAuthority
    directory: Path

    def token(self, scope: TokenScope = TokenScope(), valid_s: float = 3600.0) -> str:  # noqa: B008
        trust = FirstTrust("https://127.0.0.1:1", FLEET, self.authority.ca_sha256, "0" * 64)
        issued = issue_token(self.database, trust, scope, actor="test", now_s=NOW, valid_s=valid_s)
        return EnrolmentToken.from_text(issued.text).secret

    def knock(self, secret: str, key: str = "k", now_s: float = NOW, **wish: object) -> enrolment.Enrolled:
        identity = DeviceIdentity.create(self.directory / key)
        fields = {"profile": "intel-nuc", "csr_pem": identity.csr_pem("device").decode(), **wish}
        request = EnrolRequest(secret=secret, **fields)  # type: ignore[arg-type]
        return enrolment.enrol(self.database, self.authority, request, now_s=now_s)

    def devices(self) -> list[str]:
        with self.database.read() as session:
            return sorted(session.scalars(select(Device.connection)))
