"""`edgeops ci init`: the files are valid by their schemas, and their steps are run here, word for word.

What is not run: the CIs' own actions, installing edgeops by pip, and boards.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from check_jsonschema import main as check_jsonschema
from click.testing import CliRunner
from fake_device import FakeDevice, join
from junitparser import Failure, JUnitXml
from ruamel.yaml import YAML
from served_fleet import BROKERS, Serving, wait_for

from edgeops.cli import root
from edgeops.cli.ci import command
from edgeops.cli.ci.yaml import dump
from edgeops.contracts.errors import EdgeopsError, Fault
from edgeops.testkit.handovers import write_shapes_handover
from edgeops.trust.founding import make_fleet

BOARD = """\
name = "small"
title = "for tests"
[cpu]
model = "any"
arch = "aarch64"
cores = 1
clock_mhz = 1
source = "none"
[memory]
ram_mib = 1024
source = "none"
[[runtimes]]
name = "onnxruntime"
runtime_min = "1.18"
onnx_ir_max = 9
onnx_opset_max = 17
precisions = ["fp32"]
source = "none"
"""
KINDS = {
    "github": (".github/workflows/edgeops.yml", ["--builtin-schema", "vendor.github-workflows"]),
    "gitlab": (".gitlab-ci.yml", ["--builtin-schema", "vendor.gitlab-ci", "--data-transform", "gitlab-ci"]),
}
WORDS = ("--handover", "models/shapes", "--profile", "boards/small.toml")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "repository"
    write_shapes_handover(folder / "models" / "shapes")
    (folder / "boards").mkdir()
    (folder / "boards" / "small.toml").write_text(BOARD)
    monkeypatch.chdir(folder)
    return folder


def init(kind: str, *more: str) -> dict[str, Any]:
    result = CliRunner().invoke(command, ["init", kind, *WORDS, *more], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return YAML(typ="safe").load(Path(KINDS[kind][0]).read_text())


def refused(*words: str) -> str:
    error = CliRunner().invoke(command, ["init", *words]).exception
    assert isinstance(error, EdgeopsError), error
    return error.code


def valid(kind: str, file: Path) -> bool:
    return CliRunner().invoke(check_jsonschema, [*KINDS[kind][1], str(file)]).exit_code == 0


@pytest.mark.parametrize("kind", KINDS)
def test_generated_files_are_valid_by_their_schema(kind: str, repository: Path):
    init(kind)
    file = Path(KINDS[kind][0])
    assert valid(kind, file)
    init(kind, "--rig", "this-machine", "--force", "--from", "https://packages.example/edgeops.whl")
    assert valid(kind, file)
    # Negative control: the schema sees what is wrong.
    file.write_text(file.read_text().replace("needs:", "neads:"))
    assert not valid(kind, file)


def test_what_is_written_is_read_back_as_it_was():
    value = {
        "on": {"a": {}, "b": []},
        "list": [
            "yes",
            "1.0",
            "x: y",
            "# no comment",
            "it's",
            'say "it"',
            "back\\slash",
            " space ",
            "",
            "${{ a }}",
            "*x",
        ],
        "block": "one\n  two\n\nthree: 'x'\n",
        "maps": [{"name": "a", "with": {"n": 3, "t": True}}, {"name": "b", "run": "x\ny\n"}],
        "~": "null",
    }
    assert YAML(typ="safe").load(dump(value)) == value


def scripts_of_github(found: dict[str, Any], job: str) -> list[str]:
    """The job's own steps: without the CI's actions, the installation, and the summary that only GitHub has."""
    steps = found["jobs"][job]["steps"]
    return [one["run"] for one in steps if "run" in one and one["name"] not in ("Install edgeops", "Show the report")]


def scripts_of_gitlab(found: dict[str, Any], job: str) -> list[str]:
    late = [line for line in found[job].get("after_script", []) if not line.startswith("export PATH=")]
    return [*found[job]["script"], *late]


def test_both_do_the_same(repository: Path):
    github, gitlab = (init(kind, "--rig", "this-machine") for kind in KINDS)
    assert list(github["jobs"]) == gitlab["stages"] == ["compile", "hil", "publish", "canary"]
    for job in gitlab["stages"]:
        both = [[text.strip() for text in scripts] for scripts in (
            scripts_of_github(github, job), scripts_of_gitlab(gitlab, job),
        )]  # fmt: skip
        assert both[0] == both[1]
        assert both[0]


def test_nothing_is_deployed_but_from_the_branch_and_strangers_reach_no_machine_of_ours(repository: Path):
    github, gitlab = (init(kind, "--rig", "this-machine", "--branch", "release") for kind in KINDS)
    for job in ("publish", "canary"):
        assert github["jobs"][job]["if"] == "github.event_name == 'push' && github.ref == 'refs/heads/release'"
        assert gitlab[job]["rules"] == [{"if": '$CI_COMMIT_BRANCH == "release"'}]
    for name, job in github["jobs"].items():
        if "self-hosted" in job["runs-on"]:
            assert "push" in job["if"], name
    assert github["permissions"] == {"contents": "read"}
    assert [job for job in github["jobs"].values() if "secrets." in json.dumps(job) and "if" not in job] == []


def test_without_a_rig_there_are_no_boards(repository: Path):
    assert list(init("github")["jobs"]) == init("gitlab")["stages"] == ["compile", "publish", "canary"]


def words_in(script: str) -> Iterator[list[str]]:
    """Each edgeops command of a script."""
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.split(line)
        for part in " ".join("\0" if word == "|" else shlex.quote(word) for word in words).split("\0"):
            command_line = shlex.split(part)
            if command_line[:1] == ["edgeops"]:
                yield command_line[1 : command_line.index(">") if ">" in command_line else None]


def test_every_command_exists_with_its_options(repository: Path):
    """Those of boards, too, which are not run here."""
    found = init("github", "--rig", "this-machine", "--locked", "boards/small.toml")
    seen = set()
    for job in found["jobs"]:
        for script in scripts_of_github(found, job):
            for words in words_in(script):
                one: click.Command = root
                context = click.Context(root, info_name="edgeops")
                while isinstance(one, click.Group):
                    child = one.get_command(context, words[0])
                    assert child is not None, words
                    one, words = child, words[1:]
                known = {option for parameter in one.params for option in parameter.opts}
                assert {word for word in words if word.startswith("--")} <= known, words
                seen.add(one.name)
    assert seen >= {"command", "run", "create", "publish", "verify", "add", "status"}


def test_a_value_that_could_break_out_is_refused(repository: Path):
    for option, value in (
        ("--handover", "models/$(id)"), ("--handover", "a b"), ("--profile", "x;id"), ("--branch", "${{ secrets.X }}"),
        ("--groups", "5%\nid"), ("--version-prefix", "1"), ("--from", "x'$(id)"), ("--locked", "no-such.lock"),
        ("--rig", "rigs/none.toml"), ("--groups", "abc"), ("--groups", "5%,,100%"), ("--handover", "models/../../x"),
        ("--handover", str(repository / "models" / "shapes")),
    ):  # fmt: skip
        rest = [word for at in range(0, 4, 2) if WORDS[at] != option for word in WORDS[at : at + 2]]
        assert refused("github", *rest, option, value) == "E-CONFIG", (option, value)
    assert refused("github", "--handover", "nowhere", "--profile", "intel-nuc") == "E-HANDOVER-MISSING"
    assert refused("github", "--handover", "models/shapes", "--profile", "no-such") == "E-PROFILE-UNKNOWN"
    assert not Path(".github").exists()


def test_a_file_that_is_there_is_kept(repository: Path):
    Path(".gitlab-ci.yml").write_text("mine: {}\n")
    assert refused("gitlab", *WORDS) == "E-CONFIG"
    assert Path(".gitlab-ci.yml").read_text() == "mine: {}\n"
    assert CliRunner().invoke(command, ["init", "gitlab", *WORDS, "--out", "ci/edgeops.yml"]).exit_code == 0
    assert valid("gitlab", Path("ci/edgeops.yml"))


class Runner:
    """Runs a workflow's steps as its CI does: bash, which ends at the first error, in the repository."""

    def __init__(self, found: dict[str, Any], folder: Path, secrets: dict[str, str]) -> None:
        self.found, self.folder, self.secrets = found, folder, secrets
        self.summary = folder / "summary.md"

    def expanded(self, text: str) -> str:
        values = {
            "github.run_number": "7", "github.server_url": "https://ci.example", "github.repository": "me/it",
            "github.run_id": "99", **{f"{kind}.{key}": value for key, value in self.secrets.items()
                                      for kind in ("secrets", "vars")},
        }  # fmt: skip
        return re.sub(r"\$\{\{ ([a-zA-Z_.]+) \}\}", lambda match: values[match[1]], text)

    def job(self, name: str) -> list[subprocess.CompletedProcess[str]]:
        job = self.found["jobs"][name]
        given = self.found["env"] | job.get("env", {})
        env = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(self.folder), "LANG": "C.UTF-8",
            "EDGEOPS_CACHE": os.environ.get("EDGEOPS_CACHE", str(Path.home() / ".cache" / "edgeops")),
            "GITHUB_STEP_SUMMARY": str(self.summary), **{key: self.expanded(text) for key, text in given.items()},
        }  # fmt: skip
        done: list[subprocess.CompletedProcess[str]] = []
        for step in job["steps"]:
            if "run" not in step or step["name"] == "Install edgeops":
                continue
            if any(one.returncode for one in done) and "if" not in step:
                continue
            words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", self.expanded(step["run"])]
            done.append(
                subprocess.run(
                    words, cwd=self.folder, env=env, capture_output=True, text=True, timeout=240, check=False
                )
            )
        return done


