"""firmware bridge."""
