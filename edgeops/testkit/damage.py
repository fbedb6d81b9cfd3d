"""Bundles that are whole, signed and wrong: what a broken build machine would hand to a release."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from edgeops.contracts.errors import EdgeopsError
from edgeops.releases.bundles import Bundle, open_bundle, seal
from edgeops.runtimes.bundle_session import open_session
from edgeops.runtimes.golden import load, replay

_MAX_CHANGED_BYTES = 1 << 14


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
        (name for name in whole.manifest.files if not name.startswith("golden/")),
        key=lambda name: whole.manifest.files[name].length,
    )
    original = np.fromfile(source / weights, np.uint8)
    rng = np.random.default_rng(seed)
    shutil.copytree(source, target)
    changed_bytes = 8
    while changed_bytes <= _MAX_CHANGED_BYTES:
        data = original.copy()
        # The last nine tenths: past the headers of every format in use.
        places = rng.integers(data.size // 10, data.size, changed_bytes)
        data[places] ^= 0x08
        data.tofile(target / weights)
        damaged = seal(target, whole.manifest)
        if _answers_slightly_wrong(damaged):
            return damaged
        changed_bytes *= 2
    raise EdgeopsError("E-BUNDLE-INVALID", f"{source}: no damage to {weights} shows in the golden vectors")


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
