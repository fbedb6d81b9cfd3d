"""From the chosen artifact to a sealed bundle: golden vectors, drift reference, manifest, one file, a last check."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops import durable
from edgeops.compiler.builder import build
from edgeops.compiler.calibration import MIN_SAMPLES
from edgeops.compiler.engine import Failed, Step, code_digest
from edgeops.compiler.executor import Machine
from edgeops.compiler.golden import drift_reference, golden_indices, tolerance
from edgeops.compiler.passes.samples import read_samples, write_samples
from edgeops.compiler.search import Ground, Tried
from edgeops.compiler.store import Product, Stored
from edgeops.contracts.bundle import Binding, BundleManifest, DriftCalibration, Golden, OutputInfo
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import OnBoard
from edgeops.contracts.handover import Handover
from edgeops.contracts.profile import Precision
from edgeops.releases.bundles import Bundle, open_bundle, pack, seal
from edgeops.runtimes.compare import cosine

S = TypeVar("S")
_INTEGER_ACTIVATIONS = (Precision.INT8, Precision.INT16X8, Precision.DYNAMIC_INT8)


class Packaged(NamedTuple):
    """A sealed bundle's directory, its one file, its digest, and what a microcontroller's blob did on a board."""

    directory: Path
    file: Path
    digest: str
    on_board: OnBoard | None = None


def package(ground: Ground, handover: Handover, chosen: Tried, folder: Path, said: Callable[[str], None]) -> Packaged:
    """Write the bundle into `folder/bundle` and `folder/<model>-<profile>.edgeops`.

    It is made under another name and checked there; what lay there before is replaced only by a whole, proved bundle.

    Raises:
        EdgeopsError: E-COMPILE-CANDIDATE; the sealed bundle does not give its golden vectors.
            E-DISK-FULL or E-DISK-WRITE.
    """
    said("golden vectors")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".bundle.{secrets.token_hex(4)}.tmp"
    try:
        temporary.mkdir()
        manifest, on_board = _fill(ground, handover, chosen, temporary)
        bundle = seal(temporary, manifest)
        said("check of the sealed bundle")
        _verify(ground, bundle)
        durable.fsync_tree(temporary)
        directory = folder / "bundle"
        durable.remove_tree(directory)
        durable.rename(temporary, directory)
    except OSError as error:
        raise durable.disk_error(error, folder) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    file = folder / f"{handover.model.name}-{ground.profile.name}.edgeops"
    pack(open_bundle(directory, expect_digest=bundle.digest), file)
    return Packaged(directory, file, bundle.digest, on_board)


def _fill(ground: Ground, handover: Handover, chosen: Tried, target: Path) -> tuple[BundleManifest, OnBoard | None]:
    assert chosen.artifact is not None
    assert chosen.judged is not None
    for name in chosen.artifact.notes.get("shipped", chosen.artifact.product.files):
        shutil.copyfile(chosen.artifact.path / name, target / name)
    samples = read_samples(ground.samples.path, "judged")
    source = read_samples(ground.reference.path, "reference")
    outputs = read_samples(chosen.judged.path, "outputs")
    kinds: dict[str, str] = {output.name: output.kind for output in handover.outputs}
    bound = chosen.manifest
    shipped = _shipped(bound, chosen.artifact.notes)
    golden, on_board = _golden(ground, chosen, target, samples, source, outputs, kinds)
    filled = msgspec.structs.replace(
        shipped,
        model=handover.model.name,
        profile=ground.profile.name,
        arch=ground.profile.cpu.arch,
        runtime_min=chosen.runtime.runtime_min,
        precision=chosen.candidate.precision,
        scheme=chosen.candidate.scheme,
        outputs=tuple(_describe(info, handover) for info in bound.outputs),
        preprocessing=_baked(
            {spec.name: (*spec.agent, *spec.preprocess) for spec in handover.inputs}, bound.agent_steps, first=True
        ),
        postprocessing=_baked({spec.name: spec.postprocess for spec in handover.outputs}, bound.agent_results),
        golden=golden,
        budgets=ground.budgets,
        drift=drift_reference(samples, outputs, kinds, lambda tables: _limits(ground, tables)),
        nan_policy=handover.nan_policy,
    )
    return filled, on_board


def _limits(ground: Ground, tables: Mapping[str, NDArray[np.int64]]) -> DriftCalibration | None:
    """Return the limits of drift for counts per sample, [samples, bins] each; None: there are too few samples."""
    count = min(map(len, tables.values()), default=0)
    if count < MIN_SAMPLES:
        return None
    digest = hashlib.sha256(code_digest().encode())
    for name in sorted(tables):
        digest.update(f"{name}\0{tables[name].dtype.str}{tables[name].shape}".encode())
        digest.update(np.ascontiguousarray(tables[name]).tobytes())

    def make(target: Path) -> Product:
        write_samples(target, "tables", tables)
        return Product(facts=("tables",))

    counted = ground.machine.store.put(digest.hexdigest(), make)
    found = drawn = _drawn(ground.machine, ground.samples, count)
    if not isinstance(drawn, Failed):
        found = build(ground.machine, [Step(name="drift-limits", inputs=("draws",))], counted, {"draws": drawn})
    if isinstance(found, Failed):
        raise EdgeopsError("E-COMPILE-CANDIDATE", f"{found.step}: {found.failure.what}")
    return msgspec.convert(found.notes["limits"], DriftCalibration | None)


def draws_ahead(machine: Machine, samples: Stored) -> None:
    """Make what every profile's limits of drift will want, where there are samples enough for such."""
    count = min((len(values) for values in read_samples(samples.path, "judged").values()), default=0)
    if count >= MIN_SAMPLES:
        _drawn(machine, samples, count)


