"""The shared words: what compiler, agent and control plane say to each other. Pure values, no I/O."""
