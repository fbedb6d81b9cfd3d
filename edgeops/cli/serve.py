"""Run the control plane: broker, registry, rollouts, REST API and artifact files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import click

from edgeops.cli.options import FloatRange, home_option, said


@click.command()
@home_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address that all listeners bind.")
@click.option("--advertise", metavar="NAME", help="Name or address by which devices reach this machine [--host].")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default=True,
    help="Port of the REST API; 0: the last one, or a free one.",
)
@click.option("--broker", type=click.Choice(["auto", "mosquitto", "iotcore"]), default="auto", show_default=True)
@click.option(
    "--database",
    metavar="URL",
    callback=said,
    envvar="EDGEOPS_DATABASE",
    help="PostgreSQL instead of SQLite in the home.",
)
@click.option("--approval", is_flag=True, help="Start no rollout that a second person has not approved.")
@click.option(
    "--rig", "rigs", multiple=True, callback=said, metavar="NAME", help="Every rollout waits for this rig; repeatable."
)
@click.option(
    "--role",
    type=click.Choice(["all", "api", "ingest", "rollout"]),
    default="all",
    show_default=True,
    help="One part of a control plane that is split over one PostgreSQL.",
)
@click.option("--web", is_flag=True, help="Serve the read-only web page, at /ui of the REST API's address.")
@click.option(
    "--requests-per-s",
    type=FloatRange(1, 100_000),
    default=100.0,
    show_default=True,
    help="Requests of one API token each second, in the long run; four seconds' worth at once.",
)
@click.option(
    "--connections", type=click.IntRange(8, 1_000_000), default=600, show_default=True, metavar="N",
    help="Connections that each listener has open at most.",
)  # fmt: skip
@click.option(
    "--connections-per-address", type=click.IntRange(8, 1_000_000), default=200, show_default=True, metavar="N",
    help="Of the REST API's, those of one address; a proxy before it is one.",
)  # fmt: skip
@click.option("--verbose", "-v", is_flag=True, help="Log what is done, not only what goes wrong.")
def command(
    home: Path,
    host: str,
    advertise: str | None,
    port: int,
    broker: Literal["auto", "mosquitto", "iotcore"],
    database: str | None,
    approval: bool,
    rigs: tuple[str, ...],
    role: Literal["all", "api", "ingest", "rollout"],
    web: bool,
    requests_per_s: float,
    connections: int,
    connections_per_address: int,
    verbose: bool,
) -> None:
    """Serve a fleet until SIGTERM or Ctrl-C; one line of JSON on stdout says when it is ready, and where."""
    from edgeops.control.service import ServeOptions, serve

    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    options = ServeOptions(
        home, host, advertise, port, broker, database, approval, role, web, requests_per_s, rigs, connections,
        connections_per_address,
    )  # fmt: skip
    serve(options, on_ready=click.echo)
