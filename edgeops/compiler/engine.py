"""Runs steps through the cache: the key of a step says everything that its product depends on."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from edgeops import plugins
from edgeops.compiler.passes import Pass, Work, refuse
from edgeops.compiler.store import Failure, Product, Store, Stored
from edgeops.contracts.errors import EdgeopsError, Fault
from edgeops.contracts.evidence import Host
from edgeops.contracts.wire import Wire

# Whatever these say changes the bytes or figures of a product.
_CODE = ("compiler", "runtimes", "intake", "contracts")


class Step(Wire, frozen=True, kw_only=True):
    """One pass of a recipe, by name.

    Args:
        name: Entry point in `edgeops.passes`.
        parameters: Plain JSON values.
        inputs: Roles that the pass reads beside its source.
        optional: If it fails, the recipe goes on with its source.
    """

    name: str
    parameters: dict[str, Any] = {}
    inputs: tuple[str, ...] = ()
    optional: bool = False


class Failed(NamedTuple):
    """A recipe that ended early: the step and its reason."""

    step: str
    failure: Failure


def load_pass(name: str) -> Pass:
    """Return a pass by name.

    Raises:
        EdgeopsError: E-PLUGIN.
    """
    found: Pass = plugins.load("edgeops.passes", name)()
    return found


def preloaded(step: Step) -> tuple[str, ...]:
    """Return the modules that a step's worker begins with; none where its pass is not there: the worker says so."""
    try:
        preload = getattr(load_pass(step.name), "preload", None)
    except EdgeopsError:
        return ()
    return () if preload is None else tuple(preload(step.parameters))


def step_key(step: Step, source: Stored, inputs: dict[str, Stored]) -> str:
    """Return the hex digest of everything that the step's product depends on."""
    subject = {
        "pass": step.name,
        "parameters": step.parameters,
        "tools": tool_versions(load_pass(step.name).tools),
        "source": source.product.digest(),
        "inputs": {role: inputs[role].product.digest() for role in step.inputs},
        "host": host_fingerprint(),
        "code": code_digest(),
        "programs": program_versions(getattr(load_pass(step.name), "programs", ())),
    }
    return hashlib.sha256(msgspec.json.encode(subject, order="sorted")).hexdigest()


def run_step(store: Store, step: Step, source: Stored, inputs: dict[str, Stored]) -> Stored:
    """Make a step's product, or take it from the cache. A refusal is a product too: it says why.

    Raises:
        EdgeopsError: E-PLUGIN, E-DEPENDENCY, E-DISK-FULL, E-DISK-WRITE; not the model's fault.
        KeyError: `inputs` lacks a role of the step.
    """
    found_pass = load_pass(step.name)

    def make(target: Path) -> Product:
        missing = found_pass.requires - set(source.product.facts)
        try:
            if missing:
                raise refuse(f"pass {step.name!r} needs {', '.join(sorted(missing))}")
            outcome = found_pass.run(
                Work(
                    source=source.path,
                    notes=source.notes,
                    facts=frozenset(source.product.facts),
                    target=target,
                    parameters=step.parameters,
                    inputs={role: inputs[role].path for role in step.inputs},
                    input_notes={role: inputs[role].notes for role in step.inputs},
                )
            )
        except EdgeopsError as error:
            if error.fault in (Fault.ENVIRONMENT, Fault.INTERNAL) and error.code != "E-COMPILE-CANDIDATE":
                raise
            for leftover in sorted(target.rglob("*"), reverse=True):
                leftover.rmdir() if leftover.is_dir() else leftover.unlink()
            return Product(failure=Failure(code=error.code, what=error.what))
        if broken := found_pass.ensures - outcome.facts:
            raise EdgeopsError("E-INTERNAL", f"pass {step.name!r} promised {', '.join(sorted(broken))}")
        return Product(facts=tuple(sorted(outcome.facts)), notes=dict(outcome.notes))

    return store.put(step_key(step, source, inputs), make)


def walk(store: Store, steps: list[Step], source: Stored, inputs: dict[str, Stored]) -> tuple[int, Stored | Failed]:
    """Follow a recipe through the cache alone.

    Returns:
        The number of steps that are done, and the last product; or the failure that ended the recipe.
    """
    current = source
    for index, step in enumerate(steps):
        found = store.lookup(step_key(step, current, inputs))
        if found is None:
            return index, current
        if found.product.failure is None:
            current = found
        elif not step.optional:
            return index, Failed(step.name, found.product.failure)
    return len(steps), current


@functools.cache
def tool_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of distributions; one that is not installed is `missing`."""
    versions = {}
    for name in sorted(names):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    return versions


@functools.cache
def program_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Return the first line of what programs of the system say of their version; one that is not there is `missing`."""
    versions = {}
    for name in names:
        path = shutil.which(name)
        said = "missing"
        if path is not None:
            done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30)
            said = done.stdout.partition("\n")[0]
        versions[name] = said
    return versions


@functools.cache
def code_digest() -> str:
    """Return the digest of the code that makes products: a changed pass never serves an old product."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    bridge = root.parent / "firmware_bridge"
    found = [path for room in _CODE for path in sorted((root / room).rglob("*.py"))]
    found += sorted([*bridge.glob("*.py"), *(bridge / "firmware").rglob("*.[chl]*")])
    for path in found:
        digest.update(path.relative_to(root.parent).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@functools.cache
def cpu_flags() -> tuple[str, ...]:
    """Return the processor's instruction set extensions as Linux names them, sorted; empty where it does not say."""
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            return tuple(sorted(line.split(":", 1)[1].split()))
    return ()


@functools.cache
def cpu_model() -> str:
    """Return the processor's name as Linux says it, or the architecture."""
    for line in _cpuinfo():
        if line.startswith(("model name", "Model")):
            return line.split(":", 1)[1].strip()
    return platform.machine()


@functools.cache
def isa_digest() -> str:
    """Return a short name of this processor's architecture and instruction set."""
    return f"{platform.machine()}-{hashlib.sha256(' '.join(cpu_flags()).encode()).hexdigest()[:12]}"


def host_fingerprint() -> str:
    """Return what of this machine changes a product: instruction set, processor and number of cores."""
    return f"{isa_digest()}/{cpu_model()}/{cores()}"


def cores() -> int:
    """Return the number of processors that this process may use."""
    import os

    return len(os.sched_getaffinity(0))


def host(tools: tuple[str, ...]) -> Host:
    """Return this machine for evidence."""
    return Host(
        arch=platform.machine(),
        cpu=cpu_model(),
        cores=cores(),
        python=platform.python_version(),
        tools=tool_versions(tools),
    )


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
