"""Boards of rigs: one file per kind, all behind the small protocols of `hil.boards.protocol`."""
