"""Show what is inside a bundle or a hand-over, after checking it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from edgeops.cli.output import json_option, print_json, print_table
from edgeops.contracts.bundle import MANIFEST_NAME
from edgeops.contracts.errors import EdgeopsError

if TYPE_CHECKING:
    from edgeops.intake.handover import LoadedHandover
    from edgeops.releases.bundles import Bundle


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@json_option
def command(path: Path, as_json: bool) -> None:
    """Check PATH and show what is inside: a bundle's folder or file, or a hand-over's folder."""
    if (path / MANIFEST_NAME).exists():
        from edgeops.releases.bundles import open_bundle

        shown = _bundle(open_bundle(path))
    elif path.is_file():
        from edgeops.releases.bundles import unpack

        with tempfile.TemporaryDirectory(prefix="edgeops-inspect-") as folder:
            shown = _bundle(unpack(path, Path(folder) / "bundle"))
    elif path.is_dir():
        from edgeops.intake.handover import read

        shown = _handover(read(path))
    else:
        raise EdgeopsError("E-HANDOVER-MISSING", f"{path} is not there", "Name a bundle or a hand-over's folder.")
    if as_json:
        print_json(shown)
    else:
        print_table(("what", "is"), [(key, _text(value)) for key, value in shown.items()])


def _bundle(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "kind": "bundle",
        "digest": bundle.digest,
        "size_bytes": sum(entry.length for entry in manifest.files.values()),
        **{
            key: value
            for key, value in msgspec.to_builtins(manifest).items()
            if key not in ("drift", "golden", "files", "input_bindings", "output_bindings")
        },
        "golden_vectors": manifest.golden.count,
        "tolerances": {name: item.artifact_max_abs for name, item in manifest.golden.tolerances.items()},
        "drift_samples": 0 if manifest.drift is None else manifest.drift.samples,
    }


def _handover(loaded: LoadedHandover) -> dict[str, Any]:
    handover, facts = loaded.handover, loaded.model
    return {
        "kind": "hand-over",
        "digest": loaded.digest,
        "model": handover.model.name,
        "file": handover.model.file,
        "opsets": facts.opsets,
        "ops": facts.ops,
        "weights_bytes": facts.weights_bytes,
        "inputs": {item.name: f"{item.dtype}{list(item.shape)}" for item in handover.inputs},
        "outputs": {item.name: item.kind for item in handover.outputs},
        "calibration_samples": len(next(iter(loaded.calibration.values()))),
        "evaluation_samples": 0 if loaded.evaluation is None else len(next(iter(loaded.evaluation.inputs.values()))),
        "gates": msgspec.to_builtins(handover.gates),
    }


def _text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
