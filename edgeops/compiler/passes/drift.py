"""Limits of drift: profiles differ in what their artifacts answer, and are resampled in the same way."""

from __future__ import annotations

import msgspec
import numpy as np

from edgeops.compiler.calibration import calibrate, draw
from edgeops.compiler.passes import Outcome, Work
from edgeops.compiler.passes.samples import read_samples


class DriftDraws:
    """Draw the resamples that limits of drift are found by; see `calibration.draw`."""

    tools = ("numpy",)
    requires: frozenset[str] = frozenset({"samples"})
    ensures = frozenset({"draws"})

    def run(self, work: Work) -> Outcome:
        """Parameters: `count`, of samples."""
        drawn = draw(work.parameters["count"])
        for index, picked in enumerate(drawn):
            np.save(work.target / f"{index}.npy", picked, allow_pickle=False)
        return Outcome(frozenset({"draws"}), {"number": len(drawn)})


class DriftLimits:
    """Find the limits of drift for counts per bin of each sample."""

    tools = ("numpy",)
    requires: frozenset[str] = frozenset({"tables"})
    ensures = frozenset({"limits"})

    def run(self, work: Work) -> Outcome:
        """No parameters. Input: `draws`, for as many samples. Notes: `limits`, a `DriftCalibration`."""
        tables = {name: np.asarray(values) for name, values in read_samples(work.source, "tables").items()}
        names = [work.inputs["draws"] / f"{index}.npy" for index in range(work.input_notes["draws"]["number"])]
        drawn = [np.load(name, allow_pickle=False) for name in names]
        return Outcome(frozenset({"limits"}), {"limits": msgspec.to_builtins(calibrate(tables, drawn=drawn))})
