"""What every demo's story tells in the same way: whether a step did what it should, and tables."""

from __future__ import annotations

from typing import Any

from edgeops.cli.demo.display import Display


class Telling:
    """Shows findings on a display and keeps whether all were as they should be."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._passed = True

    def expect(self, holds: bool, text: str) -> None:
        """Show a finding."""
        self._passed &= holds
        self._display.say(f"[green]✓[/] {text}" if holds else f"[red]✗ {text}[/]")

    def show_compiled(self, rows: list[dict[str, Any]]) -> None:
        """Show what was compiled, a row per profile."""
        columns = ("profile", "runtime", "precision", "size", "host p50", "agrees with float", "accuracy", "why")
        self._display.table("Compiled", columns, [_compiled_row(row) for row in rows])

    def show_devices(self, step: int, components: dict[str, dict[str, Any]]) -> None:
        """Show how the model stands on each device, by the device's name."""
        columns = ("device", "version", "state", "p50 ms", "p95 ms", "requests", "errors", "last refusal")
        self._display.console.print(f"[green]✓[/] [bold]{step}. How the devices stand[/]")
        self._display.table("Devices", columns, [_device_row(*item) for item in components.items()])


def _compiled_row(row: dict[str, Any]) -> tuple[object, ...]:
    return (
        row["profile"],
        row["runtime"],
        row["precision"],
        f"{row['size_bytes'] / 1024:.0f} KiB",
        f"{row['p50_ms']:.2f} ms",
        f"{row['agreement']:.4f}",
        f"{row['metric']['artifact']:.4f}",
        f"{row['scheme']}: {row['reason']}",
    )


def _device_row(device: str, component: dict[str, Any]) -> tuple[object, ...]:
    failure = component["failure"]
    return (
        device,
        component["active_release"],
        component["state"],
        _ms(component["latency_p50_ms"]),
        _ms(component["latency_p95_ms"]),
        component["requests"],
        component["errors"],
        f"{failure['release']}: {failure['code']}" if failure else "",
    )


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
