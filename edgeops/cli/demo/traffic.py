"""Requests that keep flowing while devices change what they run: real images, answers checked one by one."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeops.client.inference import InferenceClient
from edgeops.contracts.errors import EdgeopsError

_PAUSE_S = 0.02


class Traffic:
    """Sends labelled images to one device until it is stopped, and counts what came back.

    Args:
        device: The device's name.
        endpoint: Base URL of the device's inference server.
        model: The model's name.
        images: uint8 [n, height, width, 3].
        labels: True class per image, [n].
    """

    def __init__(
        self, device: str, endpoint: str, model: str, images: NDArray[np.uint8], labels: NDArray[np.int64]
    ) -> None:
        self.device = device
        self.answered = 0
        self.right = 0
        self.failures: Counter[str] = Counter()
        self._client = InferenceClient(endpoint)
        self._model, self._images, self._labels = model, images, labels
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send, name=f"traffic {endpoint}", daemon=True)

    def start(self) -> Traffic:
        """Begin to send."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop sending, after the request that is under way."""
        self._stop.set()
        self._thread.join()

    @property
    def accuracy(self) -> float:
        """Share of right answers among the answers."""
        return self.right / max(1, self.answered)

    def _send(self) -> None:
        index = 0
        while not self._stop.is_set():
            place = index % len(self._images)
            try:
                answer = self._client.infer(self._model, {"image": self._images[place : place + 1]})
            except EdgeopsError as error:
                self.failures[error.code] += 1
            else:
                self.answered += 1
                self.right += int(_class_of(answer) == self._labels[place])
            index += 1
            time.sleep(_PAUSE_S)


def _class_of(answer: dict[str, NDArray[Any]]) -> int:
    return int(next(iter(answer.values())).argmax())
