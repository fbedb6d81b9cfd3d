"""Alembic's entry: runs the migrations on the connection that `Database.migrate` gives."""

from __future__ import annotations

from alembic import context

from edgeops.control.schema import SCHEMA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SCHEMA,
    render_as_batch=True,
    transactional_ddl=True,
)
context.run_migrations()
