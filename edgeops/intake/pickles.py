"""Pickle-based model files: refused unless the caller trusts the file, looked through even then, and loaded narrowly.

Unpickling runs what the file says. So what it would call is listed first, without running anything, and held against
what trained models are made of; then it is loaded by an unpickler that finds nothing else.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeops.contracts.errors import EdgeopsError

MAX_PICKLE_BYTES = 2 << 30
PICKLE_SUFFIXES = (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".pt2", ".npy", ".sav")
_ZIP_MARK = b"PK\3\4"
# What estimators and arrays consist of. Only classes of these packages are found, and the functions below.
_PACKAGES = ("sklearn", "numpy", "scipy", "xgboost")
_FUNCTIONS = frozenset(
    {
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy.random._pickle", "__randomstate_ctor"),
        ("numpy.random._pickle", "__bit_generator_ctor"),
        ("numpy.random._pickle", "__generator_ctor"),
        ("copyreg", "_reconstructor"),
        ("copyreg", "__newobj__"),
        ("_codecs", "encode"),
        ("numpy.core.numeric", "_frombuffer"),
        ("numpy._core.numeric", "_frombuffer"),
    }
)
_BUILTINS = frozenset(
    {"set", "frozenset", "dict", "list", "tuple", "slice", "complex", "bytearray", "object", "int", "float", "bool",
     "str", "bytes", "range"}
)  # fmt: skip
_PLAIN = frozenset({("collections", "OrderedDict"), ("collections", "defaultdict"), ("collections", "deque")})


def load_pickle(path: Path, *, trusted: bool) -> Any:
    """Load a pickled estimator.

    Args:
        path: The file.
        trusted: The caller says that the file is of a source that may run code here.

    Raises:
        EdgeopsError: E-HANDOVER-PICKLE; not trusted, or it names something that no trained model consists of.
            E-HANDOVER-MISSING; not there. E-MODEL-UNSUPPORTED; too large. E-MODEL-FORMAT; damaged.
    """
    check_pickle(path, trusted=trusted)
    try:
        with path.open("rb") as file:
            return _Narrow(file).load()
    except EdgeopsError:
        raise
    # Damaged pickles raise whatever the objects that they half made raise.
    except Exception as error:
        raise EdgeopsError(
            "E-MODEL-FORMAT",
            f"{path}: cannot be unpickled: {type(error).__name__}: {str(error)[:300]}",
            "Load it where it was made, and hand over the model in memory: edgeops.handover(model, …).",
        ) from error


def check_pickle(path: Path, *, trusted: bool) -> None:
    """Look through a pickle-based file without running anything of it; errors as `load_pickle`."""
    if not path.is_file():
        raise EdgeopsError("E-HANDOVER-MISSING", f"{path} is not there, or no file", "Name the model's file.")
    if path.stat().st_size > MAX_PICKLE_BYTES:
        raise EdgeopsError("E-MODEL-UNSUPPORTED", f"{path}: larger than {MAX_PICKLE_BYTES} bytes")
    if not trusted:
        raise EdgeopsError(
            "E-HANDOVER-PICKLE",
            f"{path} is based on pickle: loading it runs whatever it says",
            "Hand over the model in memory, or as ONNX. If you made the file yourself, say --trust-pickle (Python: "
            "trust_pickle=True); it is looked through even then.",
        )
    odd = sorted({f"{module}.{name}" for module, name in named_in(path) if not _allowed(module, name)})
    if odd:
        raise EdgeopsError(
            "E-HANDOVER-PICKLE",
            f"{path} would call what no trained model consists of: {', '.join(odd[:8])}",
            "Do not load this file. Hand over the model in memory, or as ONNX, where it was made.",
        )


def named_in(path: Path) -> set[tuple[str, str]]:
    """Return what a pickle-based file names: modules and names that loading it would look up.

    Raises:
        EdgeopsError: E-MODEL-FORMAT; not a pickle, or damaged.
    """
    found: set[tuple[str, str]] = set()
    for name, data in _streams(path):
        try:
            found |= set(_globals(data))
        except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError, EOFError) as error:
            raise EdgeopsError(
                "E-MODEL-FORMAT",
                f"{path}{name}: not a plain pickle: {str(error)[:200]}",
                "Write it by pickle.dump, or hand over the model in memory.",
            ) from error
    return found


def _streams(path: Path) -> Iterator[tuple[str, bytes]]:
    with path.open("rb") as file:
        mark = file.read(4)
    if mark != _ZIP_MARK:
        yield "", path.read_bytes()
        return
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_PICKLE_BYTES:
                raise EdgeopsError("E-MODEL-UNSUPPORTED", f"{path}: unpacks to more than {MAX_PICKLE_BYTES} bytes")
            for entry in archive.infolist():
                data = archive.read(entry)
                if entry.filename.endswith(".pkl") or data[:1] == b"\x80":
                    yield f"!{entry.filename}", data
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise EdgeopsError("E-MODEL-FORMAT", f"{path}: {error}", "Export it again.") from error


def _globals(data: bytes) -> Iterator[tuple[str, str]]:
    """Yield what a pickle looks up, the last strings standing for the arguments of STACK_GLOBAL.

    A name that is put together in another way is yielded as "?", which nothing allows.
    """
    strings: list[str] = []
    memo: dict[int, str] = {}
    stream = io.BytesIO(data)
    while stream.tell() < len(data):
        count = 0
        for code, argument, _ in pickletools.genops(stream):
            if code.name in ("GLOBAL", "INST"):
                module, _, name = str(argument).partition(" ")
                yield module, name
            elif code.name == "STACK_GLOBAL":
                yield (strings[-2], strings[-1]) if len(strings) > 1 else ("?", "?")
            elif code.name in ("EXT1", "EXT2", "EXT4"):
                yield "?", f"extension {argument}"
            if "UNICODE" in code.name or code.name in ("STRING", "BINSTRING", "SHORT_BINSTRING"):
                strings.append(str(argument))
            elif code.name == "MEMOIZE":
                memo[len(memo)] = strings[-1] if strings else ""
            elif code.name in ("BINPUT", "LONG_BINPUT", "PUT"):
                memo[int(str(argument))] = strings[-1] if strings else ""
            elif code.name in ("BINGET", "LONG_BINGET", "GET"):
                strings.append(memo.get(int(str(argument)), "?"))
            count += 1
        if not count:
            raise ValueError("no operations")


def _allowed(module: str, name: str) -> bool:
    module, name = _today(module, name)
    if (module, name) in _PLAIN or _makes(module, name):
        return True
    if module == "builtins":
        return name in _BUILTINS
    return module.partition(".")[0] in _PACKAGES and not any(part.startswith("_test") for part in module.split("."))


def _makes(module: str, name: str) -> bool:
    """Say whether a function only makes an object that was pickled: a listed one, or such as Cython writes."""
    made = name.startswith("__pyx_unpickle_") or name == "newObj"
    return (module, name) in _FUNCTIONS or (made and module.partition(".")[0] in _PACKAGES)


def _today(module: str, name: str) -> tuple[str, str]:
    """Return a name as this Python has it: old protocols call modules as Python 2 did."""
    return NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))


class _Narrow(pickle.Unpickler):
    """Finds what trained models consist of: listed functions, and classes of the packages that make models."""

    def find_class(self, module: str, name: str) -> Any:
        """Return it, or refuse.

        Raises:
            EdgeopsError: E-HANDOVER-PICKLE.
        """
        if _allowed(module, name):
            found = super().find_class(module, name)
            if _makes(*_today(module, name)) or (isinstance(found, type) and "." not in name):
                return found
        raise EdgeopsError(
            "E-HANDOVER-PICKLE",
            f"the pickle calls {module}.{name}, which no trained model consists of",
            "Do not load this file. Hand over the model in memory, or as ONNX, where it was made.",
        )
