"""Fetches what a candidate and the source answered, and has it examined sample by sample."""

from __future__ import annotations

import numpy as np

from edgeops.compiler.examine import Judged, examine
from edgeops.compiler.passes.samples import has_samples, read_samples
from edgeops.compiler.search import Ground, Tried
from edgeops.contracts.examination import Examination


def examined(ground: Ground, one: Tried, *, pictures: bool) -> Examination:
    """Examine a judged candidate on the samples that its quality was judged on.

    Args:
        ground: What it started from.
        one: The candidate.
        pictures: Show the worst samples.
    """
    assert one.judged is not None
    plan, count = ground.plans[one.candidate.runtime], ground.samples.notes["quality"]
    name = plan.metric_output or plan.outputs[0].name
    labelled = has_samples(ground.samples.path, "labels")
    known = plan.metric != "none" and labelled
    judged = Judged(
        output=name,
        kind=next(output.kind for output in plan.outputs if output.name == name),
        metric=plan.metric if known else "none",
        source=np.asarray(read_samples(ground.reference.path, "reference")[name][:count]),
        artifact=np.asarray(read_samples(one.judged.path, "outputs")[name][:count]),
        labels=np.asarray(read_samples(ground.samples.path, "labels")["labels"]) if known else None,
        inputs={key: values[:count] for key, values in read_samples(ground.samples.path, "judged").items()},
    )
    return examine(judged, data="evaluation" if labelled else "calibration", pictures=pictures)
