"""Rollouts: what to do next is decided purely (`decide`), and carried out in one transaction (`execute`)."""
