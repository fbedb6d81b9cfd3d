"""Isolated tools: environments with pinned packages that edgeops makes, and calls as programs of their own."""

from __future__ import annotations

import fcntl
import hashlib
import secrets
import shutil
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from edgeops import durable
from edgeops.compiler.isolation import Limits, default_memory_mib, run_limited
from edgeops.compiler.passes import refuse
from edgeops.contracts.errors import EdgeopsError
from edgeops.intake.cache import cache_dir

_INSTALL_TIMEOUT_S = 1200
_RUN_TIMEOUT_S = 600
_DONE_NAME = ".complete"
_ENVIRONMENT = {"PYTHONPATH": "", "PYTHONNOUSERSITE": "1"}


class Toolchain(NamedTuple):
    """An environment: its name, what is installed into it (exact versions), and the module that proves it works.

    One that is `on_request` is installed where it is named only, and missing it is no fault.
    """

    name: str
    version: str
    requirements: tuple[str, ...]
    module: str
    purpose: str
    on_request: bool = False

    @property
    def path(self) -> Path:
        """Where it lies: named by what is in it and by the Python that runs it."""
        subject = "\n".join((*self.requirements, sys.version, sys.base_prefix))
        digest = hashlib.sha256(subject.encode()).hexdigest()[:12]
        return cache_dir() / "toolchains" / f"{self.name}-{self.version}-{digest}"

    @property
    def installed(self) -> bool:
        """Whether it is there, whole."""
        return (self.path / _DONE_NAME).exists()


# onnx2tf declares Python 3.12 and pins other versions of these; its flatbuffer path runs on 3.11 with them.
ONNX2TF = Toolchain(
    name="onnx2tf",
    version="2.6.9",
    requirements=(
        "onnx2tf==2.6.9",
        "sng4onnx==2.0.1",
        "sne4onnx==2.0.1",
        "ai-edge-litert==2.3.0",
        "backports.strenum==1.2.8",
        "flatbuffers==25.12.19",
        "ml_dtypes==0.6.0",
        "numpy==2.4.6",
        "onnx==1.23.2",
        "onnxruntime==1.32.0",
        "packaging==26.3",
        "protobuf==7.36.2",
        "psutil==7.2.2",
        "tqdm==4.70.1",
        "typing_extensions==4.16.0",
    ),
    module="onnx2tf",
    purpose="ONNX to TFLite, without TensorFlow",
)

# Rigs call it. pyserial-labgrid owns the same files as the pyserial of gateways, so the two share no environment.
LABGRID = Toolchain(
    name="labgrid",
    version="26.0.1",
    requirements=(
        "labgrid==26.0.1",
        "attrs==26.1.0",
        "certifi==2026.10.19.post1",
        "charset-normalizer==3.5.3",
        "exceptiongroup==1.3.2",
        "grpcio==1.85.3",
        "grpcio-reflection==1.85.1",
        "idna==3.20",
        "jinja2==3.1.6",
        "markupsafe==3.0.4",
        "pexpect==4.9.0",
        "protobuf==7.36.2",
        "ptyprocess==0.7.0",
        "pyserial-labgrid==3.5.0.2",
        "pyudev==0.24.5",
        "pyusb==1.3.1",
        "pyyaml==6.0.4",
        "requests==2.34.2",
        "typing_extensions==4.16.0",
        "urllib3==2.8.0",
        "xmodem==0.5.0",
    ),
    module="labgrid.remote.client",
    purpose="boards of a rig behind labgrid's drivers and places",
    on_request=True,
)

TOOLCHAINS = {one.name: one for one in (ONNX2TF, LABGRID)}


def get(name: str) -> Toolchain:
    """Return a toolchain by name.

    Raises:
        EdgeopsError: E-TOOLCHAIN; there is none of this name.
    """
    if name not in TOOLCHAINS:
        raise EdgeopsError("E-TOOLCHAIN", f"no toolchain {name!r}; known: {', '.join(sorted(TOOLCHAINS))}")
    return TOOLCHAINS[name]


def ensure(toolchain: Toolchain) -> Path:
    """Return the toolchain's folder, made first where it is not there. Others who want it meanwhile wait.

    Raises:
        EdgeopsError: E-TOOLCHAIN; it cannot be installed. E-DISK-FULL or E-DISK-WRITE.
    """
    path = toolchain.path
    if toolchain.installed:
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not toolchain.installed:
                _install(toolchain, path)
    except OSError as error:
        raise durable.disk_error(error, path) from error
    return path


def run_tool(toolchain: Toolchain, arguments: Sequence[str]) -> None:
    """Run a program of a toolchain; the toolchain is made first where it is not there.

    Args:
        toolchain: Which.
        arguments: Program of the toolchain's `bin`, and its arguments.

    Raises:
        EdgeopsError: E-COMPILE-CANDIDATE; it fails or takes too long. E-TOOLCHAIN; it cannot be installed.
    """
    path = ensure(toolchain)
    with tempfile.TemporaryDirectory(prefix="edgeops-tool-") as folder:
        ended = run_limited(
            [str(path / "bin" / "python"), str(path / "bin" / arguments[0]), *arguments[1:]],
            limits=Limits(_RUN_TIMEOUT_S, default_memory_mib(1)),
            log=Path(folder) / "log",
            environment=_ENVIRONMENT,
            cwd=Path(folder),
            own_group=False,
        )
    if ended.reason is not None:
        raise refuse(f"{toolchain.name}: {ended.reason}")


def examine(toolchain: Toolchain) -> str | None:
    """Return what is wrong with an installed toolchain, or None if it works."""
    if not toolchain.installed:
        return "not installed"
    with tempfile.TemporaryDirectory(prefix="edgeops-tool-") as folder:
        ended = run_limited(
            [str(toolchain.path / "bin" / "python"), "-c", f"import {toolchain.module}"],
            limits=Limits(120, default_memory_mib(1)),
            log=Path(folder) / "log",
            environment=_ENVIRONMENT,
            cwd=Path(folder),
        )
    return ended.reason


def _install(toolchain: Toolchain, path: Path) -> None:
    # Made under another name and renamed: a broken install is never taken for a whole one.
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        venv.create(temporary, with_pip=True, symlinks=True)
        # The pins name every package, so that nothing is resolved; onnx2tf's own bound on Python is wider than needed.
        # fmt: off
        command = [
            str(temporary / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
            "--no-deps", "--ignore-requires-python", "--only-binary=:all:", *toolchain.requirements,
        ]
        # fmt: on
        log = temporary / "install.log"
        ended = run_limited(
            command,
            limits=Limits(_INSTALL_TIMEOUT_S, default_memory_mib(1)),
            log=log,
            environment=_ENVIRONMENT,
        )
        if ended.reason is not None:
            raise EdgeopsError(
                "E-TOOLCHAIN",
                f"{toolchain.name} {toolchain.version}: {ended.reason}",
                "Check the network and pip's package index, then run `edgeops toolchain install`.",
            )
        (temporary / _DONE_NAME).write_text("\n".join(toolchain.requirements) + "\n")
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
