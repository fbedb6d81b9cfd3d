"""Records a registry of today's form as SQL text, in the middle of a rollout. Run it as a script."""

from __future__ import annotations

import sqlite3
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from alembic.migration import MigrationContext
from registry_fleet import add_devices, obey_all, open_registry, release

from edgeops.control.rollout import manage
from edgeops.control.rollout.execute import advance
from edgeops.control.rollout.policy import Gates, Policy
from edgeops.control.rollout.selection import Selection

NOW = 1_000_000.0


def main() -> None:
    """Write `registries/REVISION.sql`."""
    with tempfile.TemporaryDirectory() as folder:
        database = open_registry(Path(folder))
        add_devices(database, 3)
        policy = Policy(groups=("34%", "100%"), gates=Gates(timeout_s=100))
        manage.create(database, release("1.0.0"), policy, Selection(), actor="admin", now_s=NOW, start=True)
        advance(database, 1, NOW)
        obey_all(database, NOW)
        with database._engine.connect() as connection:
            revision = MigrationContext.configure(connection).get_current_revision()
        database.close()
        raw = sqlite3.connect(Path(folder) / "control.sqlite")
        text = "\n".join(raw.iterdump()) + "\n"
        raw.close()
    target = Path(__file__).parent / "registries" / f"{revision}.sql"
    target.parent.mkdir(exist_ok=True)
    target.write_text(text)


if __name__ == "__main__":
    main()
