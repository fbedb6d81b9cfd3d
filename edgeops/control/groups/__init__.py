"""Device groups: by name, or by a query over what devices are and say of themselves."""
