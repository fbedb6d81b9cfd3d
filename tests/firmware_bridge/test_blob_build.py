"""Code of a blob runs wherever it lies; code that would not is refused by the build."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_code import source

from edgeops.contracts.errors import EdgeopsError
from firmware_bridge.blob_build import TARGETS, compile_code
from firmware_bridge.blobs import Cpu

CPUS = pytest.mark.parametrize("cpu", sorted(TARGETS), ids=lambda cpu: cpu.name.lower())

ENTRY = '__attribute__((section(".text.eo_entry"))) int eo_model_entry(const void *i, void *o, void *a)'
BAD_CODE = {
    "a table of addresses": (
        f"static const char a[] = \"x\", b[] = \"y\"; static const char *const volatile t[2] = {{a, b}};"
        f"{ENTRY} {{ (void)i; (void)a; *(char *)o = *t[*(const char *)i & 1]; return 0; }}",
        "variables outside",
    ),
    "an address in the code": (
        f"{ENTRY} {{ (void)i; (void)o; (void)a; return 0; }}"
        "__asm__(\".section .text.eo_entry\\n .balign 8\\n .long eo_model_entry, 0\\n .text\");",
        "depends on where it lies",
    ),
    "a variable": (f"static volatile int n; {ENTRY} {{ (void)i; (void)o; (void)a; return n++; }}", "variables outside"),
    "a variable with a value": (
        f"static volatile int n = 5; {ENTRY} {{ (void)i; (void)o; (void)a; return n++; }}", "variables outside",
    ),
    "a call out of the blob": (
        f"extern int printf(const char *, ...); {ENTRY} {{ (void)i; (void)o; (void)a; return printf(\"x\"); }}",
        "undefined reference",
    ),
    "a warning": (f"{ENTRY} {{ return 0; }}", "unused parameter"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def compiler(request: pytest.FixtureRequest) -> None:
    for name in ("host_compiler", "arm_compiler"):
        request.getfixturevalue(name)


@CPUS
def test_good_code_is_built_and_the_same_every_time(cpu: Cpu, tmp_path: Path):
    file = tmp_path / "model.c"
    file.write_text(source(3, 16))
    assert compile_code(cpu, "good", [file]) == compile_code(cpu, "good", [file])


@CPUS
@pytest.mark.parametrize("name", sorted(BAD_CODE))
def test_code_that_is_bound_to_a_place_is_refused(cpu: Cpu, name: str, tmp_path: Path):
    text, why = BAD_CODE[name]
    file = tmp_path / "model.c"
    file.write_text(text)
    with pytest.raises(EdgeopsError, match=why) as caught:
        compile_code(cpu, "bad", [file])
    assert caught.value.code == "E-TOOLCHAIN"


@pytest.mark.parametrize("cpu", [Cpu.CORTEX_M3, Cpu.CORTEX_M4, Cpu.CORTEX_M7])
def test_code_through_a_global_offset_table_is_refused(cpu: Cpu, tmp_path: Path):
    """Visible names, as a library's own headers may declare them."""
    file = tmp_path / "model.c"
    file.write_text(
        "#pragma GCC visibility push(default)\nextern const int far[] __attribute__((weak));\n"
        f"{ENTRY} {{ (void)i; (void)o; (void)a; return far != 0 ? far[1] : 0; }}"
    )
    with pytest.raises(EdgeopsError, match="global offset table"):
        compile_code(cpu, "bad", [file])
