"""Write the report of a bundle, a compile or a release: one page, Markdown or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeops.cli import contexts
from edgeops.cli.options import home_option
from edgeops.cli.output import json_option, print_json
from edgeops.contracts.errors import EdgeopsError

if TYPE_CHECKING:
    from edgeops.report.model import Report
    from edgeops.report.sources import Compared

DEPLOYED = "deployed"
_SUFFIXES = (".html", ".md", ".json")


@click.command()
@click.argument("what")
@click.argument("version", required=False)
@home_option
@click.option("--context", metavar="NAME", help="With --against deployed: ask this control plane, not the home's.")
@click.option(
    "--against",
    metavar="VERSION|deployed",
    help="Compare with this release, or with what devices serve now [a release: the one before it].",
)
@click.option(
    "--out",
    "outs",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write: .html, .md or .json; may be given again [MODEL[-VERSION].html here].",
)
@json_option
def command(
    what: str,
    version: str | None,
    home: Path,
    context: str | None,
    against: str | None,
    outs: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Write a report that a data scientist can read.

    WHAT is a bundle's folder or file, or the folder that a compile wrote. With VERSION it is a model, of which the
    fleet in --home has published this release.

    The page is one file: it loads nothing, runs nothing, and can be sent on as it is.
    """
    for out in outs:
        if out.suffix not in _SUFFIXES:
            raise EdgeopsError("E-CONFIG", f"--out {out}: no {', '.join(_SUFFIXES)}", "Its end says what is written.")
    from edgeops.report import sources

    report: Report
    if version is None:
        path = Path(what)
        report = sources.of_path(
            path, None if against is None else lambda model: _before(home, model, against, context)
        )
    else:
        before = (
            sources.release_before(home, what, version) if against is None else _before(home, what, against, context)
        )
        report = sources.of_release(home, what, version, before)
    if as_json:
        print_json(report)
    name = f"{report.model}-{report.version}" if report.version else report.model
    for out in outs or (() if as_json else (Path(f"{name}.html"),)):
        _write(report, out)
        click.echo(f"{out}: {report.model} {report.version}".rstrip(), err=as_json)


def _before(home: Path, model: str, against: str, context: str | None) -> Compared:
    from edgeops.report import sources

    if against != DEPLOYED:
        return sources.against_release(home, model, against)
    from edgeops.client.api import Api

    api = Api.from_home(home if context is None else contexts.context_folder(context))
    return sources.deployed(home, model, api.devices())


def _write(report: Report, out: Path) -> None:
    from edgeops import durable
    from edgeops.contracts.wire import encode
    from edgeops.report.page import page
    from edgeops.report.text import markdown

    if out.suffix == ".html":
        data = page(report).encode()
    elif out.suffix == ".md":
        data = markdown(report).encode()
    else:
        data = encode(report) + b"\n"
    durable.write_file(out, data)
