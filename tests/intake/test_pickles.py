"""Pickles are refused, looked through even where they are trusted, and never run what is no part of a model."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from edgeops.contracts.errors import EdgeopsError
from edgeops.intake import pickles
from edgeops.intake.pickles import load_pickle, named_in

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)


class Calls:
    """An object whose pickle calls something."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._call


def written(value: object, path: Path, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


def refused(path: Path, *, trusted: bool) -> EdgeopsError:
    with pytest.raises(EdgeopsError) as caught:
        load_pickle(path, trusted=trusted)
    return caught.value


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "estimator",
    [
        LogisticRegression(),
        RandomForestClassifier(3, random_state=0),
        GradientBoostingClassifier(n_estimators=3),
        make_pipeline(StandardScaler(), MLPClassifier(hidden_layer_sizes=(4,), max_iter=5)),
    ],
    ids=["linear", "forest", "boosting", "pipeline"],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_real_estimators_are_loaded_where_they_are_trusted(estimator: Any, protocol: int, tmp_path: Path):
    estimator.fit(X, Y)
    path = written(estimator, tmp_path / "model.pkl", protocol)
    assert (load_pickle(path, trusted=True).predict(X) == estimator.predict(X)).all()


def test_no_pickle_is_loaded_that_nobody_trusts(tmp_path: Path):
    path = written(LogisticRegression().fit(X, Y), tmp_path / "model.pkl")
    error = refused(path, trusted=False)
    assert error.code == "E-HANDOVER-PICKLE"
    assert "--trust-pickle" in error.next_step


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (os.system, "touch {mark}"),
        (eval, "open({mark!r}, 'w')"),
        (exec, "open({mark!r}, 'w')"),
        (os.popen, "touch {mark}"),
        (__import__, "subprocess"),
        (getattr, "x"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_trusted_pickle_still_runs_nothing(function: Any, argument: str, protocol: int, tmp_path: Path):
    mark = tmp_path / "mark"
    path = written([1, Calls(function, argument.format(mark=str(mark)))], tmp_path / "model.pkl", protocol)
    error = refused(path, trusted=True)
    assert error.code == "E-HANDOVER-PICKLE"
    assert not mark.exists()


def test_the_attack_works_without_the_look(tmp_path: Path):
    """Negative control: the same bytes do run what they say in a plain unpickler."""
    mark = tmp_path / "mark"
    path = written(Calls(os.system, f"touch {mark}"), tmp_path / "model.pkl")
    pickle.loads(path.read_bytes())
    assert mark.exists()


def test_what_the_look_misses_the_unpickler_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The second line alone: the list of names is empty, and still nothing runs."""
    mark = tmp_path / "mark"
    path = written(Calls(os.system, f"touch {mark}"), tmp_path / "model.pkl")
    monkeypatch.setattr(pickles, "named_in", lambda path: set())
    error = refused(path, trusted=True)
    assert error.code == "E-HANDOVER-PICKLE"
    assert "system" in error.what
    assert not mark.exists()


def test_functions_of_the_packages_of_models_are_not_found(tmp_path: Path):
    """`numpy` and `sklearn` have functions that run code or read files; only classes of theirs are part of models."""
    for function in ("numpy.load", "sklearn.datasets.fetch_openml", "sklearn.utils._testing.check_skip_network"):
        module, _, name = function.rpartition(".")
        text = f"c{module}\n{name}\n(S'x'\ntR.".encode()
        path = tmp_path / "model.pkl"
        path.write_bytes(text)
        assert named_in(path) == {(module, name)}
        assert refused(path, trusted=True).code in ("E-HANDOVER-PICKLE", "E-MODEL-FORMAT")


def test_a_name_from_the_memo_is_seen(tmp_path: Path):
    """STACK_GLOBAL whose strings come from the memo."""
    stream = io.BytesIO()
    stream.write(b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94h\x00h\x01\x93\x8c\x02id\x85R.")
    path = tmp_path / "model.pkl"
    path.write_bytes(stream.getvalue())
    assert named_in(path) == {("os", "system")}
    assert refused(path, trusted=True).code == "E-HANDOVER-PICKLE"


def test_pickles_inside_archives_are_seen(tmp_path: Path):
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/weights.bin", b"\0" * 64)
        archive.writestr("a/data.pkl", pickle.dumps(Calls(os.system, "true"), protocol=2))
    assert ("posix", "system") in named_in(path)


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04", b"no pickle at all", b"PK\x03\x04 no zip", b"\x80\x04\x95\xff\xff\xff"]
)
def test_damaged_files_are_refused(content: bytes, tmp_path: Path):
    path = tmp_path / "model.pkl"
    path.write_bytes(content)
    assert refused(path, trusted=True).code == "E-MODEL-FORMAT"


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = written(LogisticRegression(), tmp_path / "model.pkl")
    monkeypatch.setattr(pickles, "MAX_PICKLE_BYTES", 10)
    assert refused(path, trusted=True).code == "E-MODEL-UNSUPPORTED"
