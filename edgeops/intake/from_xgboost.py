"""XGBoost models, through onnxmltools: gradient-boosted trees that run on onnxruntime."""

from __future__ import annotations

import importlib.metadata
import json
import warnings
from typing import Any

import numpy as np

from edgeops.intake.exported import Exported, ExportedOutput, Tensors, cannot_export, needs, type_name
from edgeops.intake.from_sklearn import INPUT, _only

# onnxmltools knows none above it for trees; the compiler brings the model to the runtimes' own.
_OPSET = 15


def export_xgboost(model: Any, example: Tensors) -> Exported:
    """Export a fitted model of XGBoost's scikit-learn interface, or a `Booster`.

    Args:
        model: The model.
        example: One sample, float32 [1, features], by any name.

    Raises:
        EdgeopsError: E-DEPENDENCY; onnxmltools is missing. E-HANDOVER-EXPORT; it does not take the model.
    """
    try:
        import onnxmltools
        import xgboost
        from onnxmltools.convert.common.data_types import FloatTensorType
    except ImportError as error:
        raise needs("onnxmltools", "xgboost", error) from error
    (values,) = example.values()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            converted = onnxmltools.convert_xgboost(
                model, initial_types=[(INPUT, FloatTensorType([None, values.shape[1]]))], target_opset=_OPSET
            )
    # Its converter reads the model's own dump and raises what that makes of it.
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise cannot_export(model, "onnxmltools", error) from error
    booster = isinstance(model, xgboost.Booster)
    classes = _classes_of(model) if booster else ()
    if hasattr(model, "predict_proba"):
        classes = tuple(np.asarray(model.classes_).tolist())
    name, kind = ("probabilities", "probabilities") if classes else ("values", "values")
    found = _only(converted, name)

    def run(feeds: Tensors) -> Tensors:
        given = feeds[INPUT]
        if booster:
            answer = model.predict(xgboost.DMatrix(given))
            if classes and answer.ndim == 1:
                answer = np.stack((1 - answer, answer), axis=1)  # it tells the probability of the second class alone
        else:
            answer = model.predict_proba(given) if classes else model.predict(given)
        return {name: np.asarray(answer, np.float32).reshape(len(given), -1)}

    return Exported(
        suffix="onnx",
        data=found.SerializeToString(deterministic=True),
        inputs=(INPUT,),
        outputs=(ExportedOutput(name, kind, () if booster else tuple(map(str, classes))),),
        run=run,
        source=f"{type_name(model)} of XGBoost {xgboost.__version__}, exported by onnxmltools "
        f"{importlib.metadata.version('onnxmltools')}",
        classes=classes,
    )


def _classes_of(booster: Any) -> tuple[int, ...]:
    """Return the numbers of a booster's classes, if it gives their probabilities; it knows no other names of them."""
    learner = json.loads(booster.save_config())["learner"]
    objective = learner["objective"]["name"]
    if objective == "multi:softprob":
        return tuple(range(int(learner["learner_model_param"]["num_class"])))
    return (0, 1) if objective == "binary:logistic" else ()
