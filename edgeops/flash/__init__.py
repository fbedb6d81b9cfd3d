"""Flash: from a board with an operating system to a device that serves, over SSH or by its card."""
