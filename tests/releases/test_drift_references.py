"""What the bundles of a release were compiled with, read from the signed repository alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from adder_bundles import MODEL, PROFILE, small_bundle

from edgeops.contracts.drift import histograms_of
from edgeops.contracts.errors import EdgeopsError
from edgeops.releases import assemble, catalog
from edgeops.releases.publish import publish
from edgeops.trust.founding import make_fleet
from edgeops.trust.publisher import Publisher


def test_references_come_from_signed_bundles_and_damage_is_noticed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    make_fleet(home, "demo")
    bundle = small_bundle(tmp_path / "bundle")
    assemble.create(home, [bundle.directory], version="1.0.0")
    release = publish(home, MODEL, "1.0.0")
    publisher = Publisher(home)
    found = catalog.drift_references(publisher, release)
    assert found == {PROFILE: bundle.manifest.drift}
    named = dict(histograms_of(found[PROFILE]))
    assert named["input x"] == bundle.manifest.drift.inputs["x"].counts  # type: ignore[union-attr]
    assert {name.split()[0] for name in named} == {"input", "output", "confidence", "classes"}
    path = release.targets[0].path
    file = publisher.target_file(path, publisher.targets()[path])
    whole = file.read_bytes()
    for damaged in (whole[:-30], whole.replace(b'"adder"', b'"addex"', 1), b""):
        file.write_bytes(damaged)
        with pytest.raises(EdgeopsError) as caught:
            catalog.drift_references(publisher, release)
        assert caught.value.code == "E-TRUST-TARGET"
