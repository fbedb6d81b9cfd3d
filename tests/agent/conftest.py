"""Small real bundles, made with onnx, and what the agent's tests share."""

from __future__ import annotations

import pytest
from adder_bundles import small_bundle

from edgeops.releases.bundles import Bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that adds 1 to each of four numbers. Do not change it: copy it."""
    return small_bundle(tmp_path_factory.mktemp("bundle") / "plus-one", add=1.0)
