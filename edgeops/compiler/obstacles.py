"""What would stop a compile, per profile and runtime: the float artifact of each is made, and nothing is searched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from edgeops.compiler.builder import build
from edgeops.compiler.candidates import ARTIFACTS, READY_RUNTIMES, TREE_RUNTIME, float_candidate
from edgeops.compiler.engine import Failed, cores
from edgeops.compiler.executor import Machine, machine
from edgeops.compiler.metrics import samples_to_prove
from edgeops.compiler.prepared import Prepared, count, fed_samples, float_graph, plan_for, prepare
from edgeops.contracts.profile import Precision, Profile, Runtime
from edgeops.intake.handover import LoadedHandover, read
from edgeops.profiles import registry

FEW_SAMPLES = 32
_CONTROL = ("If", "Loop", "Scan", "LSTM", "GRU", "RNN")


class RuntimeLook(NamedTuple):
    """What a runtime of a profile makes of the model.

    Args:
        runtime: Its name.
        reason: Why it cannot run the model; "": it can.
        agent: Input or output → steps that the agent would do.
    """

    runtime: str
    reason: str
    agent: dict[str, tuple[str, ...]]


class ProfileLook(NamedTuple):
    """What a profile's runtimes make of the model, in its order."""

    profile: str
    runtimes: tuple[RuntimeLook, ...]

    @property
    def runs(self) -> bool:
        """Whether one of them can run it."""
        return any(not one.reason for one in self.runtimes)


class Look(NamedTuple):
    """A hand-over that fits together and runs on its samples; what a person should know, and every profile."""

    loaded: LoadedHandover
    notes: tuple[str, ...]
    profiles: tuple[ProfileLook, ...]


def look(folder: Path, profiles: Sequence[str], said: Callable[[str], None]) -> Look:
    """Read a hand-over, run the model on its samples, and make its float artifact for every runtime of the profiles.

    What is made stays in the cache: a compile goes on from there.

    Args:
        folder: The hand-over.
        profiles: Names of profiles, or paths of their TOML files.
        said: Told what is being done.

    Raises:
        EdgeopsError: As `intake.handover.read`; E-MODEL-UNSUPPORTED; the model does not run on its samples, or answers
            NaN. E-PROFILE-UNKNOWN or E-PROFILE-INVALID.
    """
    found = [registry.check(Path(name)) if name.endswith(".toml") else registry.load(name) for name in profiles]
    loaded = read(folder)
    with machine(cores(), None) as workplace:
        shared = prepare(workplace, loaded, said)
        known: dict[str, RuntimeLook] = {}
        looks = []
        for profile in found:
            runtimes = []
            for runtime in profile.runtimes:
                limits = f"{runtime.name} {runtime.onnx_opset_max} {runtime.onnx_ir_max} {_narrow(runtime)}"
                if limits not in known:
                    said(f"{profile.name}: {runtime.name}")
                    known[limits] = _look(workplace, loaded, shared, runtime)
                runtimes.append(known[limits])
            looks.append(ProfileLook(profile.name, tuple(runtimes)))
    return Look(loaded, _notes(loaded, shared), tuple(looks))


def supported() -> list[str]:
    """Return the names of all profiles that are supported."""
    return [profile.name for profile in _profiles() if profile.status == "supported"]


def _profiles() -> list[Profile]:
    return [registry.load(name) for name in registry.names()]


def _narrow(runtime: Runtime) -> bool:
    return set(runtime.precisions) <= {Precision.INT8, Precision.INT16X8}


def _look(workplace: Machine, loaded: LoadedHandover, shared: Prepared, runtime: Runtime) -> RuntimeLook:
    if runtime.name not in ARTIFACTS:
        return RuntimeLook(runtime.name, "nothing compiles for this runtime", {})
    plan = plan_for(loaded.handover, shared, runtime)
    agent = {name: _names(steps) for name, steps in plan.agent_steps.items()}
    agent |= {one.name: _names(one.agent_results) for one in plan.outputs if one.agent_results}
    reason = _reason(shared, runtime)
    if not reason:
        reason = _built(workplace, loaded, shared, runtime)
    return RuntimeLook(runtime.name, reason, agent)


def _names(steps: Sequence[object]) -> tuple[str, ...]:
    return tuple(str(type(step).__struct_config__.tag) for step in steps)  # type: ignore[attr-defined]


def _reason(shared: Prepared, runtime: Runtime) -> str:
    traits = shared.traits
    if traits.ready is not None and runtime.name not in READY_RUNTIMES:
        return "a TFLite model is taken as it is, and runs on LiteRT only"
    if traits.trees and runtime.name != TREE_RUNTIME:
        trees = ", ".join(sorted(op.partition("::")[2] for op in traits.ops if op.startswith("ai.onnx.ml::Tree")))
        return f"decision trees ({trees}) run on {TREE_RUNTIME} only"
    if _narrow(runtime) and traits.only_float:
        parts = sorted(traits.ops.intersection(_CONTROL)) or (["state"] if traits.stateful else ["decision trees"])
        return f"it takes int8 only, and {', '.join(parts)} stays float"
    if runtime.name == "mcu" and traits.ready is Precision.FLOAT32:
        return "it takes int8 only, and the file is float"
    return ""


def _built(workplace: Machine, loaded: LoadedHandover, shared: Prepared, runtime: Runtime) -> str:
    graph = float_graph(workplace, loaded, shared, runtime)
    if isinstance(graph, Failed):
        return f"{graph.step}: {graph.failure.what}"
    samples = fed_samples(workplace, plan_for(loaded.handover, shared, runtime), shared.samples)
    if isinstance(samples, Failed):
        return f"{samples.step}: {samples.failure.what}"
    steps = float_candidate(runtime, shared.traits).steps
    artifact = build(workplace, steps, graph, {"samples": samples})
    return f"{artifact.step}: {artifact.failure.what}" if isinstance(artifact, Failed) else ""


def _notes(loaded: LoadedHandover, shared: Prepared) -> tuple[str, ...]:
    notes = []
    gates, samples = loaded.handover.gates, count(loaded.calibration)
    if samples < FEW_SAMPLES:
        notes.append(f"calibration has {samples} samples: ranges for int8 need about {FEW_SAMPLES}, better hundreds")
    if loaded.evaluation is None:
        notes.append("no evaluation data: compiled models are held against this one only, without a metric")
    elif shared.plan.metric == "accuracy":
        have, needed = count(loaded.evaluation.inputs), samples_to_prove(gates.metric_drop_max, gates.confidence)
        if needed is not None and have < needed:
            notes.append(
                f"evaluation has {have} samples: {needed} can prove a drop of at most {gates.metric_drop_max:g}, so "
                "every lossy artifact would fail that gate; add samples, or set gates.metric_drop_max higher"
            )
    if control := sorted(shared.traits.ops.intersection(_CONTROL)):
        notes.append(f"it has {', '.join(control)}: it stays float")
    if shared.traits.stateful:
        notes.append("it has state: it stays float, and clients pass the state from call to call")
    return tuple(notes)
