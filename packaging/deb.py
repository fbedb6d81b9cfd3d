"""Builds the Debian package `edgeops-agent`: an environment of its own in /opt, a unit, a user, configuration files.

`python packaging/deb.py OUT` writes `edgeops-agent_VERSION_ARCH.deb`. It needs dpkg-deb, and pip's network.
"""

from __future__ import annotations

import gzip
import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from edgeops import __version__
from edgeops.agent.service import ServiceOptions, unit_text
from edgeops.flash.payload import Platform, install_wheels, put_code, requirements_of

EXTRAS = ("agent", "onnxruntime", "litert")
ROOT = Path(__file__).parents[1]
# Debian 12's.
GLIBC, PYTHON = (2, 36), (3, 11)
ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}
PREFIX, STATE, CONFIG = "/opt/edgeops-agent", "/var/lib/edgeops", "/etc/edgeops/agent.conf"

CONTROL = """\
Package: edgeops-agent
Version: {version}
Architecture: {arch}
Maintainer: edgeops maintainers <maintainers@edgeops.invalid>
Installed-Size: {size}
Depends: python3 (>= 3.11), python3 (<< 3.12), libc6 (>= 2.36), libstdc++6, systemd | systemd-standalone-sysusers
Section: misc
Priority: optional
Description: edge-ML agent: verifies, tests, serves and watches models
 The agent makes this machine a device of an edgeops fleet. It fetches signed
 models, tests them on this machine before they serve, serves them on loopback,
 and goes back to the model before where a new one is not healthy.
"""
CONF = """\
# Settings of the agent's service. Changes are kept when the package is upgraded.
# Device profile, needed until the device is enrolled; see `edgeops profile list`.
EDGEOPS_PROFILE=generic-{profile}
# Further options of `edgeops agent run`.
EDGEOPS_OPTIONS=
"""
POSTINST = """\
#!/bin/sh
set -e
if [ "$1" = configure ]; then
    systemd-sysusers edgeops-agent.conf
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload
        systemctl try-restart edgeops-agent.service || true
    fi
fi
"""
PRERM = """\
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    systemctl disable --now edgeops-agent.service || true
fi
# What Python keeps beside its sources is nobody's file.
find /opt/edgeops-agent -name __pycache__ -prune -exec rm -rf {} +
"""
POSTRM = """\
#!/bin/sh
set -e
if [ "$1" = purge ]; then
    rm -rf /var/lib/edgeops /etc/edgeops/token
    rmdir --ignore-fail-on-non-empty /etc/edgeops 2>/dev/null || true
fi
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
"""
COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: edgeops

Files: *
Copyright: 2026 edgeops contributors
License: Apache-2.0
 See /usr/share/common-licenses/Apache-2.0.
Comment: Packages below /opt/edgeops-agent/lib keep their own licences in
 their dist-info folders.
"""
SYSUSERS = f'u edgeops - "edgeops agent" {STATE}\n'


def build(out: Path, version: str = __version__) -> Path:
    """Build the package for this machine's architecture; return it."""
    machine = platform.machine()
    arch = ARCHES[machine]
    with tempfile.TemporaryDirectory(prefix="edgeops-deb-") as name:
        root = Path(name) / "root"
        site = root / PREFIX[1:] / f"lib/python{PYTHON[0]}.{PYTHON[1]}/site-packages"
        install_wheels(requirements_of(EXTRAS), Platform(machine, GLIBC, PYTHON), site)
        put_code(site)
        shutil.rmtree(site / "bin", ignore_errors=True)
        for left in (*site.rglob(".git*"), *site.rglob("__pycache__")):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        _environment(root / PREFIX[1:])
        _texts(root, "x86-64" if arch == "amd64" else "arm64")
        control = root / "DEBIAN"
        control.mkdir()
        size = sum(file.lstat().st_size for file in root.rglob("*") if file.is_file()) // 1024
        (control / "control").write_text(CONTROL.format(version=version, arch=arch, size=size))
        (control / "conffiles").write_text(f"{CONFIG}\n")
        for script, text in (("postinst", POSTINST), ("prerm", PRERM), ("postrm", POSTRM)):
            (control / script).write_text(text)
            (control / script).chmod(0o755)
        (control / "md5sums").write_text(_sums(root))
        _plain_modes(root)
        target = out / f"edgeops-agent_{version}_{arch}.deb"
        out.mkdir(parents=True, exist_ok=True)
        command = ["dpkg-deb", "--root-owner-group", "-Zxz", "-z1", "--build", str(root), str(target)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return target


def _environment(prefix: Path) -> None:
    """Make what Python reads as a virtual environment of the system's interpreter."""
    (prefix / "bin").mkdir()
    (prefix / "bin/python").symlink_to(f"/usr/bin/python{PYTHON[0]}.{PYTHON[1]}")
    (prefix / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\nversion = 3.11\n")
    command = prefix / "bin/edgeops"
    command.write_text(f"#!{PREFIX}/bin/python\nfrom edgeops.cli import main\n\nmain()\n")
    command.chmod(0o755)


def _texts(root: Path, profile: str) -> None:
    python = f"{PREFIX}/bin/python"
    options = ServiceOptions(Path(STATE), arguments=("--token-file", "/etc/edgeops/token"), python=python)
    settings = f" --profile ${{EDGEOPS_PROFILE}} $EDGEOPS_OPTIONS\nEnvironmentFile={CONFIG}\nUser="
    unit = unit_text(options).replace("\nUser=", settings, 1)
    unit = unit.replace("Written by `edgeops agent install-service`", "Of the package edgeops-agent")
    files = {
        "lib/systemd/system/edgeops-agent.service": unit,
        "usr/lib/sysusers.d/edgeops-agent.conf": SYSUSERS,
        CONFIG[1:]: CONF.format(profile=profile),
        "usr/share/doc/edgeops-agent/copyright": COPYRIGHT,
    }
    changelog = root / "usr/share/doc/edgeops-agent/changelog.gz"
    changelog.parent.mkdir(parents=True)
    changelog.write_bytes(gzip.compress((ROOT / "CHANGELOG.md").read_bytes(), 9, mtime=0))
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    link = root / "usr/bin/edgeops-agent"
    link.parent.mkdir(parents=True)
    link.symlink_to(f"{PREFIX}/bin/edgeops")


def _sums(root: Path) -> str:
    lines = []
    for file in sorted(root.rglob("*")):
        name = file.relative_to(root)
        if file.is_file() and not file.is_symlink() and name.parts[0] != "DEBIAN":
            lines.append(f"{hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()}  {name}\n")
    return "".join(lines)


def _plain_modes(root: Path) -> None:
    """Give files the modes of a package: what is run by its name may be run, and nothing else."""
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            is_program = (
                path.parent.name in ("bin", "DEBIAN") and path.read_bytes()[:2] == b"#!" if path.is_file() else True
            )
            path.chmod(0o755 if is_program else 0o644)


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
