"""The command line: one file per command, found by entry point and imported only when it is run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import click

from edgeops import __version__, plugins
from edgeops.contracts.errors import INTERRUPTED, EdgeopsError, Fault


class LazyGroup(click.Group):
    """A group whose commands are entry points (`edgeops.commands`); help reads only their modules' first lines."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, without importing."""
        return sorted(plugins.found("edgeops.commands"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command.

        Raises:
            EdgeopsError: E-PLUGIN; what was found is not a command.
        """
        if cmd_name not in plugins.found("edgeops.commands"):
            return None
        command = plugins.load("edgeops.commands", cmd_name)
        if not isinstance(command, click.Command):
            raise EdgeopsError("E-PLUGIN", f"edgeops.commands: {cmd_name!r} is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands."""
        rows = [(name, _summary(plugins.found("edgeops.commands")[name].module)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _summary(module: str) -> str:
    """Return the first line of a module's docstring without importing the module."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return ""
    with Path(spec.origin).open(encoding="utf-8") as source:
        return source.readline().strip().strip('"')


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgeops")
def root() -> None:
    """Hand over a trained model; everything after that is the toolkit's work."""


def main() -> None:
    """Run a command and end with one of `EXIT_STATUSES`; an edgeops error says its message on stderr."""
    try:
        status = root.main(prog_name="edgeops", standalone_mode=False)
    except EdgeopsError as error:
        click.echo(f"error {error}", err=True)
        sys.exit(error.exit_status)
    except click.ClickException as error:
        error.show()
        sys.exit(Fault.USAGE.value)
    except click.Abort:
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    # What a command returns is no status; only click's own --help and --version end with one.
    sys.exit(status if isinstance(status, int) else 0)
