"""What tests with real boards share: small packages, made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from adder_bundles import PROFILE

from edgeops.flash import payload
from edgeops.profiles import registry

_BUILT: dict[Path, Any] = {}


@pytest.fixture
def one_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' profile without its larger runtimes: a quarter of the packages."""
    real = registry.load
    whole = real(PROFILE)
    small = msgspec.structs.replace(whole, runtimes=tuple(one for one in whole.runtimes if one.name == "onnxruntime"))
    monkeypatch.setattr(registry, "load", lambda name: small if name == PROFILE else real(name))


@pytest.fixture(scope="session")
def payloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for payloads."""
    return tmp_path_factory.mktemp("payloads")


@pytest.fixture
def built_once(monkeypatch: pytest.MonkeyPatch, one_runtime: None, payloads: Path) -> None:
    """The same board gets the same payload: it is resolved and packed for the first test, and kept."""
    real = payload.build

    def build(board: Any, choice: Any, *_: Any) -> Any:
        if payloads not in _BUILT:
            _BUILT[payloads] = real(board, choice, payloads)
        return _BUILT[payloads]

    monkeypatch.setattr(payload, "build", build)
