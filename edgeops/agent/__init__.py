"""On the device: verify, stage, self-test, switch, serve, watch. A light supervisor and a worker per model."""
