"""Reads and proves hand-overs: model file, `handover.toml` and sample data, before any work starts."""
