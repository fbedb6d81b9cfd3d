"""Describe a trained model for the fleet, and check the description before anything is compiled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from edgeops.cli.output import json_option, print_json, print_table
from edgeops.contracts.errors import EdgeopsError

if TYPE_CHECKING:
    from edgeops.compiler.obstacles import Look, ProfileLook

_SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"


@click.group()
def command() -> None:
    """Describe a trained model for the fleet, and check the description."""


@command.command("init")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder; default: the model's own.")
@click.option("--name", help="The model's name in the fleet; default: after the file.")
@click.option(
    "--samples",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="NPZ",
    help="Real inputs, one array per input: shapes are taken from them, and they become the calibration data.",
)
@click.option("--trust-pickle", is_flag=True, help="The pickle is of a source that may run code here.")
@click.option("--force", is_flag=True, help="Replace a handover.toml that is there.")
@json_option
def init_command(
    model: Path,
    out: Path | None,
    name: str | None,
    samples: Path | None,
    trust_pickle: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write handover.toml for MODEL, an ONNX or TFLite file: what it takes and gives, every choice explained.

    A pickled scikit-learn or XGBoost model, or a .pt2 of torch.export, becomes ONNX, proved on --samples; a pickle only
    with --trust-pickle, and it is looked through even then.
    """
    from edgeops.intake.pickles import PICKLE_SUFFIXES

    if model.suffix in PICKLE_SUFFIXES:
        written = _exported(model, out, name, samples, trust_pickle)
    else:
        written = _described(model, out, name, samples, force)
    if as_json:
        print_json(written)
        return
    click.echo(f"✓ {written['written']} is written")
    for line in written["to_do"]:
        click.echo(f"  {line}")
    click.echo(f"  then: edgeops handover check {Path(written['written']).parent}")


def _exported(model: Path, out: Path | None, name: str | None, samples: Path | None, trusted: bool) -> dict[str, Any]:
    from edgeops.intake.arrays import load_arrays
    from edgeops.intake.handing_over import handover
    from edgeops.intake.handover import HANDOVER_NAME
    from edgeops.intake.pickles import check_pickle

    check_pickle(model, trusted=trusted)
    if samples is None:
        raise EdgeopsError("E-CONFIG", f"{model} is exported, and an export is proved", "Give real inputs: --samples.")
    if out is None:
        raise EdgeopsError("E-CONFIG", f"{model} becomes a hand-over of its own", "Name its folder: --out.")
    arrays = list(load_arrays(samples).values())
    done = handover(
        model, arrays[0] if len(arrays) == 1 else tuple(arrays), out=out, name=name or _name_of(model),
        trust_pickle=trusted,
    )  # fmt: skip
    to_do = ["add evaluation data with the true answers: without them quality has no metric"]
    return {"written": str(done.folder / HANDOVER_NAME), "to_do": to_do, "digest": done.digest}


def _described(model: Path, out: Path | None, name: str | None, samples: Path | None, force: bool) -> dict[str, Any]:
    from edgeops import durable
    from edgeops.contracts.handover import Handover, ModelFile, Samples
    from edgeops.intake.arrays import load_arrays
    from edgeops.intake.declaring import to_toml
    from edgeops.intake.handing_over import CALIBRATION_NAME
    from edgeops.intake.handover import HANDOVER_NAME
    from edgeops.intake.inferring import infer
    from edgeops.intake.onnx_probe import probe

    if not model.is_file():
        raise EdgeopsError("E-HANDOVER-MISSING", f"{model} is not there, or no file", "Name the model's file.")
    folder = out or model.parent
    target = folder / HANDOVER_NAME
    if target.exists() and not force:
        raise EdgeopsError(
            "E-CONFIG", f"{target} is there", "Say --force to replace it, or name another folder: --out."
        )
    facts = probe(model)
    arrays = {} if samples is None else load_arrays(samples)
    shapes = {}
    for spec in facts.inputs:
        if spec.name in arrays:
            own = arrays[spec.name].shape[1:]
            # The batch axis of 1 may be left out in the file.
            shapes[spec.name] = own if spec.shape is not None and len(own) == len(spec.shape) else (1, *own)
    found = infer(facts, {}, shapes)
    declared = Handover(
        model=ModelFile(name=name or _name_of(model), file=model.name, description=""),
        inputs=found.inputs,
        outputs=found.outputs,
        calibration=Samples(file=CALIBRATION_NAME),
    )
    open_sizes = [spec.name for spec in found.inputs if -1 in spec.shape]
    to_do = [f"put the sizes of input {name!r} for -1" for name in open_sizes]
    if samples is None:
        to_do.append(f"write {CALIBRATION_NAME}: real inputs, one array per input, samples along the first axis")
    to_do.append("say what the outputs are: kind and labels")
    notes = dict(found.notes) | {"evaluation": _EVALUATION_NOTE, "gates": _GATES_NOTE}
    folder.mkdir(parents=True, exist_ok=True)
    for file in (model.name, *facts.files):
        if (folder / file).resolve() != (model.parent / file).resolve():
            shutil.copyfile(model.parent / file, folder / file)
    if samples is not None and samples.resolve() != (folder / CALIBRATION_NAME).resolve():
        shutil.copyfile(samples, folder / CALIBRATION_NAME)
    durable.write_file(target, to_toml(declared, notes).encode())
    return {"written": str(target), "to_do": to_do}


