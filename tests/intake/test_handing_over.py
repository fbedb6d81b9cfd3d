"""One call: a trained model becomes a checked, proved hand-over; what cannot be is refused by name."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from sklearn.cluster import DBSCAN, KMeans
from sklearn.ensemble import IsolationForest, RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Perceptron, Ridge, SGDClassifier
from sklearn.mixture import GaussianMixture
from sklearn.multioutput import MultiOutputClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.svm import SVC, LinearSVC, OneClassSVM

import edgeops
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.handover import Cast, Scale
from edgeops.intake import from_file, from_torch
from edgeops.intake.handover import read
from edgeops.testkit.handovers import shapes, shapes_model

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 6))
Y = (X[:, 0] + X[:, 1] > 0).astype(int) + (X[:, 2] > 0.5)
NAMES = np.array(["calm", "fast", "wild"])[Y]
PLAIN = ("", "ai.onnx")


def handed(model: object, samples: object, folder: Path, **more: Any) -> Any:
    return edgeops.handover(model, samples, out=folder / "handover", name="model", **more)


def refused(model: object, samples: object, folder: Path, **more: Any) -> EdgeopsError:
    with pytest.raises(EdgeopsError) as caught:
        handed(model, samples, folder, **more)
    assert list(folder.glob("*")) == [], "something half made was left"
    return caught.value


def domains(folder: Path) -> set[str]:
    return {node.domain for node in onnx.load(folder / "model.onnx").graph.node}


NETWORK = make_pipeline(StandardScaler(), MLPClassifier(hidden_layer_sizes=(8,), max_iter=400, random_state=0))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("model", "targets", "plain", "output", "kind"),
    [
        (NETWORK, Y, True, "probabilities", "probabilities"),
        (make_pipeline(MinMaxScaler(), LogisticRegression()), Y, True, "probabilities", "probabilities"),
        (RandomForestClassifier(5, random_state=0), Y, False, "probabilities", "probabilities"),
        (LinearSVC(), Y, True, "scores", "logits"),
        (make_pipeline(StandardScaler(), Ridge()), X[:, 3], True, "values", "values"),
        (RandomForestRegressor(5, random_state=0), X[:, 3], False, "values", "values"),
        (StandardScaler(), None, True, "values", "values"),
    ],
    ids=["network", "logistic", "forest", "scores", "ridge", "forest-values", "transformer"],
)
def test_an_estimator_is_exported_and_answers_as_before(
    model: Any, targets: Any, plain: bool, output: str, kind: str, tmp_path: Path
):
    """What needs no operators of trees has none of that domain: every runtime can take it."""
    model.fit(X, targets)
    more = {} if targets is None else {"evaluation": (X[:50], targets[:50])}
    done = handed(model, X, tmp_path, **more)
    loaded = read(done.folder)
    assert loaded.digest == done.digest
    assert (domains(done.folder) <= set(PLAIN)) == plain
    (declared,) = loaded.handover.outputs
    assert (declared.name, declared.kind) == (output, kind)
    session = onnxruntime.InferenceSession(done.folder / "model.onnx", providers=["CPUExecutionProvider"])
    method = next(
        name for name in ("predict_proba", "decision_function", "predict", "transform") if hasattr(model, name)
    )
    for row in X[:20].astype(np.float32):
        (got,) = session.run([output], {"features": row[None]})
        np.testing.assert_allclose(got.ravel(), np.ravel(getattr(model, method)(row[None])), rtol=1e-3, atol=1e-4)
    assert {one.output for one in done.agreement} == {output}
    assert all(one.relative < 1e-4 for one in done.agreement)
    if targets is not None:
        assert loaded.handover.evaluation is not None
        assert loaded.handover.evaluation.metric == ("mae" if kind == "values" else "accuracy")


@pytest.mark.parametrize(
    ("model", "targets", "output", "kind", "asked"),
    [
        (SVC(), NAMES, "scores", "logits", "predict"),
        (SVC(), NAMES == "calm", "scores", "logits", "predict"),
        (
            make_pipeline(StandardScaler(), SGDClassifier(random_state=0)),
            NAMES == "calm",
            "scores",
            "logits",
            "predict",
        ),
        (Perceptron(), Y, "scores", "logits", "predict"),
        (IsolationForest(n_estimators=5, random_state=0), None, "scores", "values", "decision_function"),
        (OneClassSVM(), None, "scores", "values", "decision_function"),
        (KMeans(3, n_init=1, random_state=0), None, "cluster", "classes", "predict"),
        (GaussianMixture(3, random_state=0), None, "probabilities", "probabilities", "predict_proba"),
    ],
    ids=[
        "svc",
        "svc of two",
        "sgd of two",
        "perceptron",
        "forest of outliers",
        "svm of outliers",
        "k-means",
        "mixture",
    ],
)
def test_what_classifies_by_scores_finds_outliers_or_clusters_is_exported(
    model: Any, targets: Any, output: str, kind: str, asked: str, tmp_path: Path
):
    """Two classes share one score in scikit-learn: devices get one for each, so that the largest is the answer."""
    model.fit(X, targets)
    done = handed(model, X, tmp_path, **({} if targets is None else {"evaluation": (X[:50], targets[:50])}))
    (declared,) = read(done.folder).handover.outputs
    assert (declared.name, declared.kind) == (output, kind)
    session = onnxruntime.InferenceSession(done.folder / "model.onnx", providers=["CPUExecutionProvider"])
    for row in X[:20].astype(np.float32):
        (got,) = session.run([output], {"features": row[None]})
        if kind == "logits":
            assert got.shape == (1, len(model.classes_))
            got = model.classes_[got.argmax(1)]
            assert (got == model.predict(row[None])).all()
        else:
            wanted = np.ravel(getattr(model, asked)(row[None].astype(np.float64)))
            np.testing.assert_allclose(got.ravel(), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "targets", "said"),
    [
        (RandomForestClassifier(2, random_state=0), np.c_[Y, Y], "answers 2 questions at once"),
        (MultiOutputClassifier(LogisticRegression()), np.c_[Y, Y > 0], "answers 2 questions at once"),
        (SVC(decision_function_shape="ovo"), Y, "scores pairs of classes"),
        (DBSCAN(), None, "neither probabilities nor values"),
    ],
)
def test_estimators_whose_answers_are_none_of_one_question_are_refused(
    model: Any, targets: Any, said: str, tmp_path: Path
):
    error = refused(model.fit(X, targets), X, tmp_path)
    assert error.code == "E-HANDOVER-OBJECT"
    assert said in error.what


def test_true_answers_may_be_the_names_that_labels_give(tmp_path: Path):
    """A model of class numbers, with names of its own for people."""
    names = ["low", "middle", "high", "most"][: len(set(Y))]
    done = handed(
        LogisticRegression().fit(X, Y * 10), X, tmp_path, labels=names, evaluation=(X[:50], [names[y] for y in Y[:50]])
    )
    loaded = read(done.folder)
    assert loaded.evaluation is not None
    assert (loaded.evaluation.labels == Y[:50]).all()


def test_answers_given_as_names_become_class_numbers(tmp_path: Path):
    model = LogisticRegression().fit(X, NAMES)
    done = handed(model, X, tmp_path, evaluation=(X[:50], NAMES[:50]))
    loaded = read(done.folder)
    assert loaded.handover.outputs[0].labels == ("calm", "fast", "wild")
    assert loaded.evaluation is not None
    assert (loaded.evaluation.labels == Y[:50]).all()


def test_an_answer_that_is_no_class_is_refused(tmp_path: Path):
    model = LogisticRegression().fit(X, NAMES)
    error = refused(model, X, tmp_path, evaluation=(X[:2], ["calm", "sleepy"]))
    assert error.code == "E-DATA-VALUES"
    assert "sleepy" in error.what


def test_an_export_that_disagrees_is_refused_with_its_output(tmp_path: Path):
    """Negative control of the proof: the source answers a little otherwise than what skl2onnx made of it."""
    model = LogisticRegression().fit(X, Y)
    honest = model.predict_proba
    model.predict_proba = lambda values: honest(values * 1.01)
    error = refused(model, X, tmp_path)
    assert error.code == "E-HANDOVER-EXPORT"
    assert "output 'probabilities' of sample" in error.what
    assert ", exported 0." in error.what


def test_a_model_of_onnx_is_taken_as_it_is(tmp_path: Path):
    images, labels = shapes(40, seed=3)
    steps = [Cast(), {"step": "normalize", "mean": [127.5], "std": [127.5]}, {"step": "layout", "change": "NHWC->NCHW"}]
    names = ("circle", "square", "cross", "dots")
    more: dict[str, Any] = {"preprocess": steps, "labels": names, "evaluation": (images, labels)}
    onnx.save(shapes_model(), tmp_path / "some.onnx")
    first = edgeops.handover(tmp_path / "some.onnx", images, out=tmp_path / "file", name="shapes", **more)
    second = edgeops.handover(shapes_model(), images, out=tmp_path / "proto", name="shapes", **more)
    assert (first.folder / "model.onnx").read_bytes() == (tmp_path / "some.onnx").read_bytes()
    for one in (first, second):
        loaded = read(one.folder)
        assert loaded.handover.inputs[0].shape == (1, 8, 8, 1)
        assert loaded.handover.inputs[0].dtype == "uint8"
        assert len(loaded.handover.inputs[0].preprocess) == 3
        assert loaded.handover.outputs[0].kind == "probabilities"
        assert loaded.handover.outputs[0].labels == names


def test_external_data_become_part_of_the_one_file(tmp_path: Path):
    (tmp_path / "model").mkdir()
    onnx.save(
        shapes_model(), tmp_path / "model" / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=1024
    )
    images = shapes(8, seed=3)[0].astype(np.float32).transpose(0, 3, 1, 2)
    done = edgeops.handover(tmp_path / "model" / "m.onnx", images, out=tmp_path / "out", name="shapes")
    assert read(done.folder).model.files == ()


def test_external_data_outside_the_folder_are_not_read(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "secret").write_bytes(bytes(1 << 16))
    model = shapes_model()
    tensor = next(item for item in model.graph.initializer if item.name == "w3")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "../secret"), ("offset", "0"), ("length", str(1024 * 4 * 4))):
        tensor.external_data.add(key=key, value=value)
    (tmp_path / "model" / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(EdgeopsError) as caught:
        edgeops.handover(tmp_path / "model" / "m.onnx", np.zeros((4, 1, 8, 8)), out=tmp_path / "out", name="shapes")
    assert caught.value.code in ("E-PATH-ESCAPE", "E-MODEL-FORMAT")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    onnx.save(shapes_model(), tmp_path / "m.onnx")
    size = (tmp_path / "m.onnx").stat().st_size
    images = shapes(4, seed=3)[0].astype(np.float32).transpose(0, 3, 1, 2)
    for limit, refuses in ((size - 1, True), (size, False)):
        monkeypatch.setattr(from_file, "MAX_MODEL_BYTES", limit)
        if refuses:
            with pytest.raises(EdgeopsError) as caught:
                edgeops.handover(tmp_path / "m.onnx", images, out=tmp_path / "out", name="shapes")
            assert caught.value.code == "E-MODEL-UNSUPPORTED"
            assert not (tmp_path / "out").exists()
        else:
            edgeops.handover(tmp_path / "m.onnx", images, out=tmp_path / "out", name="shapes")


def counting_model() -> onnx.ModelProto:
    """y = x + state; the state grows by x."""
    ends = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("x", "state", "y", "stateN")
    }
    nodes = [helper.make_node("Add", ["x", "state"], ["y"]), helper.make_node("Identity", ["y"], ["stateN"])]
    graph = helper.make_graph(nodes, "counts", [ends["x"], ends["state"]], [ends["y"], ends["stateN"]])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_state_has_to_be_said(tmp_path: Path):
    samples = {"x": RNG.normal(size=(9, 2)), "state": RNG.normal(size=(9, 2))}
    error = refused(counting_model(), samples, tmp_path)
    assert error.code == "E-HANDOVER-SHAPE"
    assert "'state': 'stateN'" in error.next_step
    done = handed(counting_model(), samples, tmp_path, states={"state": "stateN"})
    declared = read(done.folder).handover
    assert [spec.state_from for spec in declared.inputs] == [None, "stateN"]
    assert [output.kind for output in declared.outputs] == ["values", "state"]


class Unknown:
    """Some model of somebody."""


@pytest.mark.parametrize(
    ("model", "said", "way"),
    [
        (Unknown(), "Unknown; known are", "Export it to ONNX"),
        ({"weights": 1}, "builtins.dict", "Export it to ONNX"),
        (type("Sequential", (), {"__module__": "keras.models"})(), "keras.models.Sequential", "TFLiteConverter"),
        (type("Booster", (), {"__module__": "lightgbm.basic"})(), "lightgbm.basic.Booster", "convert_lightgbm"),
        (type("CatBoost", (), {"__module__": "catboost.core"})(), "catboost.core.CatBoost", "format='onnx'"),
    ],
)
def test_other_objects_are_refused_by_name_with_what_to_do(model: object, said: str, way: str, tmp_path: Path):
    error = refused(model, X, tmp_path)
    assert error.code == "E-HANDOVER-OBJECT"
    assert said in error.what
    assert way in error.next_step


def test_an_estimator_that_is_not_fitted_is_refused(tmp_path: Path):
    error = refused(LogisticRegression(), X, tmp_path)
    assert error.code == "E-HANDOVER-OBJECT"
    assert "not fitted" in error.what


@pytest.mark.parametrize(
    ("samples", "code"),
    [
        (np.zeros((5, 7)), "E-HANDOVER-OBJECT"),
        (np.zeros((5, 6, 2)), "E-DATA-SHAPE"),
        (np.float32(3), "E-DATA-SHAPE"),
        (np.zeros((0, 6)), "E-DATA-SHAPE"),
        (np.array([["a"]]), "E-DATA-SHAPE"),
        (np.full((3, 6), np.nan), "E-DATA-VALUES"),
        (np.full((3, 6), np.inf), "E-DATA-VALUES"),
    ],
    ids=["too wide", "rank", "scalar", "none", "text", "nan", "inf"],
)
def test_samples_that_do_not_fit_are_refused(samples: Any, code: str, tmp_path: Path):
    error = refused(RandomForestClassifier(3, random_state=0).fit(X, Y), samples, tmp_path)
    assert error.code in (code, "E-HANDOVER-EXPORT", "E-HANDOVER-SHAPE")


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        ({"labels": ["a", "b"]}, "E-HANDOVER-SHAPE", "2 labels for 3 classes"),
        ({"labels": {"other": ["a"]}}, "E-HANDOVER-KEY", "other"),
        ({"preprocess": [{"step": "blur"}]}, "E-HANDOVER-STEP", "blur"),
        ({"preprocess": [{"step": "scale", "by": 0.0}]}, "E-HANDOVER-STEP", "not 0"),
        ({"preprocess": {"other": []}}, "E-HANDOVER-STEP", "other"),
        (
            {"evaluation": (X[:5], Y[:4])},
            "E-DATA-SHAPE",
            "handover/evaluation.npz: array 'labels' has shape [4]; expected 5",
        ),
        ({"evaluation": X}, "E-DATA-SHAPE", "not two things"),
        ({"evaluation": (X, Y, Y)}, "E-DATA-SHAPE", "not two things"),
        ({"budgets": {"intel-nuc": 3}}, "E-HANDOVER-KEY", "budgets"),
        ({"gates": {"accuracy": 1}}, "E-HANDOVER-KEY", "accuracy"),
        ({"states": {"memory": "probabilities"}}, "E-HANDOVER-KEY", "memory"),
        ({"states": {"features": "memory"}}, "E-HANDOVER-KEY", "memory"),
        ({"evaluation": (X[:5, :3], Y[:5])}, "E-DATA-SHAPE", "expected [n, 1, 6]"),
        ({"postprocess": [{"step": "top-k", "k": 4, "give": "classes"}]}, "E-HANDOVER-STEP", "1 to 3"),
    ],
)
def test_what_is_said_wrongly_is_named(more: dict[str, Any], code: str, said: str, tmp_path: Path):
    error = refused(LogisticRegression().fit(X, Y), X, tmp_path, **more)
    assert error.code == code
    assert said in str(error)


def test_integers_get_the_cast_that_alone_is_missing(tmp_path: Path):
    pixels = RNG.integers(0, 255, (80, 6), dtype=np.uint8)
    model = RandomForestClassifier(3, random_state=0).fit(pixels.astype(np.float32), Y[:80])
    done = handed(model, pixels, tmp_path)
    (spec,) = read(done.folder).handover.inputs
    assert (spec.dtype, spec.preprocess) == ("uint8", (Cast(),))
    scaled = LogisticRegression().fit(pixels.astype(np.float32) / 255, Y[:80])
    done = handed(scaled, pixels, tmp_path, preprocess=[Cast(), Scale(by=1 / 255)])
    assert len(read(done.folder).handover.inputs[0].preprocess) == 2


def test_a_hand_over_that_is_there_is_replaced_by_a_proved_one_only(tmp_path: Path):
    first = handed(LogisticRegression().fit(X, Y), X, tmp_path)
    with pytest.raises(EdgeopsError):
        handed(Unknown(), X, tmp_path)
    with pytest.raises(EdgeopsError):
        handed(LogisticRegression().fit(X, Y), X, tmp_path, labels=["a"])
    assert read(first.folder).digest == first.digest
    assert [path.name for path in tmp_path.iterdir()] == ["handover"]
    second = handed(RandomForestClassifier(3, random_state=0).fit(X, Y), X, tmp_path)
    assert read(first.folder).digest == second.digest != first.digest


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path):
    (tmp_path / "handover").mkdir()
    (tmp_path / "handover" / "thesis.txt").write_text("three years")
    with pytest.raises(EdgeopsError) as caught:
        handed(LogisticRegression().fit(X, Y), X, tmp_path)
    assert caught.value.code == "E-CONFIG"
    assert (tmp_path / "handover" / "thesis.txt").read_text() == "three years"


def test_a_folder_that_cannot_be_made_is_an_error_with_a_code(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgeopsError) as caught:
        handed(LogisticRegression().fit(X, Y), X, tmp_path / "file")
    assert caught.value.code == "E-DISK-WRITE"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_pickle_needs_trust(tmp_path: Path):
    model = LogisticRegression().fit(X, Y)
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(model))
    with pytest.raises(EdgeopsError) as caught:
        edgeops.handover(path, X, out=tmp_path / "out", name="model")
    assert caught.value.code == "E-HANDOVER-PICKLE"
    done = edgeops.handover(path, X, out=tmp_path / "out", name="model", trust_pickle=True)
    assert done.digest == edgeops.handover(model, X, out=tmp_path / "again", name="model").digest


def test_weights_alone_are_no_model(tmp_path: Path):
    (tmp_path / "weights.pt").write_bytes(b"PK\3\4")
    with pytest.raises(EdgeopsError) as caught:
        edgeops.handover(tmp_path / "weights.pt", X, out=tmp_path / "out", name="model", trust_pickle=True)
    assert caught.value.code == "E-HANDOVER-OBJECT"
    assert "torch.export.save" in caught.value.next_step


def test_the_call_is_there_and_importing_edgeops_loads_nothing():
    code = (
        "import sys, edgeops\nassert not {'numpy', 'onnx', 'msgspec'} & set(sys.modules), sys.modules\n"
        "assert callable(edgeops.handover)\nassert 'numpy' in sys.modules\n"
        "try:\n    edgeops.nothing\nexcept AttributeError:\n    print('as it should be')"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "as it should be"


# PyTorch and XGBoost are large: their tests are in the exhaustive tier.


@pytest.mark.full
@pytest.mark.parametrize("form", ["module", "program", "file"])
def test_a_torch_module_and_an_exported_program_are_handed_over(form: str, tmp_path: Path):
    torch = pytest.importorskip("torch", reason="torch is in the extra zoo: make test-full installs it")
    images, labels = shapes(40, seed=3)
    torch.manual_seed(0)
    nn = torch.nn
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 4)
    )
    module.train()
    model: Any = module
    more: dict[str, Any] = {}
    if form != "module":
        model = torch.export.export(module.eval(), (torch.zeros(1, 1, 8, 8),))
    if form == "file":
        torch.export.save(model, tmp_path / "model.pt2")
        model, more = tmp_path / "model.pt2", {"trust_pickle": True}
    done = edgeops.handover(
        model, images, out=tmp_path / "out", name="shapes", labels=("a", "b", "c", "d"),
        preprocess=[Cast(), Scale(by=1 / 255), {"step": "layout", "change": "NHWC->NCHW"}],
        postprocess=[{"step": "softmax"}], evaluation=(images, labels), **more,
    )  # fmt: skip
    assert read(done.folder).handover.outputs[0].kind == "probabilities"
    assert all(one.relative < 1e-5 for one in done.agreement)
    assert module.training == (form == "module"), "the caller's module was changed"


@pytest.mark.full
def test_a_module_that_answers_at_random_is_refused(tmp_path: Path):
    torch = pytest.importorskip("torch", reason="torch is in the extra zoo: make test-full installs it")

    class Random(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.nn.functional.dropout(x, 0.5, training=True)

    error = refused(Random(), X.astype(np.float32), tmp_path)
    assert error.code == "E-HANDOVER-EXPORT"
    assert "output 'output'" in error.what


@pytest.mark.full
def test_what_depends_on_values_is_exported_whole_or_refused(tmp_path: Path):
    """A trace of one sample has one branch; where every sample takes it, the proof cannot tell."""
    torch = pytest.importorskip("torch", reason="torch is in the extra zoo: make test-full installs it")

    class Branches(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x if x.sum() > 0 else -x

    class Says(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.cond(x.sum() > 0, lambda x: x * 1.0, lambda x: -x, (x,))

    class Scales(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x / float(x.abs().max()) if x.shape[1] == 6 else x

    positive = np.abs(X).astype(np.float32)
    error = refused(Branches(), positive, tmp_path)
    assert error.code == "E-HANDOVER-EXPORT"
    assert "may depend on values (test_handing_over.py:" in error.what
    for module in (Says(), Scales()):
        done = handed(module, positive, tmp_path)
        session = onnxruntime.InferenceSession(done.folder / "model.onnx", providers=["CPUExecutionProvider"])
        (got,) = session.run(None, {"x": -positive[:1]})
        np.testing.assert_allclose(got, module(torch.from_numpy(-positive[:1])).numpy(), rtol=1e-5)


@pytest.mark.full
def test_without_the_look_at_what_escapes_a_branch_would_be_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The control: a module that turns negative samples round is handed over as one that does nothing."""
    torch = pytest.importorskip("torch", reason="torch is in the extra zoo: make test-full installs it")

    class Branches(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x if x.sum() > 0 else -x

    monkeypatch.setattr(from_torch, "_ESCAPES", "nothing that torch says")
    done = handed(Branches(), np.abs(X).astype(np.float32), tmp_path)
    assert [node.op_type for node in onnx.load(done.folder / "model.onnx").graph.node] == ["Identity"]


@pytest.mark.full
@pytest.mark.parametrize("objective", ["binary:logistic", "multi:softprob"])
def test_a_booster_that_gives_probabilities_gives_one_for_each_class(objective: str, tmp_path: Path):
    xgboost = pytest.importorskip("xgboost", reason="xgboost-cpu is in the extra zoo: make test-full installs it")
    x, y = X.astype(np.float32), Y if objective.startswith("multi") else (Y > 0).astype(int)
    asked = {"objective": objective, "max_depth": 3} | ({"num_class": 3} if objective.startswith("multi") else {})
    model = xgboost.train(asked, xgboost.DMatrix(x, y), 5)
    done = handed(model, x, tmp_path, evaluation=(x[:50], y[:50]))
    loaded = read(done.folder).handover
    assert loaded.outputs[0].kind == "probabilities"
    assert loaded.evaluation is not None
    assert loaded.evaluation.metric == "accuracy"


@pytest.mark.full
def test_a_module_of_several_inputs_and_outputs_keeps_their_names(tmp_path: Path):
    torch = pytest.importorskip("torch", reason="torch is in the extra zoo: make test-full installs it")

    class Two(torch.nn.Module):
        def forward(self, left: Any, right: Any) -> Any:
            return {"sum": left + right, "product": left * right}

    done = handed(Two(), (X, X[:, :1]), tmp_path)
    declared = read(done.folder).handover
    assert [spec.name for spec in declared.inputs] == ["left", "right"]
    assert [output.name for output in declared.outputs] == ["sum", "product"]


@pytest.mark.full
@pytest.mark.parametrize("kind", ["classes", "two", "values", "booster"])
def test_models_of_xgboost_are_handed_over(kind: str, tmp_path: Path):
    xgboost = pytest.importorskip("xgboost", reason="xgboost-cpu is in the extra zoo: make test-full installs it")
    x = X.astype(np.float32)
    if kind in ("classes", "two"):
        targets = Y if kind == "classes" else (Y > 0).astype(int)
        model = xgboost.XGBClassifier(n_estimators=5, max_depth=3).fit(x, targets)
    else:
        model = xgboost.XGBRegressor(n_estimators=5, max_depth=3).fit(x, X[:, 3])
    done = handed(model.get_booster() if kind == "booster" else model, x, tmp_path)
    assert domains(done.folder) - set(PLAIN) == {"ai.onnx.ml"}
    assert all(one.relative < 1e-4 for one in done.agreement)
