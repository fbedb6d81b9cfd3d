"""From a command to the bundles that it names: each through TUF, as an agent takes it, verified before use."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

from edgeops import durable
from edgeops.agent.trust_desk import TrustDesk
from edgeops.contracts.deployment import Component, kind_of
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.rig_runs import RigBundle, RigCommand
from edgeops.contracts.topics import SELF_UNIT
from edgeops.releases.bundles import unpack
from edgeops.transport.download import Downloader, RemoteFile

# The server or the network may be back later; nothing else may.
PASSING = frozenset({"E-NET-UNREACHABLE", "E-NET-RESPONSE", "E-TRUST-EXPIRED"})
_RESERVE_BYTES = 64 << 20


class BundleFetcher:
    """Fetches the bundles of commands.

    Args:
        desk: Verifies.
        downloader: Asks the server.
        folder: Where they are unpacked; it is emptied for each command.
    """

    def __init__(self, desk: TrustDesk, downloader: Downloader, folder: Path) -> None:
        self._desk, self._downloader, self._folder = desk, downloader, folder

    def fetch(self, command: RigCommand, cancelled: threading.Event) -> dict[str, str]:
        """Return profile → folder of its bundle, for each bundle of a command.

        Raises:
            EdgeopsError: As `TrustDesk.look_up`, `Downloader.download` and `unpack`; E-DISK-FULL before the first byte.
            Cancelled: As asked.
        """
        durable.remove_tree(self._folder)
        durable.make_private_dir(self._folder)
        return {bundle.profile: str(self._one(command, bundle, cancelled)) for bundle in command.bundles}

    def forget(self) -> None:
        """Remove what was fetched.

        Raises:
            EdgeopsError: E-DISK-WRITE.
        """
        durable.remove_tree(self._folder)

    def _one(self, command: RigCommand, bundle: RigBundle, cancelled: threading.Event) -> Path:
        want = Component(
            name=command.model,
            kind=kind_of(command.model),
            release=command.version,
            target=bundle.target,
            digest=bundle.digest,
        )
        target = self._desk.for_unit(SELF_UNIT, bundle.profile).look_up(want, 0)
        needed, free = 2 * target.length + _RESERVE_BYTES, shutil.disk_usage(self._folder).free
        if needed > free:
            raise EdgeopsError("E-DISK-FULL", f"{target.path} needs {needed >> 10} KiB, {free >> 10} KiB are free")
        file = self._folder / f"{bundle.profile}.edgeops"
        self._downloader.download(
            RemoteFile(target.remote_path, target.length, target.sha256), file, cancelled=cancelled
        )
        directory = self._folder / bundle.profile
        unpack(file, directory, expect_digest=bundle.digest)
        durable.remove_tree(file)
        return directory
