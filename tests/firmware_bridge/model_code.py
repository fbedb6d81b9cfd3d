"""Small models written by hand, as blobs for any processor: what they compute is known without a runtime."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeops.contracts.tensors import TensorSpec
from firmware_bridge import blobs
from firmware_bridge.blob_build import ENTRY, compile_code

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC_KEY = KEY.public_key().public_bytes_raw()
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))

# The table makes the code wrong wherever an address is not relative to the code itself.
_ADD = """
#include <stdint.h>
#include <string.h>
static const int8_t table[4] = {%(add)d, %(add)d, %(add)d, %(add)d};
__attribute__((section(".text.eo_entry"))) int32_t eo_model_entry(const void *input, void *output, void *arena) {
    const int8_t *in = input;
    int8_t *copy = arena, *out = output;
    memcpy(copy, in, %(size)d);
    for (int i = 0; i < %(size)d; i++) {
        out[i] = (int8_t)(copy[i] + table[i %% 4]);
    }
    %(extra)s
    return 0;
}
"""
HANG = "for (volatile int run = 1; run;) { }"
CRASH = "*(volatile int *)0xF0000001 = 1; __builtin_trap();"
FAIL = "return 7;"


def source(add: int, size: int, extra: str = "") -> str:
    return _ADD % {"add": add, "size": size, "extra": extra}


def adder(
    folder: Path, cpu: blobs.Cpu = blobs.Cpu.X86_64, *, add: int = 1, size: int = 16, extra: str = "", arena: int = 0
) -> bytes:
    """Return the unsigned blob of a model that adds `add` to each of `size` int8 values."""
    file = folder / f"adder-{add}.c"
    file.write_text(source(add, size, extra))
    header = blobs.Header(
        cpu, ENTRY, arena or size, 16,
        TensorSpec(name="input", dtype="int8", shape=(1, size)),
        TensorSpec(name="output", dtype="int8", shape=(1, size)),
        "adder",
    )  # fmt: skip
    return blobs.pack(header, compile_code(cpu, "adder", [file]))


def signed(blob: bytes, version: str = "1.0.0", counter: int = 1, key: Ed25519PrivateKey = KEY) -> bytes:
    public = key.public_key().public_bytes_raw()
    return blob + blobs.sign(blob, version=version, counter=counter, public_key=public, signer=key.sign)
