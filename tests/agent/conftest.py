"""Small real bundles, and real workers that serve them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from adder_bundles import small_bundle
from serving_rig import ServingRig

from edgeops.releases.bundles import Bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that adds 1 to each of four numbers. Do not change it: copy it."""
    return small_bundle(tmp_path_factory.mktemp("bundle") / "plus-one", add=1.0)


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that adds 2."""
    return small_bundle(tmp_path_factory.mktemp("bundle") / "plus-two", add=2.0)


@pytest.fixture
def rig() -> Iterator[ServingRig]:
    """An endpoint that nothing serves yet."""
    rig = ServingRig()
    yield rig
    rig.close()


@pytest.fixture(scope="module")
def served(bundle: Bundle) -> Iterator[ServingRig]:
    """An endpoint that serves `bundle` 1.0.0."""
    rig = ServingRig()
    rig.serve(bundle)
    yield rig
    rig.close()
