"""Downloads over a real HTTPS server that misbehaves: what arrives is whole and right, or nothing does."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from misbehaving_server import (
    Behaviour,
    MisbehavingServer,
    Request,
    changed_byte,
    cut_after,
    drip,
    drip_head,
    ignore_range,
    longer,
    serving,
    shorter,
    status,
    well,
    wrong_range,
)

from edgeops.contracts.errors import EdgeopsError
from edgeops.transport import http
from edgeops.transport.download import Cancelled, Downloader, RemoteFile, Server, part_of
from edgeops.transport.http import MAX_TRIES, HttpClient, context_for
from edgeops.transport.sources import MAX_STRIKES
from edgeops.trust.authority import FleetAuthority

CONTENT = os.urandom(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()

Serve = Callable[[list[Behaviour]], AbstractContextManager[MisbehavingServer]]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> FleetAuthority:
    return FleetAuthority.create(tmp_path_factory.mktemp("ca") / "ca", "demo")


@pytest.fixture
def serve(authority: FleetAuthority, tmp_path: Path) -> Serve:
    return lambda script: serving(CONTENT, script, authority, tmp_path / "server")


@pytest.fixture
def client(authority: FleetAuthority) -> HttpClient:
    return HttpClient(context_for(authority.ca_pem), backoff=lambda attempt: 0.0)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


def download(client: HttpClient, server: MisbehavingServer, target: Path, **options: Any) -> None:
    base_url, _, name = server.url.rpartition("/")
    downloader = Downloader([Server(client, base_url)], backoff=lambda attempt: 0.0)
    downloader.download(RemoteFile(name, len(CONTENT), SHA256), target, **options)


def test_a_cut_download_goes_on_where_it_was(serve: Serve, client: HttpClient, target: Path):
    seen: list[int] = []
    with serve([cut_after(100_000), cut_after(50_000), well]) as server:
        download(client, server, target, on_progress=seen.append)
        assert server.ranges[0] is None
        starts = [int(value.removeprefix("bytes=").rstrip("-")) for value in server.ranges[1:] if value]
    assert target.read_bytes() == CONTENT
    assert not part_of(target).exists()
    assert starts == sorted(starts)
    assert 0 < starts[0] <= 100_000
    assert seen[-1] == len(CONTENT)


def test_a_download_goes_on_in_another_process_life(serve: Serve, client: HttpClient, target: Path):
    part_of(target).write_bytes(CONTENT[:200_000])
    with serve([well]) as server:
        download(client, server, target)
        assert server.ranges == ["bytes=200000-"]
    assert target.read_bytes() == CONTENT


def test_a_complete_part_needs_no_request(serve: Serve, client: HttpClient, target: Path):
    part_of(target).write_bytes(CONTENT)
    with serve([status(500)]) as server:
        download(client, server, target)
        assert server.ranges == []
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("behaviour", [ignore_range, wrong_range])
def test_a_server_that_ignores_ranges_is_read_from_the_start(
    serve: Serve, client: HttpClient, target: Path, behaviour: Behaviour
):
    with serve([cut_after(100_000), behaviour, well]) as server:
        download(client, server, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("part", [b"garbage" * 1000, CONTENT + b"too long", CONTENT[:-1] + b"!"])
def test_a_part_that_is_not_of_this_file_is_thrown_away(serve: Serve, client: HttpClient, target: Path, part: bytes):
    part_of(target).write_bytes(part)
    with serve([well]) as server:
        download(client, server, target)
    assert target.read_bytes() == CONTENT


def test_a_changed_byte_never_arrives(serve: Serve, client: HttpClient, target: Path):
    """It is fetched once more, in case it was damaged on the way; then it is refused and nothing of it stays."""
    with serve([changed_byte]) as server:
        with pytest.raises(EdgeopsError) as caught:
            download(client, server, target)
        assert len(server.ranges) == MAX_STRIKES
    assert caught.value.code == "E-TRUST-TARGET"
    assert not target.exists()
    assert not part_of(target).exists()


def test_damage_on_the_way_is_healed(serve: Serve, client: HttpClient, target: Path):
    with serve([changed_byte, well]) as server:
        download(client, server, target)
    assert target.read_bytes() == CONTENT


def test_more_than_was_signed_is_not_stored(serve: Serve, client: HttpClient, target: Path):
    with serve([longer]) as server, pytest.raises(EdgeopsError) as caught:
        download(client, server, target)
    assert caught.value.code == "E-TRUST-TARGET"
    assert not target.exists()


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [(shorter, "E-NET-RESPONSE"), (status(503), "E-NET-RESPONSE"), (status(404), "E-NET-RESPONSE")],
)
def test_a_server_that_never_gives_it_ends_with_a_code(
    serve: Serve, client: HttpClient, target: Path, behaviour: Behaviour, code: str
):
    with serve([behaviour]) as server:
        with pytest.raises(EdgeopsError) as caught:
            download(client, server, target)
        assert len(server.ranges) >= MAX_TRIES
    assert caught.value.code == code
    assert not target.exists()


def test_a_busy_server_does_not_cost_what_had_arrived(serve: Serve, client: HttpClient, target: Path):
    with serve([cut_after(100_000), status(503), status(503), well]) as server:
        download(client, server, target)
        assert all(value is not None for value in server.ranges[1:])
    assert target.read_bytes() == CONTENT


def test_cancelling_keeps_what_had_arrived(serve: Serve, client: HttpClient, target: Path):
    cancelled = threading.Event()
    with serve([well]) as server:
        with pytest.raises(Cancelled):
            download(client, server, target, on_progress=lambda have: cancelled.set(), cancelled=cancelled)
        assert 0 < part_of(target).stat().st_size < len(CONTENT)
        download(client, server, target)
    assert target.read_bytes() == CONTENT


def test_a_full_disk_has_its_code_and_what_arrived_is_used_later(
    serve: Serve, client: HttpClient, target: Path, monkeypatch: pytest.MonkeyPatch
):
    part_of(target).write_bytes(CONTENT[:1000])
    real = Path.open

    def full(path: Path, *args: object, **named: object) -> object:
        file = real(path, *args, **named)  # type: ignore[arg-type, call-overload]

        class Full:
            def __getattr__(self, name: str) -> object:
                return getattr(file, name)

            def __enter__(self) -> Full:
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def write(self, data: bytes) -> int:
                raise OSError(errno.ENOSPC, "No space left on device")

        return Full() if path == part_of(target) else file

    with serve([well]) as server:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", full)
            with pytest.raises(EdgeopsError) as caught:
                download(client, server, target)
        assert caught.value.code == "E-DISK-FULL"
        assert part_of(target).read_bytes() == CONTENT[:1000]
        download(client, server, target)
    assert target.read_bytes() == CONTENT


def test_a_server_of_another_ca_is_not_spoken_to(serve: Serve, target: Path, tmp_path: Path):
    stranger = FleetAuthority.create(tmp_path / "other", "demo")
    client = HttpClient(context_for(stranger.ca_pem), backoff=lambda attempt: 0.0)
    with serve([well]) as server:
        with pytest.raises(EdgeopsError) as caught:
            download(client, server, target)
        assert server.ranges == []
    assert caught.value.code == "E-NET-UNREACHABLE"


def test_small_documents_have_a_limit_and_plain_http_is_refused(serve: Serve, client: HttpClient):
    with serve([well]) as server:
        assert client.get(server.url, max_bytes=len(CONTENT)) == CONTENT
        with pytest.raises(EdgeopsError) as caught:
            client.get(server.url, max_bytes=len(CONTENT) - 1)
        assert caught.value.code == "E-WIRE-SIZE"
        with pytest.raises(EdgeopsError) as caught:
            client.get(server.url.replace("https", "http"), max_bytes=10)
        assert caught.value.code == "E-CONFIG"


def test_nobody_there_ends_after_all_tries(client: HttpClient):
    with pytest.raises(EdgeopsError) as caught:
        client.get("https://127.0.0.1:1/x", max_bytes=10)
    assert caught.value.code == "E-NET-UNREACHABLE"


def test_a_server_that_drips_is_left_for_the_next_and_what_it_gave_is_kept(
    client: HttpClient, authority: FleetAuthority, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A few bytes now and then keep every timeout away, and would hold an update for ever."""
    monkeypatch.setattr(http, "PATIENCE_S", 0.2)
    monkeypatch.setattr(http, "MIN_BYTES_PER_S", 100_000.0)

    def well_however_busy_the_machine_is(request: Request) -> None:
        monkeypatch.setattr(http, "PATIENCE_S", 60.0)
        well(request)

    with (
        serving(CONTENT, [drip], authority, tmp_path / "slow") as slow,
        serving(CONTENT, [well_however_busy_the_machine_is], authority, tmp_path / "fast") as fast,
    ):
        servers = [Server(client, server.url.rpartition("/")[0]) for server in (slow, fast)]
        Downloader(servers).download(RemoteFile("file", len(CONTENT), SHA256), target)
        assert target.read_bytes() == CONTENT
        (asked,) = fast.ranges
        assert asked is not None, "what had arrived is fetched again"
        assert 0 < int(asked.removeprefix("bytes=").rstrip("-")) < len(CONTENT) // 2


