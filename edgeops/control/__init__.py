"""The control plane: registry, enrolment, ingest, rollouts, REST API, and the broker that it supervises."""
