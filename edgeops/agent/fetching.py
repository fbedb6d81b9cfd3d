"""From a desired component to a verified bundle beside its slot: everything that takes long, on a thread of its own."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from edgeops import durable
from edgeops.agent.downloads import DownloadRules
from edgeops.agent.loop import Loop
from edgeops.agent.slots import Slots
from edgeops.agent.trust_desk import TrustDesk, slot_of
from edgeops.contracts.deployment import Component, Slot
from edgeops.contracts.errors import EdgeopsError
from edgeops.releases.offline import OfflineRepository
from edgeops.transport.download import Cancelled, Downloader, RemoteFile, Server, part_of
from edgeops.transport.http import HttpClient, context_for
from edgeops.trust.tuf_client import CandidateTarget, Target

log = logging.getLogger(__name__)

_PROGRESS_STEP = 0.1


class Staged(NamedTuple):
    """A bundle that lies whole and verified beside the slots; `path` None: the candidate slot has it already."""

    slot: Slot
    path: Path | None


class FetchRequest(NamedTuple):
    """What to fetch.

    Args:
        want: What the desired state asks for.
        floor_number: Number of the release that was last confirmed.
        reserve: Bytes that must stay free on the disk.
        delay_s: How long to wait before anything is asked of a server, if there is something to ask for.
    """

    want: Component
    floor_number: int
    reserve: int
    delay_s: float = 0.0


class Fetcher:
    """Fetches bundles; safe for use by several threads, one per component.

    Args:
        desk: Verifies.
        downloader: Asks the servers.
        downloads: Directory for what is on its way.
    """

    def __init__(self, desk: TrustDesk, downloader: Downloader, downloads: Path) -> None:
        self._desk, self._downloader, self._downloads = desk, downloader, downloads

    def fetch(
        self,
        request: FetchRequest,
        slots: Slots,
        *,
        on_progress: Callable[[float], None],
        cancelled: threading.Event,
    ) -> Staged:
        """Verify, download and unpack. Neither slot is touched.

        Args:
            request: What to fetch.
            slots: The component's slots.
            on_progress: Called with the share that is present, 0 to 1, at steps of a tenth.
            cancelled: Gives it up.

        Raises:
            EdgeopsError: As `TrustDesk.look_up`, `HttpClient.download`, `Slots.unpack`; E-DISK-FULL before the first
                byte if there is not enough room.
            Cancelled: As asked.
        """
        if not slots.is_named(request.want) and cancelled.wait(request.delay_s):
            raise Cancelled
        target = self._desk.look_up(
            request.want,
            request.floor_number,
            is_here=lambda target: self._has_arrived(target) or slots.holds_whole(slot_of(target)),
        )
        slot = slot_of(target)
        if slots.holds_whole(slot):
            return Staged(slot, None)
        durable.make_private_dir(self._downloads)
        file = self._file_of(target)
        if file.exists():
            # A cut came while it was unpacked: what has arrived is verified again, not fetched again.
            durable.rename(file, part_of(file))
        self._check_room(target, file, slots, request.reserve)
        self._download(target, file, on_progress, cancelled)
        if cancelled.is_set():
            raise Cancelled
        try:
            staged = Staged(slot, slots.unpack(file, slot))
        except EdgeopsError:
            durable.remove_tree(file)
            raise
        if not cancelled.is_set():  # else it may be wanted again: one that is held comes back to it
            durable.remove_tree(file)
        return staged

    def fetch_candidate(self, target: CandidateTarget, file: Path, *, reserve: int, cancelled: threading.Event) -> None:
        """Fetch a bundle that was published to be measured; no slot has anything to do with it.

        Args:
            target: Its signed description.
            file: Where to.
            reserve: Bytes that must stay free on the disk once it is unpacked too.
            cancelled: Gives it up.

        Raises:
            EdgeopsError: E-DISK-FULL before the first byte if there is not enough room. Otherwise as `fetch`.
            Cancelled: As asked.
        """
        needed, free = 2 * target.length + reserve, shutil.disk_usage(file.parent).free
        if needed > free:
            what = f"{target.path} needs {needed >> 10} KiB (download, bundle and reserve), {free >> 10} KiB are free"
            raise EdgeopsError("E-DISK-FULL", what, "Free some space; what serves now goes on.")
        remote = RemoteFile(target.remote_path, target.length, target.sha256)
        self._downloader.download(remote, file, cancelled=cancelled)

    def bring(self, stick: OfflineRepository, target: Target) -> None:
        """Take a target's bytes from an exported release: the next `fetch` finds them arrived.

        Raises:
            EdgeopsError: As `OfflineRepository.save`.
        """
        durable.make_private_dir(self._downloads)
        stick.save(target, part_of(self._file_of(target)))

    def forget(self) -> None:
        """Remove all that is on its way. Only while nothing is.

        Raises:
            EdgeopsError: E-DISK-WRITE.
        """
        durable.remove_tree(self._downloads)

    def _file_of(self, target: Target) -> Path:
        return self._downloads / f"{target.sha256}.edgeops"

    def _has_arrived(self, target: Target) -> bool:
        file = self._file_of(target)
        return any(path.exists() and path.stat().st_size == target.length for path in (file, part_of(file)))

    @staticmethod
    def _check_room(target: Target, file: Path, slots: Slots, reserve: int) -> None:
        part = part_of(file)
        present = part.stat().st_size if part.exists() else 0
        space = slots.space(target.length, present, reserve)
        if space.needed > space.free:
            raise EdgeopsError(
                "E-DISK-FULL",
                f"{target.path} needs {space.needed >> 10} KiB (download, slot and reserve), "
                f"{space.free >> 10} KiB are free",
                "Free some space; what serves now goes on.",
            )

    def _download(
        self, target: Target, file: Path, on_progress: Callable[[float], None], cancelled: threading.Event
    ) -> None:
        reported = 0.0

        def progress(received: int) -> None:
            nonlocal reported
            share = received / max(1, target.length)
            if share >= reported + _PROGRESS_STEP or received == target.length:
                reported = share
                on_progress(share)

        remote = RemoteFile(target.remote_path, target.length, target.sha256)
        self._downloader.download(remote, file, on_progress=progress, cancelled=cancelled)


def downloader_for(rules: DownloadRules, http: HttpClient, artifacts_url: str) -> Downloader:
    """Return what fetches bundles: from the mirrors, then from the fleet's own server.

    Args:
        rules: What the site wants.
        http: Client with this device's identity.
        artifacts_url: Base URL of the fleet's repository.

    Raises:
        EdgeopsError: E-CONFIG; the file of the mirrors' CAs cannot be read. E-TRUST-KEY; it is none.
    """
    mirrors_http = http
    if rules.mirrors_ca:
        try:
            mirrors_http = HttpClient(context_for(Path(rules.mirrors_ca).read_bytes()))
        except OSError as error:
            raise EdgeopsError("E-CONFIG", f"downloads.mirrors_ca: {rules.mirrors_ca}: {error.strerror}") from error
    servers = [
        *(Server(mirrors_http, url) for url in rules.mirrors),
        Server(http, f"{artifacts_url.rstrip('/')}/targets"),
    ]
    rate = None if rules.max_kib_per_s is None else rules.max_kib_per_s * 1024
    return Downloader(servers, max_bytes_per_s=rate)


class FetchJob:
    """One fetch on a thread. It begins after the one before it has ended, so that no two write to one file.

    Args:
        loop: Where the callbacks run.
        work: Does it; gets the event that gives it up and the callback for progress.
        before: The job that must end first.
        on_progress: Called with the share that is present.
        on_done: Called once, unless it was given up: with the bundle, or why there is none.
    """

    def __init__(
        self,
        loop: Loop,
        work: Callable[[threading.Event, Callable[[float], None]], Staged],
        *,
        before: FetchJob | None,
        on_progress: Callable[[float], None],
        on_done: Callable[[Staged | EdgeopsError], None],
    ) -> None:
        self._loop, self._work, self._before = loop, work, before
        self._on_progress, self._on_done = on_progress, on_done
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fetch", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether its thread still works."""
        return self._thread.is_alive()

    def cancel(self) -> None:
        """Give it up; no callback follows."""
        self._cancelled.set()

    def _run(self) -> None:
        if self._before is not None:
            self._before._thread.join()
            self._before = None
        outcome: Staged | EdgeopsError
        try:
            if self._cancelled.is_set():
                return
            outcome = self._work(self._cancelled, self._progress)
        except Cancelled:
            return
        except EdgeopsError as error:
            outcome = error
        if self._cancelled.is_set():
            discard(outcome)
        else:
            self._loop.post(lambda: self._tell(outcome))

    def _progress(self, share: float) -> None:
        self._loop.post(lambda: None if self._cancelled.is_set() else self._on_progress(share))

    def _tell(self, outcome: Staged | EdgeopsError) -> None:
        if self._cancelled.is_set():
            discard(outcome)
        else:
            self._on_done(outcome)


def discard(outcome: Staged | EdgeopsError) -> None:
    """Remove a bundle that was unpacked for nothing: beside the slots it would lie until the agent's next start."""
    if isinstance(outcome, Staged) and outcome.path is not None:
        try:
            durable.remove_tree(outcome.path)
        except EdgeopsError as error:
            log.error("a bundle that nobody wants any more could not be removed: %s", error)
