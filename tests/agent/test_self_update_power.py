"""The power is cut at every file operation of an update of the agent: installed, switched to, confirmed or taken back.

pip writes in a process of its own, where nobody can note what it does; its part is done here, as it does it: without
making anything durable.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from adder_bundles import PROFILE

from edgeops import durable
from edgeops.agent import self_update, versions
from edgeops.agent.channel import Load
from edgeops.agent.slots import Slots
from edgeops.contracts.bundle import AgentManifest
from edgeops.contracts.deployment import Slot
from edgeops.releases.bundles import pack, seal_agent
from edgeops.testkit.power import Cut, cuts, recording

EVERY = 6
ENDS = ["confirmed", "taken back"]


class Version(NamedTuple):
    """A release of the agent, its file, and what pip leaves of it."""

    slot: Slot
    file: Path
    site: dict[str, bytes]


class Started(Exception):
    """The version that a start runs."""


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def execve(program: str, words: list[str], environment: dict[str, str]) -> None:
        raise Started(environment[versions._RUNS])

    monkeypatch.setattr(os, "execve", execve)
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Version, Version]:
    made = []
    for number in (1, 2):
        folder, version = tmp_path_factory.mktemp(f"agent-{number}"), f"9.{number}.0"
        (folder / "bundle/wheels").mkdir(parents=True)
        (folder / f"bundle/wheels/edgeops-{version}-py3-none-any.whl").write_bytes(b"wheel %d" % number)
        bundle = seal_agent(folder / "bundle", AgentManifest(agent=version, profile=PROFILE, files={}))
        pack(bundle, folder / "file")
        site = {f"edgeops/part_{part}.py": f"version = {number}, {part}\n".encode() * 200 for part in range(3)}
        made.append(Version(Slot(release=version, digest=bundle.digest, number=number), folder / "file", site))
    return made[0], made[1]


def install(root: Path, version: Version, monkeypatch: pytest.MonkeyPatch) -> Slots:
    """Bring a version into the free slot, its wheels installed there, as the agent does."""
    slots = Slots(versions.directory_of(root))
    slots.install(slots.unpack(version.file, version.slot), version.slot)
    directory = slots.bundle_path(slots.candidate)

    def pip(self: Any, command: list[str], *_: object) -> str:
        site = Path(command[command.index("--target") + 1])
        for name, data in version.site.items():
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_bytes(data)
        return ""

    monkeypatch.setattr(self_update._Try, "_call", pip)
    trying: Any = object.__new__(self_update._Try)
    trying._load = Load(directory=str(directory), release=version.slot.release, digest=version.slot.digest, ram_mib=1)
    trying._slot = directory.parent
    trying._install()
    return slots


@pytest.fixture
def device(tmp_path: Path, both: tuple[Version, Version], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A device whose agent is the first version."""
    root = tmp_path / "device"
    slots = install(root, both[0], monkeypatch)
    slots.switch(slots.candidate)
    slots.confirm()
    return root


def recorded(device: Path, version: Version, end: str, monkeypatch: pytest.MonkeyPatch) -> list[Cut]:
    with recording(device) as journal:
        slots = install(device, version, monkeypatch)
        slots.switch(slots.candidate)
        versions._count_start(device, version.slot.digest)
        if end == "confirmed":
            slots.confirm()
            versions.calm(device)
        else:
            versions._take_back(device, "it did not report")
    return list(cuts(journal))


def check_start(root: Path, both: tuple[Version, Version]) -> str:
    """A start runs a version, whole, and not the installed one for want of another; returns its digest."""
    slots = Slots(versions.directory_of(root))
    if slots.in_trial:
        assert slots.active is not None
        slot = slots.bundle_path(slots.active).parent
        if versions.is_installed(slot, slots.records[slots.active].slot.digest):
            check_whole(slot, both[1])
        versions._take_back(root, "cut off")
        slots = Slots(versions.directory_of(root))
    with pytest.raises(Started) as started:
        versions._run_proved(root, slots)
    digest = str(started.value)
    name = next(name for name, record in slots.records.items() if record.slot.digest == digest)
    check_whole(slots.bundle_path(name).parent, next(version for version in both if version.slot.digest == digest))
    return digest


def check_whole(slot: Path, version: Version) -> None:
    site = versions.site_of(slot)
    found = {path.relative_to(site).as_posix(): path.read_bytes() for path in site.rglob("*") if path.is_file()}
    assert found == version.site, "a version that is marked whole is not"


@pytest.mark.parametrize("every", [EVERY, pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.parametrize("end", ENDS)
def test_a_cut_anywhere_in_an_update_of_the_agent_leaves_a_whole_agent(
    end: str,
    every: int,
    device: Path,
    both: tuple[Version, Version],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    proof: Callable[[str], None],
):
    all_cuts = recorded(device, both[1], end, monkeypatch)
    ran = []
    for index in range(0, len(all_cuts), every):
        root = tmp_path / "cuts" / str(index)
        all_cuts[index].tree.write_to(root)
        ran.append(check_start(root, both))
        # What was not confirmed is fetched and installed once more, over whatever lies there.
        if index % (5 * every) == 0 and ran[-1] == both[0].slot.digest:
            slots = install(root, both[1], monkeypatch)
            slots.switch(slots.candidate)
            slots.confirm()
            assert check_start(root, both) == both[1].slot.digest
        shutil.rmtree(root)
    assert set(ran) == {version.slot.digest for version in (both if end == "confirmed" else both[:1])}
    proof(f"{len(ran)} cuts of an update of the agent survived")
    assert len(ran) >= 20


@pytest.mark.parametrize("mutant", ["no fsync of the wheels", "no fsync of directories"])
def test_a_forgetful_update_is_caught_by_name(
    mutant: str,
    device: Path,
    both: tuple[Version, Version],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    proof: Callable[[str], None],
):
    """Negative control: after some cut a version runs that is not whole, or none does."""
    sync = durable.fsync_tree
    if mutant == "no fsync of the wheels":
        monkeypatch.setattr(durable, "fsync_tree", lambda root: None if root.name == "site" else sync(root))
    else:
        monkeypatch.setattr(durable, "fsync_dir", lambda directory: None)
    for index, cut in enumerate(reversed(recorded(device, both[1], "confirmed", monkeypatch))):
        root = tmp_path / "mutant" / str(index)
        cut.tree.write_to(root)
        try:
            check_start(root, both)
        except (AssertionError, pytest.fail.Exception) as error:
            proof(f"mutant {mutant!r} caught: {str(error).splitlines()[0]}")
            return
        shutil.rmtree(root)
    pytest.fail(f"the mutant {mutant!r} was not caught")
