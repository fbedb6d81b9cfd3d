"""scikit-learn estimators and pipelines, through skl2onnx: cut at the probabilities, what they decide is left out."""

from __future__ import annotations

import importlib.metadata
import warnings
from typing import Any

import numpy as np

from edgeops.contracts.errors import EdgeopsError
from edgeops.intake.exported import ML_OPSET, OPSET, Exported, ExportedOutput, Tensors, cannot_export, needs, type_name

INPUT = "features"
# Operators that only onnxruntime has, where plain ones say the same.
_REPLACED = {"LinearClassifier", "LinearRegressor", "Normalizer", "Scaler"}


def export_sklearn(estimator: Any, example: Tensors) -> Exported:
    """Export a fitted estimator or pipeline.

    Args:
        estimator: A classifier with `predict_proba` or `decision_function`, a regressor, or a transformer.
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
    classes = tuple(np.asarray(getattr(estimator, "classes_", ())).tolist())
    method = next((name for name in _methods(bool(classes)) if hasattr(estimator, name)), None)
    if method is None:
        raise EdgeopsError(
            "E-HANDOVER-OBJECT",
            f"{type_name(estimator)} gives neither probabilities nor values",
            "Hand over a classifier, a regressor or a transformer.",
        )
    (values,) = example.values()
    model = _converted(skl2onnx, estimator, values.astype(np.float32), method)
    name = "probabilities" if method == "predict_proba" else "scores" if classes else "values"
    own = _numbers(model.graph)
    model = _only(model, own, name)
    kind = "probabilities" if method == "predict_proba" else "logits" if classes else "values"

    def run(feeds: Tensors) -> Tensors:
        answer = np.asarray(getattr(estimator, method)(feeds[INPUT]))
        return {name: answer.reshape(len(answer), -1) if answer.ndim < 2 else answer}

    return Exported(
        suffix="onnx",
        data=model.SerializeToString(deterministic=True),
        inputs=(INPUT,),
        outputs=(ExportedOutput(name, kind, tuple(map(str, classes)) if _one_each(model, classes) else ()),),
        run=run,
        source=f"{type_name(estimator)} of scikit-learn {importlib.metadata.version('scikit-learn')}, "
        f"exported by skl2onnx {skl2onnx.__version__}",
        classes=classes,
    )


def _methods(classifies: bool) -> tuple[str, ...]:
    return ("predict_proba", "decision_function") if classifies else ("predict", "transform")


def _converted(skl2onnx: Any, estimator: Any, values: Any, method: str) -> Any:
    last = estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator
    plain = (
        [{"zipmap": False}] if method == "predict_proba" else [{"raw_scores": True}] if "decision" in method else [None]
    )
    failures = []
    # An option that an estimator does not have is refused; so is an operator that nothing replaces.
    for options in (*plain, None):
        for replaced in (_REPLACED, None):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return skl2onnx.to_onnx(
                        estimator,
                        initial_types=[(INPUT, skl2onnx.common.data_types.FloatTensorType([None, values.shape[1]]))],
                        options=None if options is None else {id(last): options},
                        black_op=replaced,
                        target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
                    )
            # Its converters raise what their estimators' attributes make of them.
            except (RuntimeError, ValueError, TypeError, NameError, AttributeError, KeyError, IndexError) as error:
                failures.append(error)
    raise cannot_export(estimator, "skl2onnx", failures[0])


def _numbers(graph: Any) -> str:
    """Return the output with real numbers: the one that is no label."""
    floats = (1, 11)
    found = [item.name for item in graph.output if item.type.tensor_type.elem_type in floats]
    return str(found[-1] if found else graph.output[-1].name)


def _only(model: Any, own: str, name: str) -> Any:
    """Return the model with one output, by another name, and what it needs: labels are the reader's work."""
    import onnx

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
