"""The serial line itself: a device file, a pseudo terminal, or `socket://host:port`, held by one program at a time."""

from __future__ import annotations

from typing import Any, Protocol

from edgeops.contracts.errors import EdgeopsError

BAUD_RATE = 115200


class Port(Protocol):
    """A serial line."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def read(self, timeout_s: float) -> bytes:
        """Return what has come, at least one byte; nothing if none came in time.

        Raises:
            EdgeopsError: E-MCU-PORT; the line is gone.
        """

    def write(self, data: bytes) -> None:
        """Send bytes.

        Raises:
            EdgeopsError: E-MCU-PORT; the line is gone.
        """

    def close(self) -> None:
        """Give the line back."""


class SerialPort:
    """A serial line through pyserial.

    Args:
        url: A device file, or a URL that pyserial knows.
        baud_rate: Bits per second; emulated lines ignore it.

    Raises:
        EdgeopsError: E-MCU-PORT; it cannot be opened, or another program holds it. E-DEPENDENCY; pyserial is missing.
    """

    def __init__(self, url: str, *, baud_rate: int = BAUD_RATE) -> None:
        try:
            import serial
        except ImportError as error:
            raise EdgeopsError("E-DEPENDENCY", f"pyserial: {error}", "pip install 'edgeops[gateway]'") from error
        self.name = url
        self._error: type[Exception] = serial.SerialException
        # Sockets know no exclusive use.
        exclusive = {} if "://" in url else {"exclusive": True}
        try:
            self._serial: Any = serial.serial_for_url(url, baud_rate, timeout=0, write_timeout=5, **exclusive)
        except (serial.SerialException, ValueError, OSError) as error:
            raise EdgeopsError(
                "E-MCU-PORT", f"{url}: {error}", "Plug the device in, and end other programs that use this port."
            ) from error

    def read(self, timeout_s: float) -> bytes:
        """Return what has come; see `Port.read`."""
        try:
            self._serial.timeout = timeout_s
            first: bytes = self._serial.read(1)
            if not first:
                return b""
            self._serial.timeout = 0
            return first + bytes(self._serial.read(4096))
        except (self._error, OSError) as error:
            raise self._gone(error) from error

    def write(self, data: bytes) -> None:
        """Send bytes; see `Port.write`."""
        try:
            self._serial.write(data)
        except (self._error, OSError) as error:
            raise self._gone(error) from error

    def close(self) -> None:
        """Give the line back."""
        self._serial.close()

    def _gone(self, error: Exception) -> EdgeopsError:
        return EdgeopsError("E-MCU-PORT", f"{self.name}: {error}", "Check the cable, then try again.")


def serial_ports() -> list[tuple[str, str]]:
    """Return the serial ports of this machine with their descriptions.

    Raises:
        EdgeopsError: E-DEPENDENCY; pyserial is missing.
    """
    try:
        from serial.tools import list_ports
    except ImportError as error:
        raise EdgeopsError("E-DEPENDENCY", f"pyserial: {error}", "pip install 'edgeops[mcu]'") from error
    return sorted((str(port.device), str(port.description)) for port in list_ports.comports())
