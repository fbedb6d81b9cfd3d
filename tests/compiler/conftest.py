"""Small profiles of one runtime each, a small real hand-over, and a cache of a test's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeops.compiler import executor
from edgeops.compiler.executor import Machine
from edgeops.compiler.isolation import Limits
from edgeops.compiler.store import Product, Stored
from edgeops.intake.cache import cache_dir
from edgeops.testkit.handovers import write_shapes_handover

_PROFILE = """\
name = "{name}"
title = "Test board"
runtimes = [
  {{ name = "{runtime}", runtime_min = "1.0", precisions = [{precisions}], {more}source = "test" }},
]

[cpu]
model = "any"
arch = "{arch}"
cores = 1
clock_mhz = 1000
source = "test"

[memory]
ram_mib = 1024
source = "test"
"""

MakeProfile = Callable[..., str]


@pytest.fixture(scope="session")
def shapes_handover(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small classifier with labelled data. Do not change it: copy it."""
    return write_shapes_handover(tmp_path_factory.mktemp("shapes") / "handover")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; toolchains, which are large and never change, are those of the machine."""
    shared = cache_dir() / "toolchains"
    shared.mkdir(parents=True, exist_ok=True)
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "toolchains").symlink_to(shared.resolve())
    monkeypatch.setenv("EDGEOPS_CACHE", str(cache))
    return cache


@pytest.fixture
def machine(own_cache: Path) -> Iterator[Machine]:
    """Two workers; what a test's passes need has to be installed before."""
    with executor.machine(2) as made:
        yield made._replace(limits=Limits(60, 2048))


@pytest.fixture
def source(tmp_path: Path) -> Stored:
    """What a first step begins with."""
    folder = tmp_path / "source"
    folder.mkdir()
    return Stored(folder, Product(facts=("file",)))


@pytest.fixture
def profile(tmp_path: Path) -> MakeProfile:
    """Return a maker of profile files; a foreign architecture keeps latency from deciding."""

    def make(runtime: str, *precisions: str, arch: str = "aarch64", more: str = "") -> str:
        if runtime == "onnxruntime" and not more:
            more = "onnx_ir_max = 10, onnx_opset_max = 21, "
        path = tmp_path / "profiles" / f"test-{runtime}.toml"
        path.parent.mkdir(exist_ok=True)
        listed = ", ".join(f'"{precision}"' for precision in precisions)
        path.write_text(_PROFILE.format(name=path.stem, runtime=runtime, precisions=listed, arch=arch, more=more))
        return str(path)

    return make


@pytest.fixture
def plugin_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a package with passes that crash, hang, hunger and lie, and modules that do so as they are imported."""
    folder = tmp_path / "plugins"
    (folder / "badpasses-1.0.dist-info").mkdir(parents=True)
    (folder / "badpasses.py").write_text(_BAD_PASSES)
    for name, code in _BAD_MODULES.items():
        (folder / f"{name}.py").write_text(code)
    (folder / "badpasses-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: badpasses\nVersion: 1.0\n"
    )
    names = ("Crash", "Hang", "Hunger", "Lie", "Fork", "Tell")
    lines = "".join(f"test-{name.lower()} = badpasses:{name}\n" for name in names)
    (folder / "badpasses-1.0.dist-info" / "entry_points.txt").write_text(f"[edgeops.passes]\n{lines}")
    from edgeops import plugins

    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(folder), os.environ.get("PYTHONPATH", ""))).strip(os.pathsep))
    plugins.found.cache_clear()
    yield folder
    plugins.found.cache_clear()


_BAD_PASSES = """
import os, signal, subprocess, sys, time
from edgeops.compiler.passes import Outcome

class _Pass:
    tools = ()
    requires = frozenset()
    ensures = frozenset({"onnx"})

class Crash(_Pass):
    def run(self, work):
        os.kill(os.getpid(), signal.SIGSEGV)

class Hang(_Pass):
    def run(self, work):
        time.sleep(600)

class Hunger(_Pass):
    def run(self, work):
        hoard = []
        while True:
            hoard.append(bytearray(os.urandom(1 << 20)) * 16)

class Lie(_Pass):
    def run(self, work):
        return Outcome(frozenset({"nothing"}), {})

class Fork(_Pass):
    def run(self, work):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open(work.parameters["pid_file"], "w").write(str(child.pid))
        os.kill(os.getpid(), signal.SIGKILL)

class Tell(_Pass):
    # Who started its process, and what that had imported before; takes a while where it is asked to.

    def preload(self, parameters):
        return tuple(parameters.get("preload", ()))

    def run(self, work):
        before = [name for name in work.parameters.get("preload", ()) if name in sys.modules]
        for name in work.parameters.get("preload", ()):
            __import__(name)
        if "pid_file" in work.parameters:
            open(work.parameters["pid_file"], "w").write(str(os.getpid()))
        while "until" in work.parameters and not os.path.exists(work.parameters["until"]):
            time.sleep(0.02)
        return Outcome(frozenset({"onnx"}), {"parent": os.getppid(), "before": before})
"""

_BAD_MODULES = {
    "import_is_plain": "",
    "import_crashes": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "import_hangs": "import time; time.sleep(600)",
    "import_starts_a_thread": "import threading; t = threading.Timer(600, print); t.daemon = True; t.start()",
}
