"""Who did what: one line for each change that a person or the control plane made, in the same transaction."""

from __future__ import annotations

from sqlalchemy.orm import Session

from edgeops.control.models import AuditEntry

SYSTEM = "edgeops"


def record(session: Session, *, at_s: float, actor: str, action: str, subject: str, **detail: object) -> None:
    """Add an entry; it is written if and only if the change is."""
    session.add(AuditEntry(at_s=at_s, actor=actor, action=action, subject=subject, detail=detail))
