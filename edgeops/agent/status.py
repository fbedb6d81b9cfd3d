"""How a device stands, read from its state directory alone: no network, no lock."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import msgspec

from edgeops import durable
from edgeops.agent.backlog import count_waiting
from edgeops.agent.enrolment import CLOCK_FILE, read_enrolment
from edgeops.agent.slots import Slots
from edgeops.agent.store import ComponentRecord, UnitRecord, is_locked
from edgeops.agent.trust_desk import TrustDesk
from edgeops.contracts.deployment import Desired
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import decode
from edgeops.transport.tuf_fetcher import NoFetcher
from edgeops.trust.time import Clock
from edgeops.trust.tuf_client import TufClient

log = logging.getLogger(__name__)

FACTS_FILE = "agent.json"


def write_facts(root: Path, facts: dict[str, object]) -> None:
    """Write `agent.json`; a full disk costs only this file."""
    try:
        durable.write_file(root / FACTS_FILE, json.dumps(facts, sort_keys=True).encode())
    except EdgeopsError as error:
        log.error("%s", error)


def read_status(root: Path) -> dict[str, Any]:
    """Return how the device stands, as plain values.

    Raises:
        EdgeopsError: E-CONFIG; there is no state directory. E-STATE-CORRUPT; a file of it is damaged.
    """
    if not (root / "lock").exists():
        raise EdgeopsError("E-CONFIG", f"{root} is no agent's state directory", "Name the one that the agent uses.")
    enrolment = read_enrolment(root / "identity")
    unit = _read(root / "unit.json", UnitRecord) or UnitRecord()
    facts = _facts(root)
    parent = root / "components"
    folders = sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []
    return {
        "running": is_locked(root),
        "pid": facts.get("pid"),
        "fleet": enrolment.fleet if enrolment is not None else None,
        "connection": enrolment.connection if enrolment is not None else None,
        "profile": enrolment.profile if enrolment is not None else None,
        "generation": unit.generation,
        "stale_s": stale_s(root),
        "queued_telemetry": count_waiting(root / "queue"),
        "components": [_component(folder, facts) for folder in folders],
    }


def stale_s(root: Path) -> float | None:
    """Return for how long nothing fresh and signed has come to this device, so that nothing may change; None: it has.

    Somebody holds back news, or the server is away.
    """
    clock = Clock(root / "trust" / CLOCK_FILE)
    tuf = TufClient(root / "trust", "", NoFetcher(), clock)
    try:
        accepted = _read(root / "desired.json", Desired)
    except EdgeopsError:
        accepted = None  # the broker tells it again
    return TrustDesk(tuf, clock, fleet="", connection="", profile="").stale_s(accepted)


def _component(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    record = _read(folder / "state.json", ComponentRecord) or ComponentRecord(name=folder.name)
    slots = Slots(folder)
    return {
        "name": record.name,
        "state": str(record.state),
        "generation": record.generation,
        "active": slots.active_slot.release if slots.active_slot is not None else None,
        "active_digest": slots.active_slot.digest if slots.active_slot is not None else None,
        "in_trial": slots.in_trial,
        "fallback": slots.fallback_slot.release if slots.fallback_slot is not None else None,
        "held_reason": record.held_reason,
        "failure": msgspec.to_builtins(record.failure),
        "self_test": msgspec.to_builtins(record.self_test),
        "endpoint": facts.get("endpoints", {}).get(record.name),
        "socket": facts.get("sockets", {}).get(record.name),
    }


def _facts(root: Path) -> dict[str, Any]:
    try:
        facts = json.loads((root / FACTS_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _read(path: Path, kind: type[Any]) -> Any:
    try:
        return decode(path.read_bytes(), kind, what=str(path))
    except FileNotFoundError:
        return None
    except (OSError, EdgeopsError) as error:
        raise EdgeopsError("E-STATE-CORRUPT", f"{path}: {error}", "The agent repairs it at its next start.") from error
