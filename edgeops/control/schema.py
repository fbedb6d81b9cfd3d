"""The registry's form: every table, whichever module declares it. Who copies or compares all of them asks here."""

from __future__ import annotations

from sqlalchemy import MetaData

from edgeops.control import telemetry_models  # noqa: F401  it declares its tables
from edgeops.control.models import Base

SCHEMA: MetaData = Base.metadata
