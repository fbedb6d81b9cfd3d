"""Tensors by name, type and shape, with the dtypes that devices and runtimes share."""

from __future__ import annotations

from edgeops.contracts.wire import Wire

# Name → (Open Inference Protocol v2 name, bytes per element).
DTYPES: dict[str, tuple[str, int]] = {
    "bool": ("BOOL", 1),
    "uint8": ("UINT8", 1),
    "int8": ("INT8", 1),
    "uint16": ("UINT16", 2),
    "int16": ("INT16", 2),
    "uint32": ("UINT32", 4),
    "int32": ("INT32", 4),
    "uint64": ("UINT64", 8),
    "int64": ("INT64", 8),
    "float16": ("FP16", 2),
    "float32": ("FP32", 4),
    "float64": ("FP64", 8),
}

# Integers that a float32 holds without loss.
SMALL_INTEGERS = ("uint8", "int8", "uint16", "int16")


class TensorSpec(Wire, frozen=True, kw_only=True):
    """A tensor's name, dtype (a key of `DTYPES`) and static shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.elements * DTYPES[self.dtype][1]
