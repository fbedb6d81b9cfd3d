"""Version and build time of this edgeops: the oldest moment that its clock can honestly show."""

__version__ = "0.1.0"

# Seconds since 1970-01-01 UTC. A device without a real-time clock boots in 1970; no message or certificate
# that matters to this build is older than the build itself. Raise it with each version.
BUILD_TIME_S = 1_795_392_000  # 2026-11-23T00:00:00Z
