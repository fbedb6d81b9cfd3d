"""Models on microcontrollers: the serial protocol, flashers and the firmware. Imports only `edgeops.contracts`."""
