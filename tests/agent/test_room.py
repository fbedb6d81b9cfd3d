"""A device without room for two bundles: one goes before the other comes, requests wait, and nobody hangs."""

from __future__ import annotations

import http.client
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from adder_bundles import MODEL, small_bundle
from deployment_rig import DeploymentRig
from serving_rig import ServingRig, load_of

from edgeops.agent.holds import Conditions
from edgeops.agent.room import fits_beside
from edgeops.agent.settings import ServingRules
from edgeops.client.inference import open_model
from edgeops.contracts.deployment import Component, ComponentKind, DeploymentState, Slot
from edgeops.contracts.errors import EdgeopsError
from edgeops.releases.bundles import Bundle, pack

X = np.array([[1, 2, 3, 4]], np.float32)


class Clients:
    """Ask without a pause, by HTTP and by the socket, and keep what came."""

    def __init__(self, rig: ServingRig) -> None:
        self.answers: list[float] = []
        self.failures: list[BaseException] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(address,)) for address in (rig.url, rig.socket)]
        for thread in self._threads:
            thread.start()

    def _ask(self, address: str) -> None:
        client = open_model(address)
        while not self._stop.is_set():
            try:
                self.answers.append(float((client.infer(MODEL, {"x": X})["y"] - X)[0, 0]))
            except EdgeopsError as error:
                self.failures.append(error)
                time.sleep(0.01)
        client.close()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


class Workers:
    """How many workers lived at once, looked at all the time; what else this process has started does not count."""

    def __init__(self) -> None:
        self.most = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._count)
        self._thread.start()

    def _count(self) -> None:
        while not self._stop.is_set():
            self.most = max(self.most, sum(_is_worker(child) for child in psutil.Process().children()))
            time.sleep(0.002)

    def stop(self) -> int:
        self._stop.set()
        self._thread.join()
        return self.most


def _is_worker(child: psutil.Process) -> bool:
    try:
        return child.status() != psutil.STATUS_ZOMBIE and "edgeops.agent.worker" in child.cmdline()
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def hasty() -> Iterator[ServingRig]:
    """An endpoint where requests wait for 0.3 s."""
    rig = ServingRig(ServingRules(wait_s=0.3))
    yield rig
    rig.close()


def swap_alone(rig: ServingRig, bundle: Bundle, release: str) -> None:
    rig.do(lambda serving: serving.try_out(load_of(bundle, release), alone=True))
    rig.expect("tested")
    rig.do(lambda serving: serving.promote())
    rig.expect("serves")


def test_need_is_estimated_and_what_is_not_known_is_tried() -> None:
    assert fits_beside(10, None)
    assert fits_beside(10, 500)
    assert not fits_beside(10, 100)
    assert not fits_beside(200, 500)


def test_one_bundle_goes_before_the_other_comes_and_no_request_is_lost(
    rig: ServingRig, bundle: Bundle, other_bundle: Bundle
) -> None:
    rig.serve(bundle)
    clients, workers = Clients(rig), Workers()
    while 1.0 not in clients.answers and not clients.failures:
        time.sleep(0.005)
    swap_alone(rig, other_bundle, "2.0.0")
    alone = workers.stop()
    while 2.0 not in clients.answers and not clients.failures:
        time.sleep(0.005)
    clients.stop()
    assert not clients.failures
    assert set(clients.answers) == {1.0, 2.0}
    assert alone == 1

    workers = Workers()  # the control: with room there are two for a moment
    rig.swap(bundle, "3.0.0")
    assert workers.stop() == 2


@pytest.mark.parametrize("ends", ["fails its test", "is killed", "is dropped"])
def test_a_candidate_that_does_not_take_over_gives_the_place_back(
    rig: ServingRig, bundle: Bundle, tmp_path: Path, ends: str
) -> None:
    rig.serve(bundle)
    clients, workers = Clients(rig), Workers()
    candidate = small_bundle(tmp_path / "candidate", add=5.0, lie=1.0 if ends == "fails its test" else 0.0)
    rig.do(lambda serving: serving.try_out(load_of(candidate, "2.0.0"), alone=True))
    if ends == "is dropped":
        rig.do(lambda serving: serving.drop_candidate())
    elif ends == "is killed":
        while rig.serving._candidate is None:
            time.sleep(0.005)
        os.kill(rig.serving._candidate.process.pid, signal.SIGKILL)
        rig.expect("test_failed")
    else:
        assert rig.expect("test_failed").code == "E-SELFTEST-GOLDEN"
    rig.expect("serves")
    count = len(clients.answers)
    while len(clients.answers) < count + 20:
        time.sleep(0.005)
    clients.stop()
    assert workers.stop() == 1
    assert not clients.failures
    assert set(clients.answers) == {1.0}


