"""Bundles that are whole, signed and wrong: what a broken build machine would hand to a release.

`python -m edgeops.testkit.damage SOURCE TARGET` makes one.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np

from edgeops.contracts.errors import EdgeopsError
from edgeops.releases.blob_signing import RUNTIME
from edgeops.releases.bundles import Bundle, open_bundle, seal
from edgeops.runtimes.bundle_session import open_session
from edgeops.runtimes.golden import load, replay
from firmware_bridge import blobs

# One byte is changed first, then twice as many after each eight draws, in the last nine tenths of the file; of a blob
# in its last tenth, which holds weights: what damaged code does is anybody's guess.
_ATTEMPTS, _DRAWS_PER_SIZE = 120, 8


def damage_artifact(source: Path, target: Path, *, seed: int = 1) -> Bundle:
    """Copy a bundle, change a few bytes of its weights, and seal it again: the manifest agrees with the bytes.

    The artifact still loads and answers with finite values, but slightly wrongly: it no longer gives its golden
    vectors. Only running it shows that.

    Args:
        source: A whole bundle's directory.
        target: Directory to make.
        seed: Of the places that are changed.

    Raises:
        EdgeopsError: E-BUNDLE-INVALID; no change was found that the golden vectors see.
    """
    whole = open_bundle(source)
    weights = max(
        (name for name in whole.manifest.files if not name.startswith("golden/") and _is_binary(source / name)),
        key=lambda name: whole.manifest.files[name].length,
    )
    original = np.fromfile(source / weights, np.uint8)
    header = blobs.read(original.tobytes()) if whole.manifest.runtime == RUNTIME else None
    begin = original.size * 9 // 10 if header is not None else original.size // 10
    rng = np.random.default_rng(seed)
    shutil.copytree(source, target)
    for attempt in range(_ATTEMPTS):
        data = original.copy()
        # One stretch, as a bad block does it: scattered bytes would hit the description of the network too.
        length = min((data.size - begin) // 4, 1 << attempt // _DRAWS_PER_SIZE)
        places = rng.integers(begin, data.size - length) + np.arange(length)
        data[places] ^= np.uint8(1) << rng.integers(0, 8, places.size, np.uint8)
        whole_file = data.tobytes()
        if header is not None:
            whole_file = blobs.pack(header, whole_file[blobs.HEADER_SIZE :])
        (target / weights).write_bytes(whole_file)
        damaged = seal(target, whole.manifest)
        if _answers_slightly_wrong(damaged):
            return damaged
    raise EdgeopsError("E-BUNDLE-INVALID", f"{source}: no damage to {weights} shows in the golden vectors")


def _is_binary(path: Path) -> bool:
    """Say whether a file holds weights; text describes the network, and a changed byte there is seen at once."""
    try:
        path.read_bytes().decode()
    except UnicodeDecodeError:
        return True
    return False


def _answers_slightly_wrong(bundle: Bundle) -> bool:
    vectors = load(bundle.directory, bundle.manifest)
    try:
        with open_session(bundle.directory, bundle.manifest) as session:
            for index in range(bundle.manifest.golden.count):
                answer = session.run({name: array[index] for name, array in vectors.inputs.items()})
                if not all(np.isfinite(value).all() for value in answer.values()):
                    return False
            replay(session, bundle.manifest, vectors)
    except EdgeopsError as error:
        return error.code == "E-SELFTEST-GOLDEN"
    return False


if __name__ == "__main__":
    damage_artifact(Path(sys.argv[1]), Path(sys.argv[2]))
