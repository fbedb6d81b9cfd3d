"""Show or clear what the compiler keeps so that it need not do it again."""

from __future__ import annotations

import click

from edgeops.cli.options import FloatRange
from edgeops.cli.output import json_option, print_json, print_table

_DAY_S = 86_400.0


@click.group()
def command() -> None:
    """Show or clear what the compiler keeps so that it need not do it again."""


@command.command()
@json_option
def show(as_json: bool) -> None:
    """Show where the cache lies, how many products it has, and how large they are."""
    from edgeops.compiler.store import Store

    store = Store()
    usage = store.usage()
    if as_json:
        print_json({"path": str(store.root), "products": usage.products, "size_bytes": usage.size_bytes})
    else:
        print_table(("path", "products", "MiB"), [(store.root, usage.products, f"{usage.size_bytes / 2**20:.1f}")])


@command.command()
@click.option("--unused-days", type=FloatRange(min=0), default=0, help="Only what was not used for so long.")
@json_option
def clear(unused_days: float, as_json: bool) -> None:
    """Remove products; the next compile makes again what it needs. Downloads and toolchains stay."""
    from edgeops.compiler.store import Store

    removed = Store().clear(unused_s=unused_days * _DAY_S)
    if as_json:
        print_json({"products": removed.products, "size_bytes": removed.size_bytes})
    else:
        click.echo(f"removed {removed.products} products, {removed.size_bytes / 2**20:.1f} MiB")
