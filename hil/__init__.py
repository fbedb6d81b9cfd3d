"""The roof of the house: hardware-in-the-loop rigs and boards. Imports any room; no room imports it."""
