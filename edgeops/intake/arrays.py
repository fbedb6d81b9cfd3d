"""Sample data: reads .npz files without trusting them; brings arrays into one form, samples along the first axis."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.handover import Input

MAX_DATA_BYTES = 4 << 30
MAX_ARRAYS = 256


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays of an .npz; pickled objects are refused, and so is a file that unpacks to more than 4 GiB.

    Raises:
        EdgeopsError: E-DATA-SHAPE; not a readable .npz, or too large.
    """
    advice = "Write it with numpy.savez; one array per input."
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_ARRAYS or sum(entry.file_size for entry in entries) > MAX_DATA_BYTES:
                raise EdgeopsError("E-DATA-SHAPE", f"{path}: more than {MAX_ARRAYS} arrays or {MAX_DATA_BYTES} bytes")
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in file.files}
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, NotImplementedError, MemoryError, SyntaxError) as error:
        raise EdgeopsError("E-DATA-SHAPE", f"{path}: not a readable .npz: {error}", advice) from error


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as an .npz that `load_arrays` reads."""
    named: dict[str, Any] = dict(arrays)
    np.savez(path, **named)


def samples_of(arrays: dict[str, NDArray[Any]], inputs: Sequence[Input], path: Path) -> dict[str, NDArray[Any]]:
    """Return one array [n, *shape] per input.

    A batch axis of 1 may be left out in the file: both [n, 1, h, w, c] and [n, h, w, c] fit shape [1, h, w, c].

    Raises:
        EdgeopsError: E-DATA-SHAPE; an array is missing, or has a wrong dtype, shape or number of samples.
            E-DATA-VALUES; NaN or infinite values.
    """
    samples: dict[str, NDArray[Any]] = {}
    for spec in inputs:
        if spec.name not in arrays:
            found = ", ".join(sorted(arrays)) or "none"
            raise EdgeopsError("E-DATA-SHAPE", f"{path}: no array {spec.name!r}; found: {found}", "One per input.")
        array = arrays[spec.name]
        if array.dtype.name != spec.dtype:
            raise EdgeopsError(
                "E-DATA-SHAPE",
                f"{path}: array {spec.name!r} is {array.dtype.name}, input {spec.name!r} is {spec.dtype}",
                "Save what the device will send.",
            )
        whole = _fits(array.shape[1:], spec.shape)
        fits = whole or (spec.shape[:1] == (1,) and _fits(array.shape[1:], spec.shape[1:]))
        if array.ndim == 0 or not fits or array.size == 0:
            wanted = ", ".join(("n", *map(str, spec.shape)))
            raise EdgeopsError(
                "E-DATA-SHAPE",
                f"{path}: array {spec.name!r} has shape {list(array.shape)}; expected [{wanted}]",
                "Put the samples along the first axis, at least one.",
            )
        check_finite(array, spec.name, path)
        samples[spec.name] = np.asarray(array if whole else array[:, None], order="C")
    counts = {name: len(array) for name, array in samples.items()}
    if len(set(counts.values())) != 1:
        raise EdgeopsError("E-DATA-SHAPE", f"{path}: inputs have different numbers of samples: {counts}")
    return samples


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(want in (-1, have) for have, want in zip(shape, wanted, strict=True))


def check_finite(array: NDArray[Any], name: str, path: Path) -> None:
    """Refuse NaN and infinite values.

    Raises:
        EdgeopsError: E-DATA-VALUES; names the array and the first bad sample.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        first = int(np.argwhere(~np.isfinite(array))[0][0])
        raise EdgeopsError(
            "E-DATA-VALUES", f"{path}: array {name!r} has NaN or infinite values, first in sample {first}", "Drop them."
        )
