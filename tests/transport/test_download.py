"""Several servers, some of which fail or lie: whoever is honest, the right file arrives, and nothing else ever does."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from misbehaving_server import Behaviour, MisbehavingServer, Request, changed_byte, cut_after, serving, status, well

from edgeops.contracts.errors import EdgeopsError
from edgeops.transport.download import Cancelled, Downloader, RemoteFile, Server, part_of
from edgeops.transport.http import HttpClient, context_for
from edgeops.transport.sources import MAX_STRIKES, Pacer, Sources
from edgeops.trust.authority import FleetAuthority

CONTENT = os.urandom(200_000)
FILE = RemoteFile("file", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> FleetAuthority:
    return FleetAuthority.create(tmp_path_factory.mktemp("ca") / "ca", "demo")


@pytest.fixture(scope="module")
def client(authority: FleetAuthority) -> HttpClient:
    return HttpClient(context_for(authority.ca_pem))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


def lying_start(request: Request) -> None:
    """A wrong beginning, and then the connection breaks: whoever goes on from there ends with a wrong file."""
    request.head(200, len(CONTENT))
    request.wfile.write(bytes(100_000))
    request.wfile.flush()
    request.close_connection = True
    request.connection.close()


HONEST = "honest"
BEHAVIOURS: dict[str, Behaviour] = {
    HONEST: well,
    "down": status(503),
    "lies": changed_byte,
    "lies at the start": lying_start,
    "cuts": cut_after(30_000),
}


@contextlib.contextmanager
def network(
    scripts: list[list[Behaviour]], authority: FleetAuthority, folder: Path
) -> Iterator[list[MisbehavingServer]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(serving(CONTENT, script, authority, folder / str(number)))
            for number, script in enumerate(scripts)
        ]


def downloader(client: HttpClient, servers: list[MisbehavingServer]) -> Downloader:
    bases = [Server(client, server.url.rpartition("/")[0]) for server in servers]
    return Downloader(bases, backoff=lambda attempt: 0.0)


@pytest.mark.parametrize("kinds", list(itertools.product(sorted(BEHAVIOURS), repeat=2)), ids="+".join)
def test_the_file_arrives_from_whoever_is_honest_and_a_wrong_one_never(
    kinds: tuple[str, ...], client: HttpClient, authority: FleetAuthority, target: Path, tmp_path: Path
):
    with network([[BEHAVIOURS[kind]] for kind in kinds], authority, tmp_path) as servers:
        fetch = downloader(client, servers)
        if HONEST in kinds or "cuts" in kinds:
            fetch.download(FILE, target)
            assert target.read_bytes() == CONTENT
        else:
            with pytest.raises(EdgeopsError) as caught:
                fetch.download(FILE, target)
            assert caught.value.code in ("E-TRUST-TARGET", "E-NET-RESPONSE", "E-NET-UNREACHABLE")
            assert not target.exists()


def test_a_mirror_that_lies_is_left_for_the_next_after_one_download(
    client: HttpClient, authority: FleetAuthority, target: Path, tmp_path: Path
):
    with network([[changed_byte], [well]], authority, tmp_path) as (mirror, origin):
        downloader(client, [mirror, origin]).download(FILE, target)
        assert (len(mirror.ranges), len(origin.ranges)) == (1, 1)
    assert target.read_bytes() == CONTENT


def test_a_mirror_that_breaks_off_costs_nothing_that_had_arrived(
    client: HttpClient, authority: FleetAuthority, target: Path, tmp_path: Path
):
    with network([[cut_after(150_000), status(503)], [well]], authority, tmp_path) as (mirror, origin):
        downloader(client, [mirror, origin]).download(FILE, target)
        assert origin.ranges[0] is not None
        assert 0 < int(origin.ranges[0].removeprefix("bytes=").rstrip("-")) <= 150_000
    assert target.read_bytes() == CONTENT


def test_without_the_hash_a_lie_would_arrive(
    client: HttpClient, authority: FleetAuthority, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Negative control."""
    monkeypatch.setattr("edgeops.transport.download._verify", lambda remote, part: None)
    with network([[changed_byte], [well]], authority, tmp_path) as servers:
        downloader(client, servers).download(FILE, target)
    assert target.read_bytes() != CONTENT


def test_if_all_that_gave_bytes_were_blamed_a_liar_could_have_an_honest_server_struck_off():
    """Negative control of `Sources.lied`: nobody is blamed for a file that came from several."""
    sources = Sources(2, found=False)
    for _ in range(3 * MAX_STRIKES):
        sources.gave(0, all_of_it=True)
        sources.gave(1, all_of_it=False)
        assert sources.lied()
    assert sources.next == 0
    for _ in range(MAX_STRIKES):
        assert sources.lied()
        sources.gave(0, all_of_it=True)
    assert sources.lied()
    assert sources.next == 1


@given(
    rate=st.integers(1, 1 << 20),
    blocks=st.lists(st.tuples(st.integers(1, 1 << 16), st.floats(0, 10)), min_size=1, max_size=50),
)
def test_no_span_of_time_carries_more_than_its_share(rate: int, blocks: list[tuple[int, float]]):
    """Blocks come when the network gives them; each next one is taken only after its wait."""
    pacer = Pacer(rate)
    now_s, taken = 0.0, 0
    for length, network_s in blocks:
        now_s += network_s
        taken += length
        now_s += pacer.wait_s(length, now_s)
        assert taken <= rate * now_s + 1e-6 * taken


def test_a_download_waits_as_the_rate_says_and_can_be_given_up_meanwhile(
    client: HttpClient, authority: FleetAuthority, target: Path, tmp_path: Path
):
    class Waits(threading.Event):
        waited_s, impatient = 0.0, False

        def wait(self, timeout: float | None = None) -> bool:
            self.waited_s += timeout or 0.0
            return self.impatient

    waits = Waits()
    with network([[well]], authority, tmp_path) as (server,):
        base = server.url.rpartition("/")[0]
        fetch = Downloader([Server(client, base)], max_bytes_per_s=len(CONTENT) / 50)
        fetch.download(FILE, target, cancelled=waits)
        # Waits are not really waited for here, so each is longer than the one before.
        assert waits.waited_s > 49
        target.unlink()
        waits.impatient = True
        with pytest.raises(Cancelled):
            fetch.download(FILE, target, cancelled=waits)
        assert 0 < part_of(target).stat().st_size < len(CONTENT)
