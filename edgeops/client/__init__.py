"""For users' programs: the REST API (`client.api`) and local inference on a device (`client.inference`)."""
