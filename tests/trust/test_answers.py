"""Figures that somebody hands on are believed for the device's own signature, and for nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgeops.contracts.deployment import REPORTED_TYPE
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import FiguresOrigin, Source
from edgeops.contracts.measurement import MeasureAnswer, Measurements
from edgeops.contracts.wire import encode
from edgeops.trust import certificates, envelopes, reported
from edgeops.trust.answers import verified_figures
from edgeops.trust.authority import FleetAuthority
from edgeops.trust.device import DeviceIdentity

NOW_S = 1_800_000_000.0
FOUND = Measurements(
    source=Source.MEASURED_DEVICE, device="pi-1", arch="aarch64", processor="", threads=4, at_s=NOW_S, bundles=()
)
ANSWER = MeasureAnswer(fleet="demo", connection="pi-1", unit="self", id="c1", measurements=FOUND)


class Place:
    """A fleet with two devices."""

    def __init__(self, folder: Path) -> None:
        self.authority = FleetAuthority.create(folder / "ca", "demo", lambda: NOW_S)
        self.devices = {name: self.enrolled(folder / name, name) for name in ("pi-1", "pi-2")}

    def enrolled(self, folder: Path, name: str) -> DeviceIdentity:
        identity = DeviceIdentity.create(folder)
        identity.install(self.authority.issue_device(identity.csr_pem(name), name), self.authority.ca_pem)
        return identity

    def read(self, answer: MeasureAnswer = ANSWER, *, by: str = "pi-1", **changed: Any) -> Any:
        device = self.devices[by]
        given: dict[str, Any] = {
            "envelope": reported.sign(answer, device.signer),
            "certificate_pem": device.certificate_pem,
            "ca_pem": self.authority.ca_pem,
            "fleet": "demo",
            "connection": "pi-1",
        }
        given |= changed
        return verified_figures(given.pop("envelope"), given.pop("certificate_pem"), **given)


def code_of(action: Callable[[], object]) -> str:
    with pytest.raises(EdgeopsError) as caught:
        action()
    return caught.value.code


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_figures_come_with_where_they_are_from(place: Place):
    found, origin = place.read()
    assert found == FOUND
    expected = FiguresOrigin(
        device="pi-1",
        at_s=NOW_S,
        sha256=origin.sha256,
        signed_by=certificates.sha256(place.devices["pi-1"].certificate_pem),
    )
    assert origin == expected
    # Another statement has another digest.
    assert place.read(msgspec.structs.replace(ANSWER, id="c2"))[1].sha256 != origin.sha256


def test_figures_that_the_device_did_not_sign_are_not_believed(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stranger = Place(tmp_path / "stranger")
    first, second = place.devices["pi-1"], place.devices["pi-2"]
    by_another = reported.sign(ANSWER, second.signer)
    speaks_for_another = msgspec.structs.replace(ANSWER, measurements=msgspec.structs.replace(FOUND, device="pi-2"))
    in_future = msgspec.structs.replace(ANSWER, measurements=msgspec.structs.replace(FOUND, at_s=4e9))
    changed = by_another.replace(b"payload", b"payl0ad")
    as_report = envelopes.seal(encode(ANSWER), REPORTED_TYPE, first.signer)
    assert code_of(lambda: place.read(envelope=by_another)) == "E-TRUST-SIGNATURE"
    assert code_of(lambda: place.read(envelope=as_report)) == "E-TRUST-SIGNATURE"
    assert code_of(lambda: place.read(envelope=changed)) == "E-WIRE-MALFORMED"
    assert code_of(lambda: place.read(by="pi-2")) == "E-TRUST-DEVICE"
    assert code_of(lambda: place.read(speaks_for_another)) == "E-TRUST-DEVICE"
    assert code_of(lambda: place.read(msgspec.structs.replace(ANSWER, fleet="other"))) == "E-TRUST-DEVICE"
    assert code_of(lambda: stranger.read(ca_pem=place.authority.ca_pem)) == "E-TRUST-SIGNATURE"
    assert code_of(lambda: place.read(in_future)) == "E-TRUST-EXPIRED"
    # Control: without the look at the signature another device's would be believed.
    monkeypatch.setattr(envelopes.Envelope, "verify", lambda *_: {})
    assert place.read(envelope=by_another)[0] == FOUND


def test_a_device_that_measured_nothing_has_no_figures(place: Place):
    answer = MeasureAnswer(
        fleet="demo", connection="pi-1", unit="self", id="c1", code="E-MEASURE-REFUSED", what="the application is busy"
    )
    assert code_of(lambda: place.read(answer)) == "E-MEASURE-REFUSED"
