"""The child process that is the iotcore broker: `python -m edgeops.control.broker.iotcore_process CONFIG`."""

from __future__ import annotations

import logging
import sys


def main() -> None:
    """Serve until the process is ended."""
    from iotcore import IotCoreBroker

    # rumqttd logs every packet at error level.
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)
    IotCoreBroker(config_path=sys.argv[1]).run_forever()


if __name__ == "__main__":
    main()
