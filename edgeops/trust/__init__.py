"""Who may say what to whom: the TUF repository and its client, device identity, signed statements, the time rule."""
