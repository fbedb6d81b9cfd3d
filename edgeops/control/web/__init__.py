"""The read-only web page of a control plane: fleet, releases and rollouts, live."""
