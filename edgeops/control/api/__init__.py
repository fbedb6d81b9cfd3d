"""The REST API, the doors for new devices, and the artifact files: what the control plane serves over HTTPS."""
