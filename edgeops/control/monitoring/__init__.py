"""How operators' own systems watch the fleet: metrics for Prometheus, alerts by webhook."""
