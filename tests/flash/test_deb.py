"""The Debian package, installed, upgraded and purged in a Debian of its own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from edgeops import __version__

ROOT = Path(__file__).parents[2]
PROGRAMS = {"debootstrap": "debootstrap", "dpkg-deb": "dpkg", "unshare": "util-linux"}
MISSING = [
    package for name, package in PROGRAMS.items() if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
]
pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(os.geteuid() != 0, reason="a Debian of its own needs root: debootstrap and chroot"),
    pytest.mark.skipif(bool(MISSING), reason=f"apt-get install --yes {' '.join(MISSING)}"),
]
LATER = f"{__version__}+later"
# Each line that says something is looked at below.
STORY = """
set -e
mount --bind /proc "$1/proc"
cp "$2" "$1/first.deb"; cp "$3" "$1/later.deb"
in_root() { chroot "$ROOT" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"; }
ROOT=$1
in_root dpkg -i /first.deb > /dev/null
echo "version $(in_root edgeops-agent --version)"
echo "user $(in_root getent passwd edgeops | cut -d: -f1,6)"
unit=/lib/systemd/system/edgeops-agent.service
echo "unit $(in_root systemd-analyze verify $unit 2>&1 | grep -c edgeops-agent || true)"
echo "EDGEOPS_OPTIONS=--http-port 8000" >> "$ROOT/etc/edgeops/agent.conf"
mkdir -p "$ROOT/var/lib/edgeops/identity"; echo key > "$ROOT/var/lib/edgeops/identity/device.key"
in_root dpkg -i --force-confold /later.deb > /dev/null
echo "upgraded $(in_root dpkg-query -W -f '${Version}' edgeops-agent)"
echo "kept $(grep -c 'http-port 8000' "$ROOT/etc/edgeops/agent.conf")"
in_root dpkg -r edgeops-agent > /dev/null
echo "removed $([ -e "$ROOT/opt/edgeops-agent/bin/python" ] && echo no || echo yes)"
conf=$([ -e "$ROOT/etc/edgeops/agent.conf" ] && echo yes)
echo "state $(cat "$ROOT/var/lib/edgeops/identity/device.key") conf $conf"
in_root dpkg -P edgeops-agent > /dev/null
left=$(find "$ROOT/etc/edgeops" "$ROOT/var/lib/edgeops" "$ROOT/opt/edgeops-agent" 2>/dev/null | tr '\\n' ' ')
echo "purged ${left:-all}"
"""


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deb", ROOT / "packaging/deb.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_package_is_installed_upgraded_and_purged(recipe: ModuleType, tmp_path: Path) -> None:
    packages = [recipe.build(tmp_path, version) for version in (__version__, LATER)]
    debian = tmp_path / "debian"
    mirror = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"],
        capture_output=True, text=True, check=True,
    ).stdout.split("\n")[0]  # fmt: skip
    program = shutil.which("debootstrap", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program is not None
    include = "--include=python3,systemd"
    subprocess.run(
        [program, "--variant=minbase", include, "bookworm", debian, *([mirror] if mirror else [])], check=True,
        capture_output=True,
    )  # fmt: skip
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", STORY, "sh", debian, *packages],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert said == {
        "version": f"edgeops, version {__version__}",
        "user": "edgeops:/var/lib/edgeops",
        "unit": "0",
        "upgraded": LATER,
        "kept": "1",
        "removed": "yes",
        "state": "key conf yes",
        "purged": "all",
    }
