"""`python -m edgeops.agent.worker`: started by the supervisor only."""

from __future__ import annotations

import json
import sys

if sys.argv[1:] == ["capabilities"]:
    from edgeops.runtimes.registry import capabilities

    print(json.dumps(capabilities()))
    sys.exit(0)

from edgeops.agent.worker.process import main

sys.exit(main())
