"""Finds device profiles in every directory that the plugin door knows, resolves `extends`, and checks every key."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgeops import plugins
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.names import check_name
from edgeops.contracts.profile import Profile, Runtime

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MAX_BYTES = 64 << 10
_VERSION = re.compile(r"[0-9]+(\.[0-9]+){0,3}")


def names() -> list[str]:
    """Return the names of all profiles, sorted."""
    return sorted(_files())


def load(name: str) -> Profile:
    """Return a profile by name.

    Raises:
        EdgeopsError: E-PROFILE-UNKNOWN; there is none. E-PROFILE-INVALID; its file has a wrong key or value.
    """
    path = _files().get(name)
    if path is None:
        raise EdgeopsError(
            "E-PROFILE-UNKNOWN", f"no device profile {name!r}; there are {', '.join(names())}", "edgeops profile list"
        )
    return check(path)


def check(path: Path) -> Profile:
    """Read one profile file, with the values of those that it extends.

    Raises:
        EdgeopsError: E-PROFILE-INVALID; unreadable, or a wrong key or value, named. E-PROFILE-UNKNOWN; it extends a
            profile that is not there.
    """
    tables = _resolve(path, ())
    try:
        profile = msgspec.convert(tables, Profile)
        check_name(profile.name, "profile")
    except (msgspec.ValidationError, EdgeopsError) as error:
        raise EdgeopsError("E-PROFILE-INVALID", f"{path}: {error}", "See docs/reference/profiles.md.") from error
    problem = _problem(profile, path)
    if problem is not None:
        raise EdgeopsError("E-PROFILE-INVALID", f"{path}: {problem}", "See docs/reference/profiles.md.")
    return profile


def _problem(profile: Profile, path: Path) -> str | None:
    """Return what single keys cannot show to be wrong, or None."""
    if profile.name != path.stem:
        return f"name is {profile.name!r}, the file's is {path.stem!r}"
    if (profile.status == "unsupported") != (profile.reason is not None):
        return "`reason` goes with status `unsupported`, and with no other"
    if profile.status == "supported" and not profile.runtimes:
        return "no runtime: nothing can be served"
    figures = {
        "cpu.cores": profile.cpu.cores,
        "cpu.clock_mhz": profile.cpu.clock_mhz,
        "memory.ram_mib": profile.memory.ram_mib,
        "serving.threads": profile.serving.threads,
        "budgets.latency_p95_ms": profile.budgets.latency_p95_ms,
        "budgets.size_mib": profile.budgets.size_mib,
        "budgets.peak_memory_mib": profile.budgets.peak_memory_mib,
    }
    for key, value in figures.items():
        if value is not None and not 0 < value < float("inf"):
            return f"{key} is {value}, it must be positive"
    if profile.serving.threads > profile.cpu.cores:
        return f"serving.threads is {profile.serving.threads}, the board has {profile.cpu.cores} cores"
    if outside := [cpu for cpu in profile.serving.affinity if not 0 <= cpu < profile.cpu.cores]:
        return f"serving.affinity names CPU {outside[0]}, the board has 0 to {profile.cpu.cores - 1}"
    names = [runtime.name for runtime in profile.runtimes]
    if len(set(names)) != len(names):
        return f"runtimes: one appears twice in {', '.join(names)}"
    return next((found for found in map(_runtime_problem, profile.runtimes) if found is not None), None)


def _runtime_problem(runtime: Runtime) -> str | None:
    if not runtime.precisions:
        return f"runtime {runtime.name!r} has no precisions"
    if len(set(runtime.precisions)) != len(runtime.precisions):
        return f"runtime {runtime.name!r}: a precision appears twice"
    if not _VERSION.fullmatch(runtime.runtime_min):
        return f"runtime {runtime.name!r}: runtime_min is {runtime.runtime_min!r}, not a version such as 1.18.0"
    if runtime.name == "onnxruntime" and not (runtime.onnx_ir_max and runtime.onnx_opset_max):
        return "runtime 'onnxruntime' needs onnx_ir_max and onnx_opset_max: what its oldest version reads"
    return None


@functools.cache
def _files() -> Mapping[str, Path]:
    found: dict[str, Path] = {}
    for point in plugins.found("edgeops.profiles"):
        directory = plugins.load("edgeops.profiles", point)()
        for path in sorted(Path(directory).glob("*.toml")):
            other = found.setdefault(path.stem, path)
            if other != path:
                raise EdgeopsError("E-PROFILE-INVALID", f"{path} and {other} have one name", "Rename one of them.")
    return found


def _resolve(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """Return a file's tables merged over those of the profile that it extends."""
    if path in above:
        chain = " → ".join(step.stem for step in (*above, path))
        raise EdgeopsError("E-PROFILE-INVALID", f"profiles extend each other in a circle: {chain}", "Break the circle.")
    tables = _read(path)
    parent = tables.get("extends")
    if parent is None:
        return tables
    try:
        name = check_name(str(parent), "extends")
    except EdgeopsError as error:
        raise EdgeopsError("E-PROFILE-INVALID", f"{path}: {error.what}", "Name a profile.") from error
    sibling = path.with_name(f"{name}.toml")
    parent_path = sibling if sibling.exists() else _files().get(name)
    if parent_path is None:
        raise EdgeopsError(
            "E-PROFILE-UNKNOWN", f"{path}: extends {parent!r}, which is not there", "edgeops profile list"
        )
    inherited = _resolve(parent_path, (*above, path))
    if inherited.get("status") == "unsupported":
        inherited = {key: value for key, value in inherited.items() if key not in ("status", "reason")}
    return _merge(inherited, tables)


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay tables over others: tables merge key by key, everything else is replaced whole."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise EdgeopsError("E-PROFILE-INVALID", f"{path} is larger than {_MAX_BYTES} bytes", "A profile is short.")
        with path.open("rb") as source:
            return tomllib.load(source)
    except OSError as error:
        raise EdgeopsError("E-PROFILE-INVALID", f"{path}: {error.strerror}", "Name a readable TOML file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EdgeopsError("E-PROFILE-INVALID", f"{path}: {error}", "Correct the TOML.") from error
