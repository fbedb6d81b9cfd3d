"""What a person may choose for an agent; the defaults are meant for the field."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from edgeops.agent.downloads import DownloadRules
from edgeops.agent.gateway.rules import McuRules
from edgeops.agent.holds import HoldRules
from edgeops.agent.samples import SampleRules
from edgeops.contracts.wire import Declared

# With windows of 15 minutes that is a month; their bytes are bounded as well: `backlog`.
MAX_QUEUED_WINDOWS = 3000


class TrialRules(NamedTuple):
    """When a new bundle has proved itself.

    Args:
        confirm_after_s: It must have been healthy for this long.
        confirm_within_s: It must have proved itself by then.
        probes: Signs of life that it must have given.
        max_crashes: As many crashes of its worker end the trial.
        min_errors: Fewer errors than this say nothing.
        max_error_share: A larger share of requests that fail by the bundle's fault ends the trial.
    """

    confirm_after_s: float = 5.0
    confirm_within_s: float = 120.0
    probes: int = 3
    max_crashes: int = 3
    min_errors: int = 5
    max_error_share: float = 0.1


class SelfUpdateRules(Declared, frozen=True, kw_only=True):
    """How the agent takes up a new version of itself.

    Args:
        trial_s: The new version has so long to report to the fleet, or the one before is taken up again.
    """

    trial_s: Annotated[float, msgspec.Meta(ge=1, le=86400)] = 600.0


class ServingRules(Declared, frozen=True, kw_only=True):
    """How applications of this device reach its models.

    Args:
        socket_dir: Absolute path of the folder of the models' Unix sockets; None: the state directory's `sockets`, or
            the folder that systemd made for the service.
        address: Where HTTP is served; one that is not of the device itself wants TLS, and a token or `client_ca`.
        certificate: PEM file of the server's certificate.
        key: PEM file of its key.
        client_ca: PEM file of the CAs that clients' certificates must come from.
        token_file: File of the token that each request must carry.
        wait_s: So long requests wait while no bundle can answer them; then they are refused until one can.
    """

    socket_dir: Annotated[str, msgspec.Meta(pattern="^/")] | None = None
    wait_s: Annotated[float, msgspec.Meta(ge=0, le=300)] = 10.0
    address: str = "127.0.0.1"
    certificate: str | None = None
    key: str | None = None
    client_ca: str | None = None
    token_file: str | None = None


class Settings(NamedTuple):
    """An agent's settings.

    Args:
        http_port: Port of the first model's endpoint, further models take the following ones; 0: any free port.
        telemetry_window_s: How long a telemetry window is.
        reserve_mib: What a deployment leaves free on the disk.
        trial: When a new bundle has proved itself.
        holds: Reasons to wait with an update.
        downloads: How bundles are fetched.
        self_update: How the agent takes up a new version of itself.
        socket_dir: Where the models' Unix sockets are; None: in the state directory.
        samples: What operators may ask for.
        serving: How applications reach the models.
        mcu: Microcontrollers on serial lines of this device.
    """

    http_port: int = 0
    telemetry_window_s: float = 900.0
    reserve_mib: int = 32
    trial: TrialRules = TrialRules()
    holds: HoldRules = HoldRules()
    downloads: DownloadRules = DownloadRules()
    self_update: SelfUpdateRules = SelfUpdateRules()
    socket_dir: Path | None = None
    samples: SampleRules = SampleRules()
    serving: ServingRules = ServingRules()
    mcu: tuple[McuRules, ...] = ()