def test_a_second_candidate_takes_the_room_of_the_first(rig: ServingRig, bundle: Bundle, other_bundle: Bundle) -> None:
    rig.serve(bundle)
    workers = Workers()
    rig.do(lambda serving: serving.try_out(load_of(bundle, "2.0.0"), alone=True))
    swap_alone(rig, other_bundle, "3.0.0")
    assert workers.stop() == 1
    client = open_model(rig.url)
    np.testing.assert_array_equal(client.infer(MODEL, {"x": X})["y"], X + 2)
    client.close()


def test_a_long_pause_is_said_to_each_client_and_counted_apart(
    hasty: ServingRig, bundle: Bundle, other_bundle: Bundle
) -> None:
    hasty.serve(bundle)
    hasty.do(lambda serving: serving.try_out(load_of(other_bundle, "2.0.0"), alone=True))
    while hasty.serving._candidate is None:
        time.sleep(0.005)
    pid = hasty.serving._candidate.process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        parts = hasty.url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(parts[0], int(parts[1]), timeout=60)
        connection.request("POST", f"/v2/models/{MODEL}/infer", bytes(64 << 10))
        response = connection.getresponse()
        assert response.status == 503
        assert int(response.headers["Retry-After"]) > 0
        assert b"E-INFER-AWAY" in response.read()
        connection.close()
        for address in (hasty.url, hasty.socket):
            with pytest.raises(EdgeopsError) as caught:
                open_model(address).infer(MODEL, {"x": X})
            assert caught.value.code == "E-INFER-AWAY"
    finally:
        os.kill(pid, signal.SIGCONT)
    hasty.expect("tested")
    hasty.do(lambda serving: serving.promote())
    hasty.expect("serves")
    for address in (hasty.url, hasty.socket):
        client = open_model(address)
        np.testing.assert_array_equal(client.infer(MODEL, {"x": X})["y"], X + 2)
        client.close()
    told = [window for window in hasty.windows if window.errors]
    assert sum(window.errors.get("E-INFER-AWAY", 0) for window in told) == 3
    assert {code for window in told for code in window.errors} == {"E-INFER-AWAY"}
    assert {(window.release, window.digest) for window in told} == {("1.0.0", bundle.digest)}


def test_a_worker_that_does_not_come_up_again_is_said_too(
    hasty: ServingRig, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeops.agent.serving._RESTART_FIRST_S", 60.0)
    monkeypatch.setattr("edgeops.agent.serving.backoff_s", lambda *_, **__: 60.0)
    hasty.serve(bundle)
    os.kill(hasty.pid, signal.SIGKILL)
    hasty.expect("crashed")
    with pytest.raises(EdgeopsError) as caught:
        open_model(hasty.url).infer(MODEL, {"x": X})
    assert caught.value.code == "E-INFER-AWAY"


def test_a_deployment_makes_room_where_the_device_says_that_there_is_none(tmp_path: Path) -> None:
    files: dict[str, tuple[Path, Slot]] = {}
    components = []
    for number in (1, 2, 3):
        made = small_bundle(tmp_path / str(number), add=float(number))
        pack(made, tmp_path / f"{number}.edgeops")
        slot = Slot(release=f"1.{number}.0", digest=made.digest, number=number)
        files[made.digest] = (tmp_path / f"{number}.edgeops", slot)
        components.append(
            Component(name=MODEL, kind=ComponentKind.MODEL, release=slot.release, target="t", digest=slot.digest)
        )
    rig = DeploymentRig(tmp_path / "device", MODEL, files)
    rig.start()
    for generation, (component, memory_mib) in enumerate(zip(components, (1000.0, 60.0, None), strict=True), 1):
        rig.seen = Conditions(now_s=0, memory_available_mib=memory_mib)
        rig.pursue(component, generation)
        assert rig.settle() is DeploymentState.CONFIRMED
    assert rig.serving.alone == [False, True, False]
    rig.close()
