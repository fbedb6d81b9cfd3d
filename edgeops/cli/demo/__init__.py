"""Run the main job on this machine: a real model compiled, signed, rolled out to three agents and served."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from edgeops.contracts.errors import EdgeopsError


@click.command()
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep everything in this new folder. Default: a temporary one, removed at the end.",
)
@click.option(
    "--mcu", is_flag=True, help="The same with an emulated Cortex-M4 behind a gateway; needs the extra `sklearn`, too."
)
def command(folder: Path | None, mcu: bool) -> None:
    """Run the main job on this machine, on real input: compile, release, roll out, serve; then a bad release.

    Needs the extra `all`. Fetches a published OCR model and scans of text once, into the cache. With `--mcu` it trains
    a network on labelled digits instead, and needs `gcc-arm-none-eabi` and `qemu-system-arm`.
    """
    from edgeops.cli.demo.commands import CommandLine
    from edgeops.cli.demo.display import Display

    display = Display()
    if folder is not None and folder.exists() and any(folder.iterdir()):
        raise EdgeopsError("E-CONFIG", f"{folder} is not empty", "Name a new folder.")
    place = folder or Path(tempfile.mkdtemp(prefix="edgeops-demo-"))
    commands = CommandLine(place / "logs")
    try:
        with commands.stopping():
            passed = _tell(place, commands, display, mcu)
    finally:
        if folder is None:
            shutil.rmtree(place, ignore_errors=True)
    display.say("")
    display.console.print("[bold]By hand, these are the commands that ran:[/]")
    for line in commands.typed:
        display.console.print(f"  {line}", highlight=False, soft_wrap=True)
    verdict = "[bold green]All steps did what they should.[/]" if passed else "[bold red]Some steps did not.[/]"
    display.console.print(f"\n{verdict}")
    sys.exit(0 if passed else 1)


def _tell(place: Path, commands: Any, display: Any, mcu: bool) -> bool:
    """Run the story and show it; return whether every step did what it should."""
    if mcu:
        from edgeops.cli.demo.mcu_scenario import McuScenario
        from edgeops.cli.demo.mcu_story import McuStory

        return McuStory(McuScenario(place, commands), display).tell()
    from edgeops.cli.demo.scenario import Scenario
    from edgeops.cli.demo.story import Story

    return Story(Scenario(place, commands), display).tell()