def _drawn(machine: Machine, samples: Stored, count: int) -> Stored | Failed:
    return build(machine, [Step(name="drift-draws", parameters={"count": count})], samples, {})


def _shipped(bound: BundleManifest, notes: Mapping[str, Any]) -> BundleManifest:
    """Return the manifest for the file that ships, where that is not the one that was judged."""
    other = notes.get("artifact")
    if other is None:
        return bound

    def renamed(bindings: tuple[Binding, ...]) -> tuple[Binding, ...]:
        return tuple(
            msgspec.structs.replace(
                item, artifact=msgspec.structs.replace(item.artifact, name=other["tensors"][item.artifact.name])
            )
            for item in bindings
        )

    return msgspec.structs.replace(
        bound,
        artifact=other["file"],
        input_bindings=renamed(bound.input_bindings),
        output_bindings=renamed(bound.output_bindings),
    )


def _baked(
    declared: dict[str, tuple[S, ...]], agent: dict[str, tuple[S, ...]], *, first: bool = False
) -> dict[str, tuple[S, ...]]:
    """Return the steps that the artifact holds: what is left of the declared ones without the agent's.

    Args:
        declared: Tensor → all its steps.
        agent: Tensor → those that the agent does.
        first: The agent's come before the artifact's.
    """
    baked = {}
    for name, steps in declared.items():
        count = len(agent.get(name, ()))
        left = steps[count:] if first else steps[: len(steps) - count]
        if left:
            baked[name] = left
    return baked


def _golden(
    ground: Ground,
    chosen: Tried,
    target: Path,
    samples: dict[str, NDArray[Any]],
    source: dict[str, NDArray[Any]],
    outputs: dict[str, NDArray[Any]],
    kinds: dict[str, str],
) -> tuple[Golden, OnBoard | None]:
    assert chosen.artifact is not None
    assert chosen.judged is not None
    count = len(next(iter(samples.values())))
    sample_bytes = sum(array[0].nbytes for group in (samples, source, outputs) for array in group.values())
    indices = golden_indices(count, sample_bytes, outputs, kinds)
    step = Step(
        name="steadiness",
        parameters={"manifest": chosen.judged.notes["manifest"], "indices": indices},
        inputs=("samples", "judged"),
    )
    steady = build(ground.machine, [step], chosen.artifact, {"samples": ground.samples, "judged": chosen.judged})
    if isinstance(steady, Failed):
        raise EdgeopsError("E-COMPILE-CANDIDATE", f"{chosen.candidate.scheme}: {steady.failure.what}")
    on_board = _proved(ground, chosen, indices)
    (target / "golden").mkdir()
    files: dict[str, dict[str, str]] = {}
    for role, group in (("input", samples), ("source", source), ("artifact", outputs)):
        files[role] = {}
        for place, name in enumerate(sorted(group)):
            path = f"golden/{role}-{place}.npy"
            np.save(target / path, np.asarray(group[name])[indices], allow_pickle=False)
            files[role][name] = path
    bindings = {binding.device: binding for binding in chosen.manifest.output_bindings}
    tolerances = {
        name: tolerance(
            np.asarray(values)[indices],
            cosine(np.asarray(source[name])[indices], np.asarray(values)[indices]),
            steady.notes["deviation"][name],
            bindings[name],
            quantized=chosen.candidate.precision in _INTEGER_ACTIVATIONS,
        )
        for name, values in outputs.items()
    }
    if on_board is not None:
        exact = "a blob's answers are the same on every board of its processor"
        tolerances = {
            name: msgspec.structs.replace(one, artifact_max_abs=0.0, reason=exact) for name, one in tolerances.items()
        }
    golden = Golden(
        count=len(indices),
        inputs=files["input"],
        source_outputs=files["source"],
        artifact_outputs=files["artifact"],
        tolerances=tolerances,
    )
    return golden, on_board


def _proved(ground: Ground, chosen: Tried, indices: list[int]) -> OnBoard | None:
    """Run the golden vectors of a microcontroller's blob on an emulated board; None: it is no blob.

    Raises:
        EdgeopsError: E-COMPILE-CANDIDATE; a byte differs from what the interpreter gives.
    """
    assert chosen.artifact is not None
    assert chosen.judged is not None
    if "mcu-blob" not in chosen.artifact.product.facts:
        return None
    step = Step(
        name="mcu-prove",
        parameters={"manifest": chosen.judged.notes["manifest"], "indices": indices},
        inputs=("samples", "judged"),
    )
    proved = build(ground.machine, [step], chosen.artifact, {"samples": ground.samples, "judged": chosen.judged})
    if isinstance(proved, Failed):
        raise EdgeopsError("E-COMPILE-CANDIDATE", f"{chosen.candidate.scheme}: {proved.failure.what}")
    return msgspec.convert(proved.notes["on_board"], OnBoard)


def _describe(info: OutputInfo, handover: Handover) -> OutputInfo:
    declared = next(output for output in handover.outputs if output.name == info.tensor.name)
    state_to = next((spec.name for spec in handover.inputs if spec.state_from == declared.name), None)
    return msgspec.structs.replace(info, labels=declared.labels, kind=declared.kind, state_to=state_to)


def _verify(ground: Ground, bundle: Bundle) -> None:
    # Workers have a working directory of their own.
    source = Stored(bundle.directory.resolve(), Product(facts=("bundle",), files=bundle.manifest.files))
    step = Step(name="verify", parameters={"digest": bundle.digest, "threads": ground.profile.serving.threads})
    found = build(ground.machine, [step], source, {})
    if isinstance(found, Failed):
        raise EdgeopsError(
            "E-COMPILE-CANDIDATE", f"the sealed bundle fails its own check: {found.failure.code}: {found.failure.what}"
        )
