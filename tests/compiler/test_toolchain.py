"""The isolated converter: whole or not there, and its failures cost a candidate only."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from edgeops.compiler import toolchain
from edgeops.compiler.toolchain import Toolchain
from edgeops.contracts.errors import EdgeopsError

TINY = Toolchain(name="tiny", version="1", requirements=("tqdm==4.70.1",), module="tqdm", purpose="test")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEOPS_CACHE", str(tmp_path))
    return tmp_path


def test_install_is_whole_shared_and_isolated(own_cache: Path):
    assert toolchain.examine(TINY) == "not installed"
    threads = [threading.Thread(target=toolchain.ensure, args=(TINY,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert toolchain.examine(TINY) is None
    assert "No module named 'msgspec'" in str(toolchain.examine(TINY._replace(module="msgspec")))
    assert [path.name for path in (own_cache / "toolchains").iterdir() if not path.name.startswith(".")] == [
        TINY.path.name
    ]


def test_failed_install_leaves_nothing_and_says_so(own_cache: Path):
    wrong = TINY._replace(requirements=("tqdm==0.0.0.dev999",))
    with pytest.raises(EdgeopsError) as caught:
        toolchain.ensure(wrong)
    assert caught.value.code == "E-TOOLCHAIN"
    assert not wrong.installed
    assert not [path for path in (own_cache / "toolchains").iterdir() if path.is_dir()]


def test_other_pins_are_another_toolchain():
    assert TINY.path != TINY._replace(requirements=("tqdm==4.70.0",)).path


def test_unknown_toolchain_is_named():
    with pytest.raises(EdgeopsError) as caught:
        toolchain.get("no-such")
    assert "onnx2tf" in caught.value.what
