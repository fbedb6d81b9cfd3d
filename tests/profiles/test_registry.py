"""Profiles: every built-in one is whole and sourced; a wrong file is refused with its key named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgeops.contracts.errors import EdgeopsError
from edgeops.profiles import registry

ROOT = Path(__file__).parents[2]
PI = (ROOT / "device_profiles" / "raspberry-pi-4.toml").read_text()
LITERT = {"name": "litert", "runtime_min": "1.2.0", "precisions": ["int8", "fp32"], "source": "its wheels"}
TWICE = [LITERT, LITERT]


def runtimes(text: str, tables: list[dict[str, object]]) -> str:
    """The profile with other runtimes; JSON's lists and strings are TOML's too."""
    rows = ["{" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in table.items()) + "}" for table in tables]
    return f"runtimes = [{', '.join(rows)}]\n{text}"


def test_the_runtimes_of_these_tests_are_right_when_left_alone(tmp_path: Path):
    """Negative control of the refusals below."""
    path = tmp_path / "raspberry-pi-4.toml"
    path.write_text(runtimes(PI, [LITERT, LITERT | {"name": "onnxruntime", "onnx_ir_max": 10, "onnx_opset_max": 21}]))
    assert [runtime.name for runtime in registry.check(path).runtimes] == ["litert", "onnxruntime"]


@pytest.mark.parametrize("name", registry.names())
def test_builtin_profile_is_whole_and_every_figure_has_its_source(name: str):
    profile = registry.load(name)
    assert profile.name == name
    sources = [profile.cpu.source, profile.memory.source]
    sources += [item.source for item in (*profile.accelerators, *profile.runtimes)]
    assert all(len(source) > 10 for source in sources)


def test_the_boards_of_the_main_job_are_there():
    assert set(registry.names()) >= {
        "raspberry-pi-4", "raspberry-pi-5", "jetson-orin-nano", "intel-nuc", "generic-x86-64", "generic-arm64",
    }  # fmt: skip


def test_an_unsupported_board_says_why():
    profile = registry.load("jetson-xavier-nx")
    assert profile.status == "unsupported"
    assert "3.8" in str(profile.reason)


def test_extends_takes_over_what_is_not_said_and_only_that(tmp_path: Path):
    mine = tmp_path / "mine.toml"
    mine.write_text('extends = "raspberry-pi-4"\nname = "mine"\ntitle = "Mine"\n[serving]\nthreads = 1\n')
    profile, parent = registry.check(mine), registry.load("raspberry-pi-4")
    assert (profile.cpu, profile.runtimes, profile.serving.threads) == (parent.cpu, parent.runtimes, 1)
    assert parent.serving.threads == 3


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        (lambda text: text.replace("cores = 4", 'cores = "four"'), "E-PROFILE-INVALID", "cpu.cores"),
        (lambda text: text.replace("cores = 4", "kernels = 4"), "E-PROFILE-INVALID", "kernels"),
        (lambda text: text.replace("cores = 4", "cores = 0"), "E-PROFILE-INVALID", "cpu.cores"),
        (lambda text: text.replace("threads = 3", "threads = 9"), "E-PROFILE-INVALID", "serving.threads"),
        (lambda text: text.replace('name = "raspberry-pi-4"', 'name = "Pi 4"'), "E-PROFILE-INVALID", "Pi 4"),
        (lambda text: text.replace('name = "raspberry-pi-4"', 'name = "other"'), "E-PROFILE-INVALID", "other"),
        (lambda text: text + '\nstatus = "broken"', "E-PROFILE-INVALID", "broken"),
        (lambda text: text.replace("generic-arm64", "no-such"), "E-PROFILE-UNKNOWN", "no-such"),
        (lambda text: text.replace("generic-arm64", "raspberry-pi-4"), "E-PROFILE-INVALID", "circle"),
        (lambda text: text + "\n[[", "E-PROFILE-INVALID", "raspberry-pi-4.toml"),
        (lambda _: "x" * 70_000, "E-PROFILE-INVALID", "larger"),
        (lambda _: "x = " + "[" * 30_000 + "]" * 30_000, "E-PROFILE-INVALID", "recursion"),
        (lambda text: text.replace("generic-arm64", "../../etc/passwd"), "E-PROFILE-INVALID", "extends"),
        (lambda text: text + "affinity = [0, 4]", "E-PROFILE-INVALID", "serving.affinity"),
        (lambda text: runtimes(text, TWICE), "E-PROFILE-INVALID", "litert, litert"),
        (lambda text: runtimes(text, [LITERT | {"precisions": []}]), "E-PROFILE-INVALID", "precisions"),
        (lambda text: runtimes(text, [LITERT | {"precisions": ["fp32", "fp32"]}]), "E-PROFILE-INVALID", "twice"),
        (lambda text: runtimes(text, [LITERT | {"precisions": ["fp4"]}]), "E-PROFILE-INVALID", "precisions"),
        (lambda text: runtimes(text, [LITERT | {"runtime_min": "new"}]), "E-PROFILE-INVALID", "runtime_min"),
        (lambda text: runtimes(text, [LITERT | {"name": "onnxruntime"}]), "E-PROFILE-INVALID", "onnx_ir_max"),
        (lambda text: runtimes(text, []), "E-PROFILE-INVALID", "no runtime"),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong(change, code: str, named: str, tmp_path: Path):
    path = tmp_path / "raspberry-pi-4.toml"
    path.write_text(PI)
    assert registry.check(path).name == "raspberry-pi-4"
    path.write_text(change(PI) if "status" not in change(PI) else 'status = "broken"\n' + PI)
    with pytest.raises(EdgeopsError) as caught:
        registry.check(path)
    assert caught.value.code == code
    assert named in caught.value.what


def test_commands_print_json_and_fail_with_the_codes_status():
    edgeops = [sys.executable, "-m", "edgeops", "profile"]
    listed = json.loads(subprocess.run([*edgeops, "list", "--json"], check=True, capture_output=True, text=True).stdout)
    shown = json.loads(
        subprocess.run([*edgeops, "show", "intel-nuc", "--json"], check=True, capture_output=True).stdout
    )
    assert shown in listed
    failed = subprocess.run([*edgeops, "show", "nope"], check=False, capture_output=True, text=True)
    assert failed.returncode == 2
    assert "E-PROFILE-UNKNOWN" in failed.stderr
    assert "Traceback" not in failed.stderr
