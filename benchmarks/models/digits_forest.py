"""A random forest on scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path

from benchmarks.models import digits
from benchmarks.models.folder import SEED


def make(folder: Path) -> None:
    """Write the hand-over."""
    from sklearn.ensemble import RandomForestClassifier

    digits.make(folder, "digits-forest", RandomForestClassifier(n_estimators=60, random_state=SEED))