def test_without_the_limit_a_server_that_drips_is_waited_for(
    client: HttpClient, authority: FleetAuthority, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Negative control: nobody else is asked; the whole of a small file comes that way."""
    monkeypatch.setattr(http, "PATIENCE_S", float("inf"))
    content = CONTENT[:500]
    with (
        serving(content, [drip], authority, tmp_path / "slow") as slow,
        serving(content, [well], authority, tmp_path / "fast") as fast,
    ):
        servers = [Server(client, server.url.rpartition("/")[0]) for server in (slow, fast)]
        Downloader(servers).download(RemoteFile("file", 500, hashlib.sha256(content).hexdigest()), target)
        assert (len(slow.ranges), fast.ranges) == (1, [])


def test_a_small_document_that_drips_is_given_up(serve: Serve, client: HttpClient, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(http, "PATIENCE_S", 0.1)
    monkeypatch.setattr(http, "MIN_BYTES_PER_S", 100_000.0)
    with serve([drip]) as server, pytest.raises(EdgeopsError) as caught:
        client.get(server.url, max_bytes=len(CONTENT))
    assert caught.value.code == "E-NET-RESPONSE"


def test_an_answer_whose_head_drips_is_given_up(serve: Serve, client: HttpClient, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(http, "ANSWER_WITHIN_S", 0.3)
    with serve([drip_head]) as server, pytest.raises(EdgeopsError) as caught:
        client.stream(server.url)
    assert caught.value.code == "E-NET-UNREACHABLE"
    # An honest answer of the same client, on a new connection, is not cut off, however busy the machine is.
    monkeypatch.setattr(http, "ANSWER_WITHIN_S", 60.0)
    with serve([well]) as server:
        assert client.get(server.url, max_bytes=len(CONTENT)) == CONTENT


def test_blocks_come_as_they_arrive(serve: Serve, client: HttpClient):
    """Else nobody could see, between two blocks, how slow a server is."""
    with serve([drip]) as server:
        status, blocks = client.stream(server.url)
        assert status == 200
        assert len(next(blocks)) < 1000


def test_a_slow_link_is_no_slow_server():
    assert not http.is_too_slow(0, http.PATIENCE_S)
    assert http.is_too_slow(0, http.PATIENCE_S + 1)
    assert not http.is_too_slow(int(3600 * http.MIN_BYTES_PER_S), 3600)
