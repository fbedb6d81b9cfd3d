"""How long the registry keeps what devices said. Totals, generations, what rigs answered and the audit log are
kept for good."""

from __future__ import annotations

from sqlalchemy import delete

from edgeops.control import commands
from edgeops.control.database import Database
from edgeops.control.ingest import history, rollups
from edgeops.control.models import AskedMeasurement, EnrolmentTokenRow, ProgressEvent, RequestKey
from edgeops.control.telemetry_models import TelemetryWindow

WINDOWS_S = 30 * 86400.0
PROGRESS_S = 90 * 86400.0
TOKENS_S = 90 * 86400.0
REQUEST_KEYS_S = 86400.0
MEASUREMENTS_S = 365 * 86400.0


def prune(database: Database, now_s: float) -> None:
    """Remove what is past its time: telemetry windows, progress steps, dead tokens, idempotency keys, measurements and
    commands.

    Windows that are not fresh any more are summed up by device before, and spans of sums become larger ones, in
    transactions of bounded size.

    Raises:
        EdgeopsError: The database cannot be used; what was not done yet is done the next time.
    """
    while _sum_up(database, now_s) == history.MAX_SUMMED or _compact(database, now_s) == rollups.MAX_ENLARGED:
        continue
    with database.write() as session:
        session.execute(delete(TelemetryWindow).where(TelemetryWindow.received_at_s < now_s - WINDOWS_S))
        session.execute(delete(ProgressEvent).where(ProgressEvent.received_at_s < now_s - PROGRESS_S))
        session.execute(delete(EnrolmentTokenRow).where(EnrolmentTokenRow.expires_at_s < now_s - TOKENS_S))
        session.execute(delete(AskedMeasurement).where(AskedMeasurement.expires_at_s < now_s - MEASUREMENTS_S))
        session.execute(delete(RequestKey).where(RequestKey.at_s < now_s - REQUEST_KEYS_S))
        commands.prune(session, now_s)


def _sum_up(database: Database, now_s: float) -> int:
    with database.write() as session:
        return history.sum_up(session, now_s)


def _compact(database: Database, now_s: float) -> int:
    with database.write() as session:
        return rollups.compact(session, now_s)
