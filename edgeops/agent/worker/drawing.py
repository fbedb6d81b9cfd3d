"""Draws requests for a signed command: the inputs as they came, within its bounds, and nothing without one."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.agent.channel import MAX_FRAME_BYTES, Draw, Drawn
from edgeops.contracts.samples import Sample, SampleTensor, pack_sample


class Drawing:
    """One command's requests of one bundle.

    Args:
        wish: The command's bounds.
        release: The release that serves.
        digest: Its bundle.
        say: Tells the supervisor. May be called from the thread that infers.
    """

    def __init__(self, wish: Draw, release: str, digest: str, say: Callable[[Drawn], None]) -> None:
        self._wish, self._release, self._digest, self._say = wish, release, digest, say
        self._left, self._bytes_left = wish.count, wish.max_bytes

    @property
    def ended(self) -> bool:
        """Whether its bounds are reached."""
        return self._left <= 0

    def offer(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Draw a request that was answered, or not."""
        if self.ended or random.random() >= self._wish.share:  # noqa: S311  it draws a sample, it hides nothing
            return
        size = sum(array.nbytes for array in feeds.values())
        if size > min(self._bytes_left, MAX_FRAME_BYTES - 4096):
            # The supervisor judges by the same bound; what is too large ends the drawing there.
            self._left = 0
            self._say(Drawn(self._wish.id, b""))
            return
        inputs = {name: _tensor(array) for name, array in feeds.items()}
        data = pack_sample(Sample(at_s=time.time(), release=self._release, digest=self._digest, inputs=inputs))
        self._left -= 1
        self._bytes_left -= len(data)
        self._say(Drawn(self._wish.id, data))


def _tensor(array: NDArray[Any]) -> SampleTensor:
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return SampleTensor(dtype=array.dtype.name, shape=array.shape, data=little.tobytes())
