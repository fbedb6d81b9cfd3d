"""A Linux agent as the gateway of microcontrollers: it owns their serial lines; each is a unit of its connection."""
