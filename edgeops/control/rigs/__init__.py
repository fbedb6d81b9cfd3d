"""Rigs that stand before rollouts: they are asked by message, and what they found is believed for their own key."""