def test_the_steps_take_a_model_from_a_commit_to_its_canary(repository: Path, tmp_path: Path):
    """Compile, gates, report, signed release and rollout on a control plane that is really there."""
    home = tmp_path / "home"
    key = make_fleet(home, "demo").desired_signer().public_key
    serving = Serving(home, BROKERS[-1])
    serving.start()
    try:
        joined = join(tmp_path / "device", serving.api.create_token(profile="small").token, profile="small", name="d1")
        device = FakeDevice(tmp_path / "device", joined, key).start()
        try:
            wait_for(lambda: all(one.online for one in serving.api.devices()), "the device did not come online")
            secrets = {
                "EDGEOPS_HOME": str(home),
                "EDGEOPS_KEY_PASSPHRASE": "",
                "EDGEOPS_URL": serving.ready["api"],
                "EDGEOPS_CA": (home / "ca" / "ca.pem").read_text(),
                "EDGEOPS_TOKEN": serving.api.create_api_token("ci", "operator", valid_s=3600.0).token,
            }
            runner = Runner(init("github", "--groups", "100%"), repository, secrets)
            for name in ("compile", "publish", "canary"):
                for done in runner.job(name):
                    assert done.returncode == 0, done.args[-1] + done.stdout + done.stderr
            assert device.active["shapes"].release == "1.0.7"
            # What devices serve now is told by the control plane.
            words = ["report", "shapes", "1.0.7", "--home", str(home), "--against", "deployed", "--json"]
            (told,) = json.loads(CliRunner().invoke(root, words, catch_exceptions=False).stdout)["profiles"]
            assert told["differences"]["same"]
            assert told["differences"]["against"] == "release 1.0.7, served by 1 of 1 devices that serve shapes"
        finally:
            device.stop()
    finally:
        serving.stop()
    results = repository / "results"
    for name in ("compile", "create", "publish", "rollout"):
        assert not JUnitXml.fromfile(str(results / f"{name}.xml")).failures, name
    assert (results / "report.html").read_text().startswith("<!doctype html>")
    assert "# Model report: shapes 1.0.7" in runner.summary.read_text()
    statement = json.loads((results / "release" / "provenance.json").read_bytes())
    run = statement["predicate"]["runDetails"]["metadata"]["invocationId"]
    assert run == "https://ci.example/me/it/actions/runs/99"


def test_a_gate_ends_the_pipeline_with_its_report_and_its_failing_case(repository: Path):
    with (repository / "models" / "shapes" / "handover.toml").open("a") as text:
        text.write("\n[budgets.small]\nsize_mib = 0.001\n")
    runner = Runner(init("github"), repository, {})
    compiled, report, shown = runner.job("compile")
    assert compiled.returncode == Fault.GATE.value
    assert "E-COMPILE-GATE" in compiled.stderr
    assert (report.returncode, shown.returncode) == (0, 0), report.stderr
    assert "**failed**" in runner.summary.read_text()
    cases = {case.name: case for suite in JUnitXml.fromfile("results/compile.xml") for case in suite}
    assert isinstance(cases["size-mib"].result[0], Failure)
