"""`agent.toml`: what a site wants of its agent. It lies in the state directory; without it there are the defaults."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from edgeops.agent import downloads, holds
from edgeops.agent.door import door_for
from edgeops.agent.downloads import DownloadRules
from edgeops.agent.gateway import rules as gateway_rules
from edgeops.agent.gateway.rules import McuRules
from edgeops.agent.holds import HoldRules
from edgeops.agent.samples import SampleRules
from edgeops.agent.settings import SelfUpdateRules, ServingRules
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import Declared

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIG_FILE = "agent.toml"


class AgentConfig(Declared, frozen=True, kw_only=True):
    """The file's content.

    Args:
        holds: Reasons to wait with an update.
        downloads: How bundles are fetched.
        self_update: How the agent takes up a new version of itself.
        serving: How applications reach the models.
        samples: What operators may ask for.
        mcu: Microcontrollers on serial lines of this device.
    """

    holds: HoldRules = HoldRules()
    downloads: DownloadRules = DownloadRules()
    self_update: SelfUpdateRules = SelfUpdateRules()
    serving: ServingRules = ServingRules()
    samples: SampleRules = SampleRules()
    mcu: tuple[McuRules, ...] = ()


def read_config(root: Path) -> AgentConfig:
    """Return what `{root}/agent.toml` says.

    Raises:
        EdgeopsError: E-CONFIG; it is not readable, has an unknown key or a wrong value, or names an unknown zone.
    """
    path = root / CONFIG_FILE
    try:
        config = msgspec.convert(tomllib.loads(path.read_text()), AgentConfig)
    except FileNotFoundError:
        return AgentConfig()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise EdgeopsError("E-CONFIG", f"{path}: {error}", "Correct it, or remove it for the defaults.") from error
    holds.check(config.holds)
    downloads.check(config.downloads)
    door_for(config.serving)
    gateway_rules.check(config.mcu)
    return config
