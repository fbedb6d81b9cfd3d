"""A microcontroller's blob behind the `Backend` protocol: what every runtime must do, where a blob can do it.

It has one int8 input and one int8 output of fixed sizes, so what the suite says of several tensors, of float, and of
open sizes does not apply. Run on the host build of the firmware, and on one emulated processor.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from model_code import FAIL, adder

from edgeops.contracts.errors import EdgeopsError
from edgeops.runtimes.protocol import LoadOptions, Session
from edgeops.runtimes.registry import backend
from firmware_bridge.blobs import Cpu

pytestmark = pytest.mark.usefixtures("host_compiler", "arm_compiler", "emulator")

SHAPE = (1, 16)
A = np.arange(16, dtype=np.int8).reshape(SHAPE)


@pytest.fixture(params=[Cpu.X86_64, Cpu.CORTEX_M4], ids=["host", "cortex-m4"])
def cpu(request: pytest.FixtureRequest) -> Cpu:
    found: Cpu = request.param
    return found


@pytest.fixture
def artifact(cpu: Cpu, tmp_path: Path) -> Path:
    path = tmp_path / "model.blob"
    path.write_bytes(adder(tmp_path, cpu, add=3))
    return path


@pytest.fixture
def session(artifact: Path) -> Iterator[Session]:
    loaded = backend("mcu").load(artifact, LoadOptions())
    yield loaded
    loaded.close()


def test_signature_is_the_blobs(session: Session):
    assert [(spec.name, spec.dtype, spec.shape) for spec in session.inputs] == [("input", "int8", SHAPE)]
    assert [(spec.name, spec.dtype, spec.shape) for spec in session.outputs] == [("output", "int8", SHAPE)]
    assert session.arena_bytes == 16
    assert session.provider.startswith("emulated board")


def test_answers_are_right_and_stay_when_the_next_one_is_computed(session: Session):
    first = session.run({"input": A})["output"]
    session.run({"input": A * 2})
    np.testing.assert_array_equal(first, A + 3)


def test_a_closed_session_says_so(session: Session):
    session.close()
    session.close()
    with pytest.raises(EdgeopsError, match="closed") as caught:
        session.run({"input": A})
    assert caught.value.code == "E-RUNTIME-RUN"


def test_tensors_that_may_not_be_written_or_are_not_contiguous_are_read_right(session: Session):
    np.testing.assert_array_equal(
        session.run({"input": np.frombuffer(A.tobytes(), np.int8).reshape(SHAPE)})["output"], A + 3
    )
    wide = np.repeat(A, 2, axis=1)
    np.testing.assert_array_equal(session.run({"input": wide[:, ::2]})["output"], A + 3)


@pytest.mark.parametrize(
    "feeds",
    [{}, {"input": A, "b": A}, {"x": A}, {"input": A.astype(np.float32)}, {"input": A[:, :3]}, {"input": A[0]}],
    ids=["missing", "superfluous", "misnamed", "dtype", "size", "rank"],
)
def test_wrong_tensors_are_refused_and_the_session_lives_on(session: Session, feeds: dict[str, np.ndarray]):
    with pytest.raises(EdgeopsError) as caught:
        session.run(feeds)
    assert caught.value.code == "E-RUNTIME-INPUT"
    np.testing.assert_array_equal(session.run({"input": A})["output"], A + 3)


def test_two_sessions_do_not_mix(artifact: Path, cpu: Cpu, tmp_path: Path):
    other = tmp_path / "other.blob"
    other.write_bytes(adder(tmp_path, cpu, add=5))
    one, two = (backend("mcu").load(path, LoadOptions()) for path in (artifact, other))
    np.testing.assert_array_equal(one.run({"input": A})["output"], A + 3)
    np.testing.assert_array_equal(two.run({"input": A})["output"], A + 5)
    one.close()
    np.testing.assert_array_equal(two.run({"input": A})["output"], A + 5)
    two.close()


@pytest.mark.parametrize("keep", [0, 3, 100, 160, -8])
def test_a_truncated_or_damaged_blob_is_refused(artifact: Path, keep: int):
    whole = artifact.read_bytes()
    damaged = bytearray(whole)
    damaged[170] ^= 1
    for data in (whole[:keep], bytes(damaged)):
        artifact.write_bytes(data)
        with pytest.raises(EdgeopsError) as caught:
            backend("mcu").load(artifact, LoadOptions())
        assert caught.value.code == "E-RUNTIME-LOAD"


def test_a_model_that_fails_is_an_error_of_its_inference(cpu: Cpu, tmp_path: Path):
    path = tmp_path / "bad.blob"
    path.write_bytes(adder(tmp_path, cpu, add=9, extra=FAIL))
    session = backend("mcu").load(path, LoadOptions())
    with pytest.raises(EdgeopsError) as caught:
        session.run({"input": A})
    assert caught.value.code == "E-RUNTIME-RUN"
    session.close()


def test_a_missing_emulator_or_compiler_says_how_to_get_it(artifact: Path, cpu: Cpu):
    """In a process that finds no programs."""
    code = f"""
from pathlib import Path
from edgeops.contracts.errors import EdgeopsError
from edgeops.runtimes.protocol import LoadOptions
from edgeops.runtimes.registry import backend
try:
    backend("mcu").load(Path({str(artifact)!r}), LoadOptions())
except EdgeopsError as error:
    assert error.code == "E-RUNTIME-MISSING" and "apt-get install" in error.next_step, error
else:
    raise AssertionError("loaded without its tools")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env={"PATH": "/nowhere"})
