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

# A picture of 2,700 by 1,000 pixels in colour.
MAX_VARYING_ELEMENTS = 1 << 23


class TensorSpec(Wire, frozen=True, kw_only=True):
    """A tensor's name, dtype (a key of `DTYPES`) and shape; -1: a size that varies from request to request."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def varies(self) -> bool:
        """Whether a size varies."""
        return -1 in self.shape

    def sized(self, shape: tuple[int, ...]) -> TensorSpec | None:
        """Return the tensor of one request, or None if its shape does not fit."""
        if shape == self.shape and not self.varies:
            return self
        if len(shape) != len(self.shape) or min(shape, default=1) < 1:
            return None
        if any(want not in (-1, have) for want, have in zip(self.shape, shape, strict=True)):
            return None
        found = TensorSpec(name=self.name, dtype=self.dtype, shape=shape)
        return found if found.elements <= MAX_VARYING_ELEMENTS else None

    @property
    def elements(self) -> int:
        """Number of elements; where a size varies, the most that may come."""
        if self.varies:
            return MAX_VARYING_ELEMENTS
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.elements * DTYPES[self.dtype][1]
