"""`edgeops measure`: what it prints of bundles, and how it ends where one does not answer as it should."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from edgeops.cli import root
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import Source
from edgeops.contracts.measurement import Measurements
from edgeops.contracts.wire import decode
from edgeops.releases.bundles import Bundle, open_bundle, pack, seal


def test_figures_of_a_folder_and_of_a_file(bundle: Bundle, tmp_path: Path):
    packed = tmp_path / "small.edgeops"
    pack(open_bundle(bundle.directory), packed)
    given = ["measure", str(bundle.directory), str(packed), "--runs", "7", "--name", "desk"]
    done = CliRunner().invoke(root, [*given, "--json"])
    assert done.exit_code == 0, done.output
    found = decode(done.stdout, Measurements, what="answer")
    assert (found.source, found.device, found.threads) == (Source.MEASURED_HOST, "desk", 1)
    assert [one.digest for one in found.bundles] == [bundle.digest] * 2
    for one in found.bundles:
        assert one.measured is not None
        assert one.measured.latency.runs == 7
        assert one.runtime_version
    text = CliRunner().invoke(root, given).stdout
    assert text.startswith("measured on this host: desk, ")


def test_a_bundle_that_answers_wrongly_is_told_apart_and_the_others_are_measured(bundle: Bundle, tmp_path: Path):
    wrong = Path(shutil.copytree(bundle.directory, tmp_path / "wrong"))
    for path in (wrong / "golden").iterdir():
        array = np.load(path)
        if array.dtype.kind == "f":
            np.save(path, array + 1)
    (wrong / "manifest.json").unlink()
    seal(wrong, bundle.manifest)
    done = CliRunner().invoke(root, ["measure", str(wrong), str(bundle.directory), "--json"])
    assert isinstance(done.exception, EdgeopsError)
    assert (done.exception.code, done.exception.exit_status) == ("E-MEASURE", 3)
    first, second = json.loads(done.stdout)["bundles"]
    assert first["measured"] is None
    assert first["failure"].startswith("E-SELFTEST-GOLDEN")
    assert second["measured"]["golden_vectors"] > 0
