"""Finds and checks device profiles: `device_profiles/*.toml` and those of plugins."""
