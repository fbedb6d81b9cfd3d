"""scikit-learn estimators and pipelines, through skl2onnx: cut at the probabilities, what they decide is left out."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from edgeops.contracts.errors import EdgeopsError
from edgeops.intake.exported import ML_OPSET, OPSET, Exported, ExportedOutput, Tensors, cannot_export, needs, type_name

INPUT = "features"
# Operators that only onnxruntime has, where plain ones say the same.
_REPLACED = {"LinearClassifier", "LinearRegressor", "Normalizer", "Scaler"}
# Types of tensors in ONNX: float32 and float64; int64.
_REAL, _WHOLE = (1, 11), (7,)


def export_sklearn(estimator: Any, example: Tensors) -> Exported:
    """Export a fitted estimator or pipeline.

    Args:
        estimator: A classifier with `predict_proba` or `decision_function`, a regressor, a detector of outliers, a
            clusterer, a mixture, or a transformer.
        example: One sample as the estimator takes it, float32 [1, features], by any name.

    Raises:
        EdgeopsError: E-DEPENDENCY; skl2onnx is missing. E-HANDOVER-OBJECT; not fitted, or it gives no numbers.
            E-HANDOVER-EXPORT; skl2onnx does not take it.
    """
    try:
        import skl2onnx
        from sklearn.exceptions import NotFittedError
        from sklearn.utils.validation import check_is_fitted
    except ImportError as error:
        raise needs("skl2onnx", "sklearn", error) from error
    try:
        check_is_fitted(estimator)
    except (NotFittedError, TypeError) as error:
        raise EdgeopsError("E-HANDOVER-OBJECT", f"{type_name(estimator)} is not fitted", "Fit it first.") from error
    classes = _classes(estimator)
    gives = _gives(estimator, bool(classes))
    last = estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator
    if gives.kind == "logits" and len(classes) > 2 and getattr(last, "decision_function_shape", "ovr") == "ovo":
        raise EdgeopsError(
            "E-HANDOVER-OBJECT",
            f"{type_name(last)} scores pairs of classes, not classes",
            "Set decision_function_shape='ovr'; it need not be fitted again.",
        )
    (values,) = example.values()
    if values.ndim != 2:
        raise EdgeopsError(
            "E-DATA-SHAPE",
            f"{type_name(estimator)} takes rows of features, a sample has shape {list(values.shape[1:])}",
            "Give samples as [n, features].",
        )
    model = _only(_converted(skl2onnx, estimator, values.astype(np.float32), gives), gives.name, gives.numbers)

    def run(feeds: Tensors) -> Tensors:
        answer = np.asarray(_asked(getattr(estimator, gives.method), feeds[INPUT]))
        if gives.kind == "classes":
            return {gives.name: answer.astype(np.int64)}
        if gives.kind == "logits" and answer.ndim == 1:
            answer = np.stack((-answer, answer), axis=1)  # one score for two classes: above 0 it is the second
        return {gives.name: answer.reshape(len(answer), -1) if answer.ndim < 2 else answer}

    return Exported(
        suffix="onnx",
        data=model.SerializeToString(deterministic=True),
        inputs=(INPUT,),
        outputs=(
            ExportedOutput(gives.name, gives.kind, tuple(map(str, classes)) if _one_each(model, classes) else ()),
        ),
        run=run,
        source=f"{type_name(estimator)} of scikit-learn {importlib.metadata.version('scikit-learn')}, "
        f"exported by skl2onnx {skl2onnx.__version__}",
        classes=classes,
    )


def _asked(ask: Callable[[Any], Any], values: Any) -> Any:
    try:
        return ask(values)
    except ValueError:
        return ask(values.astype(np.float64))  # k-means takes only what it was fitted with


class _Gives(NamedTuple):
    """What an estimator is asked, and what its answer is: of which name and kind, with real numbers or whole ones."""

    method: str
    name: str
    kind: str
    numbers: bool = True


_PROBABILITIES = _Gives("predict_proba", "probabilities", "probabilities")


def _classes(estimator: Any) -> tuple[Any, ...]:
    found = getattr(estimator, "classes_", ())
    if isinstance(found, list) or (isinstance(found, np.ndarray) and found.ndim != 1):
        raise EdgeopsError(
            "E-HANDOVER-OBJECT",
            f"{type_name(estimator)} answers {len(found)} questions at once",
            "Hand over one estimator for each of them.",
        )
    return tuple(np.asarray(found).tolist())


def _gives(estimator: Any, classifies: bool) -> _Gives:
    """Say what is asked of an estimator.

    Raises:
        EdgeopsError: E-HANDOVER-OBJECT; it gives no numbers.
    """
    from sklearn.base import is_clusterer, is_outlier_detector

    ways = [_Gives("predict", "values", "values"), _Gives("transform", "values", "values")]
    if classifies:
        ways = [_PROBABILITIES, _Gives("decision_function", "scores", "logits")]
    elif is_outlier_detector(estimator):
        ways = [_Gives("decision_function", "scores", "values")]
    elif is_clusterer(estimator):
        ways = [_Gives("predict", "cluster", "classes", numbers=False)]
    elif hasattr(estimator, "predict_proba"):
        ways = [_PROBABILITIES]  # of the components of a mixture
    found = next((way for way in ways if hasattr(estimator, way.method)), None)
    if found is None:
        raise EdgeopsError(
            "E-HANDOVER-OBJECT",
            f"{type_name(estimator)} gives neither probabilities nor values",
            "Hand over a classifier, a regressor, a detector of outliers, a clusterer or a transformer; one that "
            "can be asked about new samples.",
        )
    return found


def _converted(skl2onnx: Any, estimator: Any, values: Any, gives: _Gives) -> Any:
    last = estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator
    plain: dict[str, list[dict[str, bool]]] = {
        "probabilities": [{"zipmap": False}],
        "logits": [{"zipmap": False, "raw_scores": True}, {"raw_scores": True}, {"zipmap": False}],
    }
    failures: list[Exception] = []
    # An option that an estimator does not have is refused; so is an operator that nothing replaces.
    for options in (*plain.get(gives.kind, []), None):
        for replaced in (_REPLACED, None):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    model = skl2onnx.to_onnx(
                        estimator,
                        initial_types=[(INPUT, skl2onnx.common.data_types.FloatTensorType([None, values.shape[1]]))],
                        options=None if options is None else {id(last): options},
                        black_op=replaced,
                        target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
                    )
            # Its converters raise what their estimators' attributes make of them.
            except (RuntimeError, ValueError, TypeError, NameError, AttributeError, KeyError, IndexError) as error:
                failures.append(error)
                continue
            if _tensors(model.graph, _REAL if gives.numbers else _WHOLE):
                return model
            failures.append(ValueError(f"its {gives.name} are no tensor"))
    raise cannot_export(estimator, "skl2onnx", failures[0])


def _tensors(graph: Any, types: tuple[int, ...]) -> list[str]:
    """Return the outputs that are tensors of one of these types."""
    return [str(item.name) for item in graph.output if item.type.tensor_type.elem_type in types]


def _only(model: Any, name: str, numbers: bool = True) -> Any:
    """Return the model with one output, by another name, and what it needs.

    It is the last one with real numbers, or the first with whole ones: what numbers decide is the reader's work.
    """
    import onnx

    own = (_tensors(model.graph, _REAL) or [str(model.graph.output[-1].name)])[-1]
    if not numbers:
        own = _tensors(model.graph, _WHOLE)[0]
    found = onnx.utils.Extractor(model).extract_model([INPUT], [own])
    del found.opset_import[:]
    found.opset_import.extend(model.opset_import)
    if own != name:
        found.graph.node.append(onnx.helper.make_node("Identity", [own], [name]))
        found.graph.output[0].name = name
        if not any(item.domain in ("", "ai.onnx") for item in found.opset_import):
            found.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    used = {node.domain for node in found.graph.node}
    for opset in [item for item in found.opset_import if item.domain not in used and item.domain]:
        found.opset_import.remove(opset)
    found.ir_version = min(model.ir_version, 8)
    return found


def _one_each(model: Any, classes: tuple[Any, ...]) -> bool:
    """Whether the output has a value per class: two classes may share one score."""
    sizes = model.graph.output[0].type.tensor_type.shape.dim
    return bool(classes) and len(sizes) > 0 and sizes[-1].dim_value in (0, len(classes))
