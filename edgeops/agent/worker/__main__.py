"""`python -m edgeops.agent.worker`: started by the supervisor only."""

from __future__ import annotations

import sys

from edgeops.agent.worker.process import main

sys.exit(main())
