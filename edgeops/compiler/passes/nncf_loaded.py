"""Importing this loads NNCF, and no torch beside it: what the worker of a pass that quantizes with it begins with."""

from edgeops.compiler.passes.nncf_alone import without_torch

with without_torch():
    import nncf  # noqa: F401  a module for its import
