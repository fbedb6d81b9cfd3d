"""Boards behind a real labgrid: a microcontroller by its QEMUDriver, a Linux board by its SSHDriver, and its places."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from command_runs import running
from labgrid_bench import (
    SWITCH,
    Coordinator,
    free_port,
    held,
    mcu_environment,
    needs_labgrid,
    place_environment,
    ssh_environment,
    vm_environment,
)
from loopback_board import LOOPS_BACK, LoopbackBoard, can_loop_back
from rig_bundles import check_all_passed, linux_bundle, mcu_bundle, skip_without

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rigs import BoardResult, Verdict
from edgeops.flash.payload import put_code
from hil.boards import labgrid_process
from hil.boards.arm64_root import CODE, SITE, install_packages
from hil.boards.kinds import open_board
from hil.boards.labgrid import LabgridBoard, LabgridMcuBoard
from hil.checks.plan import Effort, Subject
from hil.rig import Arm64VmSpec, LabgridMcuSpec, LabgridSpec, Rig
from hil.run import Request, run_rig

pytestmark = [pytest.mark.boards, needs_labgrid, pytest.mark.timeout(900)]
needs_sshd = pytest.mark.skipif(not can_loop_back(), reason=LOOPS_BACK)
needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the board is this machine, of an x86-64 profile")
X86 = "generic-x86-64"


def m4(environment: Path, **changed: object) -> LabgridMcuSpec:
    values = {"name": "m4", "profile": "cortex-m4", "timing": False, "signing_key": str(environment.parent / "key.pem")}
    return LabgridMcuSpec(environment=str(environment), **{**values, **changed})  # type: ignore[arg-type]


def run(board: LabgridSpec | LabgridMcuSpec, tested: Path, **effort: float) -> BoardResult:
    request = Request({board.profile: Subject(tested)}, Effort(**{"runs": 5, "cuts": 1, **effort}))  # type: ignore[arg-type]
    return run_rig(Rig(name="bench", title="a bench", boards=(board,)), request).boards[0]


def emulators_of(pid: int) -> set[int]:
    """The emulators that a process and its children run."""
    found = set()
    for one in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if one.name().startswith("qemu-system"):
                found.add(one.pid)
    return found


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def all_gone(processes: set[int], within_s: float = 30) -> bool:
    deadline_s = time.monotonic() + within_s
    while any(runs(pid) for pid in processes):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.1)
    return True


def children_of(process: subprocess.Popen[str]) -> set[int]:
    return {child.pid for child in psutil.Process(process.pid).children(recursive=True)}


@pytest.mark.usefixtures("arm_compiler", "emulator")
class TestMicrocontroller:
    def test_a_good_model_passes_everything_through_labgrids_emulator(self, tmp_path: Path) -> None:
        result = run(m4(mcu_environment(tmp_path)), mcu_bundle(tmp_path / "bundle").directory, cuts=2)
        verdicts = {check.check: check.verdict for check in result.checks}
        assert [name for name, verdict in verdicts.items() if verdict is not Verdict.PASSED] == ["accuracy", "soak"]
        assert result.cut == "labgrid's QEMUDriver"
        assert {check.check: check.figures for check in result.checks}["power-cut"]["cuts"] == 2

    def test_a_model_that_answers_wrongly_is_stopped_by_its_golden_vectors(self, tmp_path: Path) -> None:
        lying = mcu_bundle(tmp_path / "bundle", lie=1).directory
        result = run(m4(mcu_environment(tmp_path)), lying, cuts=0)
        assert {check.check for check in result.checks if check.verdict is Verdict.FAILED} == {"golden"}

    def test_a_board_that_is_another_one_is_broken_not_failed(self, tmp_path: Path) -> None:
        other = mcu_environment(tmp_path, "mps2-an385", "cortex-m3")
        result = run(m4(other), mcu_bundle(tmp_path / "bundle").directory)
        assert result.verdict is Verdict.BROKEN
        assert "another board answers: cortex-m3, expected cortex-m4" in result.checks[0].said

    def test_a_board_that_boots_into_garbage_is_broken_and_off(self, tmp_path: Path) -> None:
        environment = mcu_environment(tmp_path)
        (tmp_path / "garbage").write_bytes(b"\xde\xad\xbe\xef" * 4096)
        lines = environment.read_text().splitlines()
        environment.write_text(
            "\n".join(f"  firmware: {tmp_path}/garbage" if line.startswith("  firmware:") else line for line in lines)
        )
        result = run(m4(environment, boot_within_s=2.0), mcu_bundle(tmp_path / "bundle").directory)
        assert (result.verdict, result.checks[0].check, result.checks[0].code) == (
            Verdict.BROKEN, "boot", "E-HIL-BOARD",
        )  # fmt: skip
        assert not emulators_of(os.getpid())

    def test_an_emulator_that_dies_is_broken_and_the_next_power_on_brings_it_back(self, tmp_path: Path) -> None:
        """QEMUDriver itself never notices that its emulator is gone: another process of labgrid's has to."""
        with LabgridMcuBoard(m4(mcu_environment(tmp_path)), tmp_path) as board:
            board.power_on()
            (emulator,) = emulators_of(os.getpid())
            os.kill(emulator, signal.SIGKILL)
            with pytest.raises(EdgeopsError), board.link(0.2) as link:
                link.echo("there?")
            board.power_off()
            board.power_on()
            with board.link() as link:
                assert link.echo("there?") == "there?"

    @pytest.mark.parametrize("after_lines", [1, 5])
    def test_an_interrupt_leaves_the_board_off_and_free(self, tmp_path: Path, after_lines: int) -> None:
        with self.running(tmp_path, after_lines) as process:
            children = children_of(process)
            assert emulators_of(process.pid) or after_lines == 1
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=90)
            assert process.returncode != 0
            assert all_gone(children)
        with LabgridMcuBoard(m4(tmp_path / "labgrid.yaml"), tmp_path) as board:
            board.power_on()

    def test_a_killed_run_leaves_the_board_off(self, tmp_path: Path) -> None:
        """Nobody can clean up any more: labgrid's end does, when its input ends."""
        with self.running(tmp_path, 5) as process:
            children = children_of(process)
            process.kill()
            process.communicate(timeout=90)
            assert all_gone(children)

    @contextlib.contextmanager
    def running(self, folder: Path, after_lines: int) -> Iterator[subprocess.Popen[str]]:
        environment = mcu_environment(folder)
        keys = (
            'name = "m4"\nkind = "labgrid-mcu"\nprofile = "cortex-m4"\ntiming = false\n'
            f'environment = "{environment}"\nsigning_key = "{folder}/key.pem"'
        )
        with running(folder, keys, mcu_bundle(folder / "bundle").directory, after_lines=after_lines) as process:
            yield process


