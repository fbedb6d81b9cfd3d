"""Control groups of workers: on the kernel's own group file system where it lets us, and on files like its."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from serving_rig import ServingRig

from edgeops.agent import cgroups
from edgeops.agent.cgroups import Groups
from edgeops.releases.bundles import Bundle

MIB = 1 << 20
LIMITS = ("memory.max", "memory.oom.group", "pids.max")


# On files


class Tree:
    """What `proc` and the group file system show of an agent in a group `/system.slice/edgeops-agent.service`."""

    def __init__(self, root: Path, group: str = "system.slice/edgeops-agent.service") -> None:
        self.root, self.base = root, root / "sys/fs/cgroup" / group
        self.base.mkdir(parents=True)
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text(f"9:name=systemd:/\n0::/{group}\n")
        (root / "proc/self/mountinfo").write_text(
            "24 1 0:22 / /proc rw - proc proc rw\n31 24 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"
        )
        self.say(f"{os.getpid()}\n", "cpu io memory pids")

    def say(self, processes: str, controllers: str) -> None:
        (self.base / "cgroup.procs").write_text(processes)
        (self.base / "cgroup.controllers").write_text(controllers)

    def find(self, *, with_parent: bool = False) -> Groups | None:
        return cgroups.find(with_parent=with_parent, root=self.root)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    made = Tree(tmp_path)
    mkdir = Path.mkdir

    def as_the_kernel(self: Path, *arguments: int, **options: bool) -> None:
        mkdir(self, *arguments, **options)  # type: ignore[arg-type]
        if self.parent == made.base:
            for name in LIMITS:
                (self / name).touch()

    monkeypatch.setattr(Path, "mkdir", as_the_kernel)
    return made


def test_a_group_of_the_agents_own_is_divided_and_each_worker_limited(tree: Tree):
    groups = tree.find()
    assert groups is not None
    assert (tree.base / "agent/cgroup.procs").read_text() == str(os.getpid())
    assert (tree.base / "cgroup.subtree_control").read_text() == "+memory +pids"
    assert groups.enclose(4711, 300.0) is not None
    worker = tree.base / "worker-4711"
    said = {name: (worker / name).read_text() for name in (*LIMITS, "cgroup.procs")}
    assert said == {
        "memory.max": str(300 * MIB), "memory.oom.group": "1", "pids.max": str(cgroups.MAX_PROCESSES),
        "cgroup.procs": "4711",
    }  # fmt: skip
    # The worker itself, once it knows its bundle.
    (tree.root / "proc/self/cgroup").write_text("0::/system.slice/edgeops-agent.service/worker-4711\n")
    cgroups.limit_own(200.0, tree.root)
    assert (worker / "memory.max").read_text() == str(200 * MIB)


def test_an_agent_that_goes_on_in_its_part_finds_the_whole(tree: Tree):
    """It was started anew in place, or as the child of the version before."""
    assert tree.find() is not None
    (tree.root / "proc/self/cgroup").write_text("0::/system.slice/edgeops-agent.service/agent\n")
    tree.say("", "memory")
    (tree.base / "agent/cgroup.procs").write_text(f"{os.getpid()}\n{os.getppid()}\n")
    assert tree.find() is None, "its parent may be anybody"
    assert tree.find(with_parent=True) is not None
    cgroups.limit_own(1.0, tree.root)
    assert (tree.base / "agent/memory.max").read_text() == "", "the agent itself is not limited"


@pytest.mark.parametrize(
    "why", ["others are in it", "no memory controller", "first version only", "not ours to divide"]
)
def test_a_group_that_is_not_the_agents_to_divide_is_left_alone(tree: Tree, why: str):
    if why == "others are in it":
        tree.say(f"{os.getpid()}\n1\n", "memory")
    elif why == "no memory controller":
        tree.say(f"{os.getpid()}\n", "cpu")
    elif why == "first version only":
        (tree.root / "proc/self/cgroup").write_text("4:memory:/system.slice\n")
    else:
        (tree.base / "agent").write_text("a name that cannot be made a group")
    assert tree.find() is None
    assert not (tree.base / "cgroup.subtree_control").exists()


def test_a_worker_without_a_group_is_a_worker_all_the_same(tree: Tree):
    groups = tree.find()
    assert groups is not None
    (tree.base / "worker-7").write_text("in the way")
    assert groups.enclose(7, 1.0) is None


# On the kernel's


@pytest.fixture
def base() -> Iterator[Path]:
    """A group of the second version."""
    own = cgroups.own_group()
    path = own / f"edgeops-test-{os.getpid()}" if own is not None else None
    try:
        if path is None:
            raise OSError("there is none")
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup v2 that this user may divide ({error}): run as root where /sys/fs/cgroup is writable")
    yield path
    for _ in range(200):
        with contextlib.suppress(OSError):
            path.rmdir()
            return
        time.sleep(0.01)


def group_of(pid: int) -> str:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return next(line for line in lines if line.startswith("0::")).rpartition("/")[2]


@pytest.mark.parametrize("enclosed", [True, False], ids=["", "control"])
def test_nothing_outlives_its_worker(base: Path, bundle: Bundle, enclosed: bool):
    """What a worker's native code starts dies with it; without the group it would go on for ever."""
    rig = ServingRig(groups=Groups(base) if enclosed else None)
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    try:
        rig.serve(bundle)
        first = rig.pid
        assert (group_of(first) == f"worker-{first}") is enclosed
        if enclosed:
            # As a child of the worker is from its beginning.
            (base / f"worker-{first}" / "cgroup.procs").write_text(str(left.pid))
        psutil.Process(first).kill()
        rig.expect("crashed")
        rig.expect("serves")
        assert (left.poll() is not None) is enclosed
        assert not (base / f"worker-{first}").exists()
        assert (group_of(rig.pid) == f"worker-{rig.pid}") is enclosed
    finally:
        rig.close()
        left.kill()
        left.wait()
    assert list(base.glob("worker-*")) == []


def test_what_an_agent_left_that_died_is_ended_by_the_next(base: Path):
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    try:
        assert Groups(base).enclose(left.pid, 64.0) is not None
        Groups(base)
        assert left.wait(60) != 0
        assert list(base.glob("worker-*")) == []
    finally:
        left.kill()
        left.wait()


@pytest.mark.full
def test_shared_memory_that_no_limit_of_a_process_counts_is_limited(base: Path):
    if "memory" not in (base / "cgroup.controllers").read_text().split():
        pytest.skip("the memory controller is not the second version's here: run where systemd has it, as root")
    (base / "cgroup.subtree_control").write_text("+memory")
    code = (
        "import mmap, resource as r, sys; r.setrlimit(r.RLIMIT_DATA, (200 << 20, 200 << 20)); sys.stdin.read();"
        "shared = mmap.mmap(-1, 512 << 20); shared.write(bytes(1 << 20) * 512)"
    )
    hungry = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    try:
        group = Groups(base).enclose(hungry.pid, 128.0)
        assert group is not None
        with contextlib.suppress(OSError):
            (base / f"worker-{hungry.pid}" / "memory.swap.max").write_text("0")
        hungry.communicate(b"", timeout=60)
        assert hungry.returncode == -9
        group.end()
    finally:
        hungry.kill()
        hungry.wait()
