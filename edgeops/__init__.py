"""edgeops: hand over a trained model; everything after that is the toolkit's work."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from edgeops.__about__ import __version__

if TYPE_CHECKING:
    from edgeops.intake.handing_over import handover

__all__ = ["__version__", "handover"]

# onnxruntime from 1.32 on tells its maker of each start unless it is asked not to: it keeps a database and a device
# identifier in the user's home, and sends. A device of a fleet speaks to its fleet only. Who wants it sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    """Import `handover` when it is first asked for: the agent and the command line never are."""
    if name == "handover":
        from edgeops.intake.handing_over import handover

        return handover
    raise AttributeError(f"module 'edgeops' has no attribute {name!r}")
