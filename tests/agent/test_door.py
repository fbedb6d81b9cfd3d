"""HTTP of a model for others than the device itself: TLS with a token or a certificate, or not at all."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from adder_bundles import MODEL
from serving_rig import ServingRig

from edgeops.agent.config import CONFIG_FILE, read_config
from edgeops.agent.door import door_for
from edgeops.agent.settings import ServingRules
from edgeops.client.inference import open_model
from edgeops.contracts.errors import EdgeopsError
from edgeops.releases.bundles import Bundle
from edgeops.trust.authority import FleetAuthority

X = np.array([[1, 2, 3, 4]], np.float32)
TOKEN = "0123456789abcdef0123456789abcdef"


class Files(NamedTuple):
    """PEM files of one site, and of a stranger's."""

    certificate: str
    key: str
    ca: str
    client: tuple[Path, Path]
    stranger: tuple[Path, Path]
    token: str


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("site")
    site, other = (FleetAuthority.create(folder / name, name) for name in ("site", "other"))

    def write(name: str, pair: tuple[bytes, bytes]) -> tuple[Path, Path]:
        paths = (folder / f"{name}.pem", folder / f"{name}.key")
        for path, data in zip(paths, pair, strict=True):
            path.write_bytes(data)
        return paths

    certificate, key = write("server", site.issue_server(["127.0.0.1", "127.0.0.2"]))
    (folder / "ca.pem").write_bytes(site.ca_pem)
    (folder / "token").write_text(TOKEN + "\n")
    (folder / "token").chmod(0o640)
    return Files(
        str(certificate),
        str(key),
        str(folder / "ca.pem"),
        write("client", site.issue_client("edgeops-dashboard")),
        write("stranger", other.issue_client("edgeops-dashboard")),
        str(folder / "token"),
    )


def tls(files: Files, shown: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=files.ca)
    if shown is not None:
        context.load_cert_chain(*shown)
    return context


@pytest.fixture
def behind(bundle: Bundle) -> Iterator[Callable[[ServingRules], ServingRig]]:
    """Serve behind a door."""
    rigs: list[ServingRig] = []

    def serve(rules: ServingRules) -> ServingRig:
        rigs.append(ServingRig(rules))
        rigs[-1].serve(bundle)
        return rigs[-1]

    yield serve
    for rig in rigs:
        rig.close()


def answers(rig: ServingRig, **how: Any) -> bool:
    client = open_model(rig.url, **how)
    try:
        return bool((client.infer(MODEL, {"x": X})["y"] == X + 1).all())
    finally:
        client.close()


def test_a_public_address_wants_tls_and_to_know_who_asks(files: Files) -> None:
    """On loopback, and only there, nothing is asked for: the control."""
    keys = {"certificate": files.certificate, "key": files.key}
    for address in ("127.0.0.1", "127.3.2.1", "::1"):
        assert door_for(ServingRules(address=address)).token_sha256 == b""
    for address in ("0.0.0.0", "::", "192.0.2.7", "2001:db8::7"):
        for given in ({}, {"token_file": files.token}, keys):
            with pytest.raises(EdgeopsError, match="reached from elsewhere") as caught:
                door_for(ServingRules(address=address, **given))
            assert caught.value.code == "E-CONFIG"
        assert door_for(ServingRules(address=address, **keys, token_file=files.token)).token_sha256
        assert door_for(ServingRules(address=address, **keys, client_ca=files.ca)).client_ca


