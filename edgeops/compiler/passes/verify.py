"""Open a sealed bundle as a device would, and replay its golden vectors."""

from __future__ import annotations

from edgeops.compiler.passes import Outcome, Work
from edgeops.releases.bundles import open_bundle
from edgeops.runtimes.bundle_session import open_session
from edgeops.runtimes.golden import load, replay


class Verify:
    """What was checked is what ships: every byte, then every golden vector, through the device's own code."""

    tools = ("numpy", "onnxruntime", "openvino", "ai-edge-litert")
    requires: frozenset[str] = frozenset({"bundle"})
    ensures = frozenset({"verified"})

    def run(self, work: Work) -> Outcome:
        """Parameters: `digest`, of the bundle; `threads`."""
        bundle = open_bundle(work.source, expect_digest=work.parameters["digest"])
        vectors = load(bundle.directory, bundle.manifest)
        with open_session(bundle.directory, bundle.manifest, threads=work.parameters["threads"]) as session:
            found = replay(session, bundle.manifest, vectors)
        return Outcome(frozenset({"verified"}), {"max_abs_diff": found.max_abs_diff, "vectors": found.vectors})
