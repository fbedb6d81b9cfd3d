"""Engines that a runtime builds for the device it runs on: once, kept beside the bundle, and whole or not there."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgeops import durable
from edgeops.contracts.bundle import BundleManifest
from edgeops.runtimes.registry import backend

# Providers of onnxruntime that compile a model for minutes.
BUILDERS = frozenset({"TensorrtExecutionProvider"})
_MARK = "complete"


class EngineCache:
    """A folder of engines for one bundle.

    A build that was cut off leaves files that a runtime may take for an engine, and an engine is of one version of its
    runtime: what was not finished by this one is thrown away.

    Args:
        folder: Where; made if it is not there.
        subject: What the engines are of.

    Raises:
        EdgeopsError: E-DISK-FULL or E-DISK-WRITE.
    """

    def __init__(self, folder: Path, subject: str) -> None:
        self.folder, self._subject = folder, subject
        try:
            self.complete = (folder / _MARK).read_text(encoding="utf-8") == subject
        except (OSError, UnicodeDecodeError):
            self.complete = False
        if not self.complete:
            shutil.rmtree(folder, ignore_errors=True)
        durable.make_private_dir(folder)

    def keep(self) -> None:
        """Say that what was built is whole; what is in the folder is on the disk before that is.

        Raises:
            EdgeopsError: E-DISK-FULL or E-DISK-WRITE.
        """
        if not self.complete:
            durable.fsync_tree(self.folder)
            durable.write_file(self.folder / _MARK, self._subject.encode())
            self.complete = True


def engine_cache(folder: Path | None, manifest: BundleManifest, digest: str) -> EngineCache | None:
    """Return the cache that a bundle needs here; None: nothing that builds engines can run it on this device.

    Raises:
        EdgeopsError: As `EngineCache`.
    """
    available = backend(manifest.runtime).available()
    if folder is None or not BUILDERS & set(manifest.providers) & set(available.providers):
        return None
    return EngineCache(folder, f"{digest} {manifest.runtime} {available.version}")
