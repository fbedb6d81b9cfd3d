"""What the bundles in the field were compiled with, and how far the field is from it."""

from __future__ import annotations

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from edgeops.contracts.bundle import DriftCalibration
from edgeops.contracts.drift import Shift, shifts
from edgeops.control.ingest.rollups import Traffic
from edgeops.control.models import Rollout, RolloutProfile

_CALIBRATION = msgspec.json.Decoder(DriftCalibration)
Place = tuple[str, str, str]


def newest_references(session: Session, model: str | None = None) -> dict[Place, RolloutProfile]:
    """Return the newest rollout's row of each model, version and profile, of one model or of all."""
    numbers = (
        select(Rollout.model, Rollout.version, RolloutProfile.profile, func.max(Rollout.id))
        .join(RolloutProfile, RolloutProfile.rollout_id == Rollout.id)
        .group_by(Rollout.model, Rollout.version, RolloutProfile.profile)
    )
    if model is not None:
        numbers = numbers.where(Rollout.model == model)
    found = {}
    for name, version, profile, number in session.execute(numbers):
        row = session.get(RolloutProfile, (number, profile))
        if row is not None:
            found[name, version, profile] = row
    return found


def shifts_of(row: RolloutProfile, traffic: Traffic) -> list[Shift]:
    """Return how traffic stands to the reference of a rollout's bundle, with its calibrated limits."""
    calibration = None if row.calibration is None else _CALIBRATION.decode(row.calibration)
    return shifts(row.reference, row.reference_samples, traffic.histograms, traffic.sampled, calibration)
