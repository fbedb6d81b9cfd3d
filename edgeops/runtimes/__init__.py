"""Runtimes behind one `Backend` protocol, bundles as sessions, golden vectors, and the one measuring harness."""