_EVALUATION_NOTE = (
    "",
    "Real inputs with the true answers as array `labels`; without them quality has no metric:",
    "[evaluation]",
    'file = "evaluation.npz"',
    'metric = "accuracy"   # or "mae" for values, or "none"',
)
_GATES_NOTE = (
    "",
    "The quality that every compiled model keeps; these are the defaults, and they are strict:",
    "[gates]",
    "metric_drop_max = 0.02     # upper end of the 95% interval of the drop",
    "agreement_min = 0.97       # share of decisions as this model decides",
    "cosine_min = 0.99",
    "sqnr_min_db = 15.0",
    "latency_ratio_max = 1.0    # no slower than float on the same runtime",
)


def _name_of(model: Path) -> str:
    kept = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in model.stem.lower())
    return kept.strip("-")[:63] or "model"


@command.command("check")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--profile", "profiles", multiple=True, metavar="NAME", help="Device profile, or its .toml; default: all."
)
@json_option
def check_command(folder: Path, profiles: tuple[str, ...], as_json: bool) -> None:
    """Check the hand-over in FOLDER: all of it fits together, the model runs on its samples, and who can take it.

    For every profile the float artifact is made for each of its runtimes: what stops that is named. Exit status 2: a
    profile that was asked for cannot run the model, or none can.
    """
    from edgeops.compiler.obstacles import look, supported

    asked = profiles or tuple(supported())
    found = look(folder, asked, lambda text: None if as_json else click.echo(f"… {text}", err=True))
    if as_json:
        print_json(_record(found))
    else:
        _print(found)
    failing = [one for one in found.profiles if not one.runs]
    if failing and (profiles or len(failing) == len(found.profiles)):
        raise EdgeopsError(
            "E-MODEL-UNSUPPORTED",
            "; ".join(f"{one.profile}: {_reasons(one)}" for one in failing),
            "Choose another profile, or change what is named.",
        )


def _record(found: Look) -> dict[str, Any]:
    handover = found.loaded.handover
    return {
        "model": handover.model.name,
        "digest": found.loaded.digest,
        "format": found.loaded.model.format,
        "inputs": handover.inputs,
        "outputs": handover.outputs,
        "notes": found.notes,
        "profiles": [
            {
                "profile": one.profile,
                "runs": one.runs,
                "runtimes": [
                    {"runtime": item.runtime, "runs": not item.reason, "reason": item.reason, "agent_steps": item.agent}
                    for item in one.runtimes
                ],
            }
            for one in found.profiles
        ],
    }


def _print(found: Look) -> None:
    click.echo(f"✓ {found.loaded.handover.model.name}: fits together, and runs on its samples ({found.loaded.digest})")
    for note in found.notes:
        click.echo(f"  note: {note}")
    rows = [
        (one.profile, item.runtime, "no" if item.reason else "yes", item.reason or _agent(item.agent))
        for one in found.profiles
        for item in one.runtimes
    ]
    print_table(("profile", "runtime", "runs", "why"), rows)


def _agent(steps: dict[str, tuple[str, ...]]) -> str:
    return "; ".join(f"the agent does {', '.join(names)} of {name!r}" for name, names in steps.items())


def _reasons(one: ProfileLook) -> str:
    return "; ".join(f"{item.runtime}: {item.reason}" for item in one.runtimes) or "it has no runtime"


@command.command("schema")
def schema_command() -> None:
    """Print the JSON Schema of handover.toml, for editors that complete and check TOML."""
    click.echo(json.dumps(schema(), indent=2, sort_keys=True))


def schema() -> dict[str, Any]:
    """Return the JSON Schema of `handover.toml`, made from the contracts."""
    from edgeops.contracts.handover import Handover

    found: dict[str, Any] = msgspec.json.schema(Handover)
    return {"$schema": _SCHEMA_DIALECT, "title": "handover.toml of edgeops", **found}
