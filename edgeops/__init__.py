"""edgeops: hand over a trained model; everything after that is the toolkit's work."""

from edgeops.__about__ import __version__

__all__ = ["__version__"]
