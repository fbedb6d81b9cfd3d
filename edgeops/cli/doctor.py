"""Say what this machine has and lacks for each job of edgeops."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import click

from edgeops import __version__
from edgeops.cli.output import json_option, print_json, print_table
from edgeops.contracts.errors import EdgeopsError

_EXTRAS = {
    "agent": ("cryptography", "httptools", "numpy", "paho-mqtt", "tuf", "urllib3"),
    "compiler": ("litert-quantizer", "nncf", "onnx", "onnxruntime", "onnxslim", "openvino"),
    "control": ("alembic", "cryptography", "fastapi", "iotcore", "paho-mqtt", "sqlalchemy", "tuf", "uvicorn"),
}


class Finding(NamedTuple):
    """One thing that was looked at: whether it is there, what was found, and what to do if it is missed."""

    subject: str
    present: bool
    found: str
    next_step: str = ""


def examine() -> list[Finding]:
    """Look at Python, the packages of each job, the runtimes, and the programs that edgeops can use."""
    findings = [
        Finding("edgeops", True, __version__),
        Finding("python", sys.version_info >= (3, 10), platform.python_version(), "Use Python 3.10 or newer."),
        Finding("machine", True, f"{platform.machine()}, {platform.system()} {platform.release()}"),
    ]
    for extra, packages in _EXTRAS.items():
        missing = [name for name in packages if _version(name) is None]
        found = "all packages" if not missing else f"missing: {', '.join(missing)}"
        findings.append(Finding(f"extra {extra}", not missing, found, f"pip install 'edgeops[{extra}]'"))
    findings += _runtimes()
    for program, why in (("mosquitto", "brokers with mutual TLS"), ("apt-get", "`make` installs programs with it")):
        path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
        findings.append(Finding(program, path is not None, path or f"not found ({why})", f"Install {program}."))
    free_gib = shutil.disk_usage(Path.home()).free / 2**30
    findings.append(Finding("disk", free_gib > 2, f"{free_gib:.1f} GiB free at home", "Free some space."))
    return findings


def _runtimes() -> list[Finding]:
    if _version("numpy") is None:
        return [Finding("runtimes", False, "numpy is missing", "pip install 'edgeops[onnxruntime]'")]
    from edgeops.runtimes.registry import backends

    findings = []
    for name, backend in sorted(backends().items()):
        state = backend.available()
        found = " ".join((state.version or state.reason, *state.providers))
        findings.append(Finding(f"runtime {name}", state.version is not None, found, f"pip install 'edgeops[{name}]'"))
    return findings


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@click.command()
@json_option
def command(as_json: bool) -> None:
    """Say what this machine has and lacks for each job of edgeops.

    A device needs only the extra `agent` and one runtime; nothing here is an error of its own.
    """
    findings = examine()
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        rows = [(item.subject, "yes" if item.present else "no", item.found, "" if item.present else item.next_step)
                for item in findings]  # fmt: skip
        print_table(("what", "there", "found", "to get it"), rows)
    if not findings[1].present:
        raise EdgeopsError("E-DEPENDENCY", f"Python {platform.python_version()} is too old", findings[1].next_step)