@pytest.fixture
def sshd_board(tmp_path: Path) -> Iterator[LoopbackBoard]:
    with LoopbackBoard(tmp_path / "board") as board:
        yield board


def linux(environment: Path, board: LoopbackBoard, **changed: object) -> LabgridSpec:
    values = {
        "name": "x86", "profile": X86, "known_hosts": str(board.folder / "known_hosts"), "python": sys.executable,
        "boot_within_s": 20.0,
    }  # fmt: skip
    return LabgridSpec(environment=str(environment), **{**values, **changed})  # type: ignore[arg-type]


def switched(folder: Path) -> list[str]:
    """What the power switch was told."""
    return (folder / "power").read_text().split() if (folder / "power").exists() else []


@needs_x86
@needs_sshd
class TestLinux:
    def test_a_good_release_passes_through_labgrids_connection(self, tmp_path: Path, sshd_board: LoopbackBoard) -> None:
        """Its environment has no power driver, so a cut kills what was started, and the result says so."""
        environment = ssh_environment(tmp_path, sshd_board.port, sshd_board.folder / "login_key", drivers="")
        result = run(linux(environment, sshd_board), linux_bundle(tmp_path), cuts=1, soak_s=1)
        check_all_passed(result)
        assert "no power switch" in result.cut

    def test_the_switch_is_on_while_the_board_is_used_and_off_afterwards(
        self, tmp_path: Path, sshd_board: LoopbackBoard
    ) -> None:
        environment = ssh_environment(tmp_path, sshd_board.port, sshd_board.folder / "login_key")
        with LabgridBoard(linux(environment, sshd_board), tmp_path) as board:
            assert switched(tmp_path) == []
            board.power_on()
            assert switched(tmp_path) == ["on"]
            (tmp_path / "some").mkdir()
            (tmp_path / "some/file").write_bytes(b"\0\r\n\xff")
            place = board.put(tmp_path / "some", "some")
            done = board.run("cat", f"{place}/file")
            assert (done.status, done.out) == (0, b"\0\r\n\xff")
            assert board.run("sh", "-c", "echo wrong >&2; exit 7")[::2] == (7, "wrong\n")
        assert set(switched(tmp_path)[1:]) == {"off"}

    @pytest.mark.parametrize("key", ["other", "none"])
    def test_a_board_with_another_host_key_is_not_spoken_to(
        self, tmp_path: Path, sshd_board: LoopbackBoard, key: str
    ) -> None:
        """labgrid alone would take any: the control below lets it."""
        known = tmp_path / "known_hosts"
        wrong = (sshd_board.folder / "other_key.pub").read_text()
        known.write_text(f"[127.0.0.1]:{sshd_board.port} {wrong}" if key == "other" else "")
        environment = ssh_environment(tmp_path, sshd_board.port, sshd_board.folder / "login_key")
        spec = linux(environment, sshd_board, known_hosts=str(known), boot_within_s=3.0)
        with LabgridBoard(spec, tmp_path) as board, pytest.raises(EdgeopsError) as caught:
            board.power_on()
        assert caught.value.code == "E-HIL-BOARD"
        assert "Accepted publickey" not in (sshd_board.folder / "sshd.log").read_text()
        assert switched(tmp_path)[0] == "on"
        assert switched(tmp_path)[-1] == "off"

    def test_control_labgrid_alone_speaks_to_a_board_with_any_host_key(
        self, tmp_path: Path, sshd_board: LoopbackBoard, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trusting = tmp_path / "worker.py"
        text = labgrid_process.WORKER.read_text()
        trusting.write_text(text.replace("ssh._start_own_master = lambda: self._start_verified(ssh)", "pass"))
        assert trusting.read_text() != text
        monkeypatch.setattr(labgrid_process, "WORKER", trusting)
        (tmp_path / "known_hosts").write_text("")
        environment = ssh_environment(tmp_path, sshd_board.port, sshd_board.folder / "login_key")
        spec = linux(environment, sshd_board, known_hosts=str(tmp_path / "known_hosts"))
        with LabgridBoard(spec, tmp_path) as board:
            board.power_on()
        assert "Accepted publickey" in (sshd_board.folder / "sshd.log").read_text()

    def test_a_link_that_is_lost_in_mid_test_breaks_the_board_and_it_is_switched_off(
        self, tmp_path: Path, sshd_board: LoopbackBoard
    ) -> None:
        environment = ssh_environment(tmp_path, sshd_board.port, sshd_board.folder / "login_key")
        with LabgridBoard(linux(environment, sshd_board), tmp_path) as board:
            board.power_on()
            sshd_board.power_off()
            with pytest.raises(EdgeopsError) as caught:
                board.run("true", within_s=30)
            assert caught.value.code == "E-HIL-BOARD"
        assert switched(tmp_path)[-1] == "off"

    def test_a_board_that_never_boots_is_broken_and_switched_off(
        self, tmp_path: Path, sshd_board: LoopbackBoard
    ) -> None:
        environment = ssh_environment(tmp_path, free_port(), sshd_board.folder / "login_key")
        result = run(linux(environment, sshd_board, boot_within_s=1.0), linux_bundle(tmp_path))
        assert (result.verdict, result.checks[0].check, result.checks[0].code) == (
            Verdict.BROKEN, "boot", "E-HIL-BOARD",
        )  # fmt: skip
        assert switched(tmp_path)[0] == "on"
        assert switched(tmp_path)[-1] == "off"

    def test_a_strategy_brings_the_board_into_its_state_and_off(
        self, tmp_path: Path, sshd_board: LoopbackBoard
    ) -> None:
        (tmp_path / "strategy.py").write_text(
            "import attr\nfrom labgrid.factory import target_factory\nfrom labgrid.strategy import Strategy\n"
            "@target_factory.reg_driver\n@attr.s(eq=False)\nclass BenchStrategy(Strategy):\n"
            "    bindings = {'power': 'PowerProtocol'}\n"
            "    def transition(self, status):\n"
            f"        open('{tmp_path}/states', 'a').write(status + '\\n')\n"
            "        self.target.activate(self.power)\n"
            "        self.power.off() if status == 'off' else self.power.on()\n"
        )
        environment = ssh_environment(
            tmp_path, sshd_board.port, sshd_board.folder / "login_key",
            drivers=f"{SWITCH}      BenchStrategy: {{{{}}}}", extra="imports:\n  - strategy.py",
        )  # fmt: skip
        with LabgridBoard(linux(environment, sshd_board, state="shell"), tmp_path) as board:
            board.power_on()
            assert board.run("true").status == 0
        states = (tmp_path / "states").read_text().split()
        assert states[0] == "shell"
        assert states[-1] == "off"
        assert switched(tmp_path)[-1] == "off"

    @pytest.mark.parametrize(
        ("old", "new", "said"),
        [
            ("  main:", "  other:", "no target 'main'; there are other"),
            ("SSHDriver:", "SshDriver:", "SshDriver"),
            ("targets:", "targets: [", "Error in configuration file"),
            ("      SSHDriver:\n        keyfile", "      UnusedDriver:\n        keyfile", "UnusedDriver"),
        ],
    )
    def test_a_wrong_environment_file_is_refused_with_what_is_wrong(
        self, tmp_path: Path, sshd_board: LoopbackBoard, old: str, new: str, said: str
    ) -> None:
        environment = ssh_environment(tmp_path, sshd_board.port, sshd_board.folder / "login_key")
        environment.write_text(environment.read_text().replace(old, new))
        with pytest.raises(EdgeopsError, match=said) as caught:
            LabgridBoard(linux(environment, sshd_board), tmp_path)
        assert caught.value.code == "E-HIL-RIG"
        assert switched(tmp_path) == []


HOLD = """
import sys, tempfile, time
from pathlib import Path
from hil.boards.kinds import open_board
from hil.rig import read_rig
with open_board(read_rig(Path(sys.argv[1])).boards[0], Path(tempfile.mkdtemp())) as board:
    board.power_on()
    print("held", flush=True)
    time.sleep(600)
"""


@needs_x86
@needs_sshd
class TestPlaces:
    @pytest.fixture
    def lab(self, tmp_path: Path, sshd_board: LoopbackBoard) -> Iterator[Coordinator]:
        folder = tmp_path / "lab"
        folder.mkdir()
        with Coordinator(folder, sshd_board.port) as coordinator:
            yield coordinator

    @staticmethod
    def spec(folder: Path, lab: Coordinator, board: LoopbackBoard) -> LabgridSpec:
        return linux(place_environment(folder, lab.port, board.folder / "login_key"), board)

    @staticmethod
    def rig_file(folder: Path, spec: LabgridSpec) -> Path:
        (folder / "bench.toml").write_text(
            f'name = "bench"\ntitle = "b"\n[[boards]]\nname = "x86"\nkind = "labgrid"\nprofile = "{X86}"\n'
            f'environment = "{spec.environment}"\nknown_hosts = "{spec.known_hosts}"\npython = "{sys.executable}"\n'
        )
        return folder / "bench.toml"

    @staticmethod
    def another_job(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """From here on this is a job that knows nothing of this machine's locks, as one of another machine."""
        monkeypatch.setattr(labgrid_process, "lock_folder", lambda: folder / "locks-of-another")

    def test_two_jobs_never_share_a_place(
        self, tmp_path: Path, lab: Coordinator, sshd_board: LoopbackBoard, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec = self.spec(tmp_path, lab, sshd_board)
        with open_board(spec, tmp_path) as board:
            board.power_on()
            holder = lab.holder
            assert "-edgeops-" in holder
            with monkeypatch.context() as patched:
                self.another_job(tmp_path, patched)
                with pytest.raises(EdgeopsError) as caught:
                    open_board(spec, tmp_path)
            assert caught.value.code == "E-HIL-BUSY"
            assert holder in caught.value.what
            assert switched(tmp_path) == ["on"]
            assert lab.holder == holder
        assert lab.holder == ""
        self.another_job(tmp_path, monkeypatch)
        with open_board(spec, tmp_path, 30) as board:
            board.power_on()
            assert lab.holder not in ("", holder)

    def test_control_jobs_of_one_name_share_a_place_so_each_has_its_own(
        self, tmp_path: Path, lab: Coordinator, sshd_board: LoopbackBoard, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """labgrid knows users of machines, and a CI's jobs are all one: by that name alone the second gets in."""
        monkeypatch.setattr(labgrid_process, "_owner", lambda: "ci")
        spec = self.spec(tmp_path, lab, sshd_board)
        with open_board(spec, tmp_path):
            self.another_job(tmp_path, monkeypatch)
            with open_board(spec, tmp_path) as second:
                second.power_on()
        assert switched(tmp_path)[0] == "on"

    def test_a_place_that_a_person_holds_is_left_alone_and_waited_for(
        self, tmp_path: Path, lab: Coordinator, sshd_board: LoopbackBoard
    ) -> None:
        spec = self.spec(tmp_path, lab, sshd_board)
        lab.client("-p", "bench", "acquire")
        person = lab.holder
        result = run(spec, linux_bundle(tmp_path))
        assert (result.verdict, result.checks[0].code) == (Verdict.BROKEN, "E-HIL-BUSY")
        assert lab.holder == person
        assert switched(tmp_path) == []
        lab.client("-p", "bench", "release")
        with open_board(spec, tmp_path, 30) as board:
            board.power_on()

    def test_where_labgrids_process_is_killed_another_one_switches_off_and_gives_back(
        self, tmp_path: Path, lab: Coordinator, sshd_board: LoopbackBoard
    ) -> None:
        with open_board(self.spec(tmp_path, lab, sshd_board), tmp_path) as board:
            board.power_on()
            (worker,) = [
                one
                for one in psutil.Process().children()
                if str(labgrid_process.WORKER) in (one.cmdline() if runs(one.pid) else [])
            ]
            worker.kill()
            worker.wait(10)
            assert lab.holder
            assert switched(tmp_path) == ["on"]
        assert lab.holder == ""
        assert switched(tmp_path)[-1] == "off"

    def test_a_coordinator_that_goes_leaves_the_board_off(
        self, tmp_path: Path, lab: Coordinator, sshd_board: LoopbackBoard
    ) -> None:
        """Nobody can take the place back, which is said; the board is switched off all the same."""
        board = LabgridBoard(self.spec(tmp_path, lab, sshd_board), tmp_path)
        board.power_on()
        lab.__exit__()
        with pytest.raises(EdgeopsError) as caught:
            board.close()
        assert caught.value.code == "E-HIL-BOARD"
        assert switched(tmp_path)[0] == "on"
        assert switched(tmp_path)[-1] == "off"

    @pytest.mark.parametrize(("wrong", "code"), [("port", "E-HIL-BOARD"), ("place", "E-HIL-RIG")])
    def test_a_coordinator_or_a_place_that_is_not_there_is_named(
        self, tmp_path: Path, lab: Coordinator, sshd_board: LoopbackBoard, wrong: str, code: str
    ) -> None:
        spec = self.spec(tmp_path, lab, sshd_board)
        file = Path(spec.environment)
        if wrong == "port":
            file.write_text(file.read_text().replace(str(lab.port), str(free_port())))
        else:
            file.write_text(file.read_text().replace("name: bench", "name: bank"))
        with pytest.raises(EdgeopsError, match="coordinator") as caught:
            open_board(spec, tmp_path)
        assert caught.value.code == code
        assert switched(tmp_path) == []

    def test_the_pytest_plugin_takes_a_place_for_each_test_and_fails_where_it_is_held(
        self, tmp_path: Path, lab: Coordinator, sshd_board: LoopbackBoard
    ) -> None:
        rig = self.rig_file(tmp_path, self.spec(tmp_path, lab, sshd_board))
        mine = tmp_path / "mine"
        mine.mkdir()
        (mine / "test_mine.py").write_text("def test_one(board):\n    assert board.run('true').status == 0\n")
        words = ["-p", "hil.pytest_plugin", "-p", "no:cacheprovider", "-c", "/dev/null", "--rig", str(rig), str(mine)]

        def run_mine() -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "pytest", *words]
            return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, cwd=mine)

        lab.client("-p", "bench", "acquire")
        held_back = run_mine()
        lab.client("-p", "bench", "release")
        done = run_mine()
        assert held_back.returncode == 1
        assert "E-HIL-BUSY" in held_back.stdout
        assert done.returncode == 0, done.stdout
        assert lab.holder == ""
        assert switched(tmp_path)[-1] == "off"

    def test_a_killed_run_gives_its_place_back_and_one_that_was_killed_whole_is_succeeded(
        self, tmp_path: Path, lab: Coordinator, sshd_board: LoopbackBoard
    ) -> None:
        spec = self.spec(tmp_path, lab, sshd_board)
        rig = self.rig_file(tmp_path, spec)
        for whole in (False, True):
            words = [sys.executable, "-c", HOLD, str(rig)]
            process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
            with held(process):
                assert process.stdout is not None
                assert process.stdout.readline() == "held\n"
                children = children_of(process)
                holder = lab.holder
                assert holder
                if whole:
                    for child in children:
                        os.kill(child, signal.SIGSTOP)
                    process.kill()
                    for child in children:
                        os.kill(child, signal.SIGKILL)
                else:
                    process.kill()
            assert all_gone(children, 60)
            assert lab.holder == (holder if whole else "")
        assert switched(tmp_path) == ["on", "off", "on"]
        with open_board(spec, tmp_path) as board:
            board.power_on()
            assert lab.holder == holder
        assert lab.holder == ""
        assert switched(tmp_path)[-1] == "off"


@pytest.mark.vm
@pytest.mark.timeout(3600)
def test_a_good_release_passes_on_an_arm64_machine_that_labgrid_switches(tmp_path: Path) -> None:
    """A whole machine under labgrid's own QEMUDriver: kernel, systemd, sshd; a power cut is a real one."""
    skip_without(Arm64VmSpec(name="vm", profile="generic-arm64"))
    environment = vm_environment(tmp_path)
    spec = LabgridSpec(
        name="vm", profile="generic-arm64", environment=str(environment), known_hosts=str(tmp_path / "known_hosts"),
        python="/opt/edgeops/python", boot_within_s=900.0, timing=False,
    )  # fmt: skip
    with LabgridBoard(spec, tmp_path) as board:
        board.power_on()
        packages = tmp_path / "packages"
        install_packages(packages / "site")
        put_code(packages / "code")
        (packages / "python").write_text(f'#!/bin/sh\nPYTHONPATH={CODE}:{SITE} exec /usr/bin/python3 "$@"\n')
        board.copy(packages, "/opt/edgeops")
        assert board.run("sh", "-c", "chmod 755 /opt/edgeops/python && sync").status == 0
        assert "Linux version" in board.console()
    result = run(spec, linux_bundle(tmp_path, spec.profile), cuts=1, soak_s=1)
    check_all_passed(result)
    assert result.cut == "labgrid's QEMUDriver"