def test_what_cannot_be_used_is_refused_at_the_start(files: Files, tmp_path: Path) -> None:
    keys = {"certificate": files.certificate, "key": files.key}
    guessed, open_to_all, empty = tmp_path / "short", tmp_path / "open", tmp_path / "empty.pem"
    guessed.write_text("12345")
    guessed.chmod(0o600)
    open_to_all.write_text(TOKEN)
    open_to_all.chmod(0o644)
    empty.write_text("")
    for given in (
        {"address": "localhost"},
        {"certificate": files.certificate},
        {"key": files.key},
        {"client_ca": files.ca},
        {"token_file": str(guessed)},
        {"token_file": str(open_to_all)},
        {"token_file": str(tmp_path / "absent")},
        {"certificate": str(empty), "key": files.key},
        {"certificate": files.certificate, "key": str(tmp_path / "absent")},
        {"certificate": files.certificate, "key": str(files.client[1])},
        {**keys, "client_ca": str(empty)},
    ):
        with pytest.raises(EdgeopsError) as caught:
            door_for(ServingRules(**given))
        assert caught.value.code == "E-CONFIG"
        assert caught.value.next_step


def test_the_agents_file_is_held_against_the_same_rules(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text('[serving]\naddress = "0.0.0.0"\n')
    with pytest.raises(EdgeopsError, match="reached from elsewhere"):
        read_config(tmp_path)
    (tmp_path / CONFIG_FILE).write_text('[serving]\naddress = "127.0.0.2"\nwait_s = 3\n')
    assert read_config(tmp_path).serving.address == "127.0.0.2"


def test_only_the_token_opens(files: Files, behind: Callable[[ServingRules], ServingRig]) -> None:
    rig = behind(ServingRules(token_file=files.token))
    assert answers(rig, token=TOKEN)
    for wrong in (None, "", TOKEN[:-1], TOKEN + "x", TOKEN.upper()):
        with pytest.raises(EdgeopsError) as caught:
            answers(rig, token=wrong)
        assert caught.value.code == "E-INFER-TOKEN"
        assert not open_model(rig.url, token=wrong).ready()
    port = int(rig.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"POST /v2/models/adder/infer HTTP/1.1\r\nContent-Length: 60000\r\n\r\n")
        said = connection.recv(4096)  # though no byte of its body came
    assert said.startswith(b"HTTP/1.1 401 ")
    assert b"WWW-Authenticate: Bearer" in said
    assert answers(rig, token=TOKEN)
    assert sum(window.errors.get("E-INFER-TOKEN", 0) for window in rig.counted_to_the_end()) >= 5


def test_without_a_token_in_the_rules_none_is_asked_for(served: ServingRig) -> None:
    """The control: it is the token that keeps others out, not something else."""
    assert answers(served)
    assert answers(served, token="anything")


def test_only_a_certificate_of_the_sites_ca_opens(
    files: Files, behind: Callable[[ServingRules], ServingRig], other_bundle: Bundle
) -> None:
    rules = ServingRules(
        address="127.0.0.2", certificate=files.certificate, key=files.key, client_ca=files.ca, wait_s=0.2
    )
    rig = behind(rules)
    assert rig.url.startswith("https://127.0.0.2:")
    assert answers(rig, tls=tls(files, files.client))
    for shown in (None, files.stranger):
        with pytest.raises(EdgeopsError) as caught:
            answers(rig, tls=tls(files, shown))
        assert caught.value.code == "E-NET-UNREACHABLE"
    with pytest.raises(EdgeopsError):
        open_model(rig.url.replace("https", "http")).infer(MODEL, {"x": X})
    rig.swap(other_bundle, "2.0.0")
    while not rig.serving.is_alone:
        time.sleep(0.01)
    client = open_model(rig.url, tls=tls(files, files.client))
    for _ in range(3):
        np.testing.assert_array_equal(client.infer(MODEL, {"x": X})["y"], X + 2)
    client.close()


def test_a_token_over_tls_needs_no_certificate(files: Files, behind: Callable[[ServingRules], ServingRig]) -> None:
    rig = behind(ServingRules(certificate=files.certificate, key=files.key, token_file=files.token))
    assert answers(rig, tls=tls(files), token=TOKEN)
    with pytest.raises(EdgeopsError) as caught:
        answers(rig, tls=tls(files))
    assert caught.value.code == "E-INFER-TOKEN"
    unix = open_model(rig.socket)  # who may enter its folder may ask
    np.testing.assert_array_equal(unix.infer(MODEL, {"x": X})["y"], X + 1)
    unix.close()
