"""bakenn behind one function: int8 TFLite in, C sources out. It is a young package: pinned by the hash of its code."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import NamedTuple

from edgeops.compiler.passes import refuse
from edgeops.contracts.errors import EdgeopsError
from firmware_bridge.blobs import Cpu

REQUIREMENT = "bakenn==1.0.0"
# Of every file of the package, see `_code_digest`.
_CODE_SHA256 = "a04b28cae98c7cc3ff423ac75f5951fe82e6105e85b49adde5167a75cd6ba749"
# Processors whose multiply-accumulate of two 16-bit pairs CMSIS-NN uses.
_WITH_DSP = (Cpu.CORTEX_M4, Cpu.CORTEX_M7)
_NAME = "model"


class Generated(NamedTuple):
    """A model as C.

    Args:
        sources: To be compiled together.
        folders: With their headers.
        defines: Flags for all of them.
        arena_bytes: RAM for activations and scratch.
        arena_align: Its alignment.
        header: Its public header's name.
        function: Name of `void function(arena, input, output)`.
        licences: Text files: what the sources are licensed under, by the name of their origin.
        kernels: CMSIS-NN, or portable C.
    """

    sources: tuple[Path, ...]
    folders: tuple[Path, ...]
    defines: tuple[str, ...]
    arena_bytes: int
    arena_align: int
    header: str
    function: str
    licences: dict[str, Path]
    kernels: str


def generate(model: bytes, cpu: Cpu, folder: Path, *, portable: bool = False) -> Generated:
    """Write a model as C into an empty folder.

    Args:
        model: An int8 TFLite file.
        cpu: The processor.
        folder: For the sources.
        portable: Use no instructions of the processor's own.

    Raises:
        EdgeopsError: E-COMPILE-CANDIDATE; bakenn refuses the model, with its reason. E-DEPENDENCY; it is not installed,
            or is not the pinned package.
    """
    _check_pinned()
    import bakenn
    from bakenn.backend.portable_c import CBackendOptions, KernelPolicy
    from bakenn.targets import PORTABLE_32, TARGET_PROFILES

    with_dsp = cpu in _WITH_DSP and not portable
    options = CBackendOptions(
        kernel_policy=KernelPolicy.STATIC_PRIORITY if with_dsp else KernelPolicy.PORTABLE,
        enable_cmsis_nn=with_dsp,
        target=TARGET_PROFILES["cortex-m4"] if with_dsp else PORTABLE_32,
    )
    try:
        made = bakenn.compile_tflite(model, folder, name=_NAME, backend_options=options)
    except (bakenn.BakeNNError, ValueError, TypeError) as error:
        raise refuse(f"bakenn: {' '.join(str(error).split())[:300]}") from error
    files = made.artifacts
    used_cmsis = bool(files.support_sources)
    return Generated(
        sources=(files.model_source, files.weights_source, files.kernels_source, *files.support_sources),
        folders=(folder, *files.support_include_dirs),
        defines=("-DBAKENN_CMSIS_NN_BUILTIN_MEMORY",) if used_cmsis else (),
        arena_bytes=int(files.backend_plan.arena_size),
        arena_align=int(files.backend_plan.arena_alignment),
        header=files.header.name,
        function=f"{files.header.stem}_infer",
        licences={"bakenn": _licence(), **{path.parent.name: path for path in files.third_party_licenses}},
        kernels="CMSIS-NN" if used_cmsis else "portable C",
    )


def _licence() -> Path:
    """Return bakenn's licence: its kernels' text is part of what it generates."""
    files = importlib.metadata.files("bakenn") or []
    found = next((file for file in files if file.name == "LICENSE" and "licenses" in file.parts), None)
    if found is None:
        raise EdgeopsError("E-DEPENDENCY", "bakenn's licence is not installed with it", _install())
    return Path(str(found.locate()))


@functools.cache
def _check_pinned() -> None:
    spec = importlib.util.find_spec("bakenn")
    if spec is None or not spec.submodule_search_locations:
        raise EdgeopsError("E-DEPENDENCY", "bakenn is not installed", _install())
    found = _code_digest(Path(spec.submodule_search_locations[0]))
    if found != _CODE_SHA256:
        raise EdgeopsError("E-DEPENDENCY", f"bakenn's code is not the pinned one: {found[:16]}", _install())


def _code_digest(root: Path) -> str:
    """Return the SHA-256 over names and contents of a package's files, without what Python writes there."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.relative_to(root).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _install() -> str:
    return f"pip install 'bakenn[tflite]{REQUIREMENT.removeprefix('bakenn')}'"
