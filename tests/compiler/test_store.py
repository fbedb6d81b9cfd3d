"""The cache of products: whole or not there, made once, and worth nothing when damaged."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from edgeops.compiler.store import Product, Store

KEY = "ab" + "0" * 62


def make(target: Path) -> Product:
    (target / "sub").mkdir()
    (target / "sub" / "file").write_bytes(b"content")
    return Product(facts=("made",), notes={"n": 1})


def test_product_is_found_again_with_its_files(tmp_path: Path):
    store = Store(tmp_path)
    assert store.lookup(KEY) is None
    stored = store.put(KEY, make)
    assert store.lookup(KEY) == stored
    assert (stored.path / "sub" / "file").read_bytes() == b"content"
    assert stored.size_bytes == 7
    assert store.usage().products == 1


def test_failing_maker_leaves_nothing(tmp_path: Path):
    store = Store(tmp_path)

    def broken(target: Path) -> Product:
        make(target)
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError):
        store.put(KEY, broken)
    assert store.lookup(KEY) is None
    assert [path for path in tmp_path.rglob("*") if path.is_dir() and path != tmp_path / "ab"] == []


@pytest.mark.parametrize("damage", ["missing", "shorter", "record"])
def test_damaged_product_is_made_again(tmp_path: Path, damage: str):
    store = Store(tmp_path)
    stored = store.put(KEY, make)
    if damage == "missing":
        (stored.path / "sub" / "file").unlink()
    elif damage == "shorter":
        (stored.path / "sub" / "file").write_bytes(b"cont")
    else:
        (stored.path / "product.json").write_bytes(b"{")
    assert store.lookup(KEY) is None
    assert (store.put(KEY, make).path / "sub" / "file").read_bytes() == b"content"


def test_same_key_is_made_once_by_many(tmp_path: Path):
    made = []

    def slow(target: Path) -> Product:
        made.append(1)
        time.sleep(0.1)
        return make(target)

    threads = [threading.Thread(target=Store(tmp_path).put, args=(KEY, slow)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_clear_removes_only_what_was_not_used(tmp_path: Path):
    store = Store(tmp_path)
    store.put(KEY, make)
    assert store.clear(unused_s=3600).products == 0
    assert store.lookup(KEY) is not None
    assert store.clear().products == 1
    assert store.lookup(KEY) is None
    assert store.usage().size_bytes == 0
