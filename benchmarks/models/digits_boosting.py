"""Gradient boosting on scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path

from benchmarks.models import digits
from benchmarks.models.folder import SEED


def make(folder: Path) -> None:
    """Write the hand-over."""
    from sklearn.ensemble import GradientBoostingClassifier

    digits.make(folder, "digits-boosting", GradientBoostingClassifier(n_estimators=30, random_state=SEED))
