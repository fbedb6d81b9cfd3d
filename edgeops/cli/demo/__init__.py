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
def command(folder: Path | None) -> None:
    """Run the main job on this machine, on real input: compile, release, roll out, serve; then a bad release.

    Needs the extra `all`. Fetches a published OCR model and scans of text once, into the cache.
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
            passed = _tell(place, commands, display)
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


def _tell(place: Path, commands: Any, display: Any) -> bool:
    """Run the story and show it; return whether every step did what it should."""
    from edgeops.cli.demo.scenario import Scenario
    from edgeops.cli.demo.story import Story

    return Story(Scenario(place, commands), display).tell()
