"""How the registry's tables came to their present form, step by step (Alembic)."""
