"""Make and keep a fleet's trust: keys, certificate authority, the signed repository."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from edgeops.cli.options import home_option, keys_option
from edgeops.cli.output import json_option, print_json, print_table


@click.group()
def command() -> None:
    """Make and keep a fleet's trust: keys, certificate authority, the signed repository.

    Offline keys (root, targets, one per model) are encrypted with the passphrase in EDGEOPS_KEY_PASSPHRASE, if it is
    set, and may lie elsewhere: name their folders with --keys.
    """


@command.command()
@home_option
@click.option("--fleet", default="fleet", show_default=True, help="The fleet's name.")
@click.option("--root-keys", type=click.IntRange(1, 16), default=1, show_default=True, help="Keys of the root role.")
@click.option("--root-threshold", type=int, default=1, show_default=True, help="How many of them must sign.")
@click.option("--targets-keys", type=click.IntRange(1, 16), default=1, show_default=True, help="Keys of targets.")
@click.option("--targets-threshold", type=int, default=1, show_default=True, help="How many of them must sign.")
@click.option("--scheme", type=click.Choice(["ed25519", "ecdsa"]), default="ed25519", show_default=True)
@json_option
def init(
    home: Path,
    fleet: str,
    root_keys: int,
    root_threshold: int,
    targets_keys: int,
    targets_threshold: int,
    scheme: Literal["ed25519", "ecdsa"],
    as_json: bool,
) -> None:
    """Make a fleet: its keys, certificate authority and empty repository. Nothing is ever overwritten."""
    from edgeops.trust.founding import KeyPlan, make_fleet

    publisher = make_fleet(
        home,
        fleet,
        root=KeyPlan(root_keys, root_threshold),
        targets=KeyPlan(targets_keys, targets_threshold),
        scheme=scheme,
    )
    facts = {"home": str(home), "fleet": publisher.fleet, "root_sha256": publisher.root_sha256()}
    if as_json:
        print_json(facts)
    else:
        click.echo(f"fleet {fleet} is in {home}; back up {home / 'keys'}, and keep root and targets keys elsewhere")


@command.command()
@home_option
@keys_option
@json_option
def status(home: Path, key_folders: tuple[Path, ...], as_json: bool) -> None:
    """Show each role: version, when it expires, how many keys must sign, and which are here."""
    from edgeops.trust.publisher import Publisher

    rows = Publisher(home, key_folders=key_folders).status()
    if as_json:
        print_json([row._asdict() for row in rows])
        return
    print_table(
        ("role", "version", "expires in days", "keys that must sign", "keys here"),
        [
            (row.role, row.version, f"{row.expires_in_s / 86400:.0f}", f"{row.threshold} of {row.keys}", row.keys_here)
            for row in rows
        ],
    )


@command.command()
@home_option
@keys_option
@click.option("--online", is_flag=True, help="Only snapshot and timestamp, as the control plane does by itself.")
@json_option
def renew(home: Path, key_folders: tuple[Path, ...], online: bool, as_json: bool) -> None:
    """Sign anew what has less than half of its life left."""
    from edgeops.trust.publisher import Publisher

    renewed = Publisher(home, key_folders=key_folders).renew(offline=not online)
    if as_json:
        print_json({"renewed": renewed})
    else:
        click.echo(f"renewed: {', '.join(renewed)}" if renewed else "nothing is due")


@command.command("blob-key")
@home_option
@keys_option
@json_option
def blob_key(home: Path, key_folders: tuple[Path, ...], as_json: bool) -> None:
    """Show the public key that microcontrollers' firmware is built with: their models' blobs are signed by it.

    It is made when it is first asked for.
    """
    from edgeops.releases.blob_signing import raw_public
    from edgeops.trust.publisher import Publisher

    public = raw_public(Publisher(home, key_folders=key_folders).blob_signer()).hex()
    if as_json:
        print_json({"public_key": public})
    else:
        click.echo(public)


@command.command()
@home_option
@keys_option
@click.argument("role")
@click.option("--old", metavar="KEYID", help="The key to replace, or the beginning of its id [the only one].")
@click.option(
    "--public-key",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The new key's .pub file; its private key lies in a --keys folder [a new key is made].",
)
@json_option
def rotate(
    home: Path, key_folders: tuple[Path, ...], role: str, old: str | None, public_key: Path | None, as_json: bool
) -> None:
    """Replace a key of ROLE (as `status` names it); the old one is worth nothing from then on."""
    from edgeops.trust.keys import load_public
    from edgeops.trust.publisher import Publisher

    new = load_public(public_key) if public_key else None
    gone, keyid = Publisher(home, key_folders=key_folders).rotate(role, old=old, new=new)
    if as_json:
        print_json({"role": role, "old": gone, "new": keyid})
    else:
        click.echo(f"{role}: {gone[:16]} is replaced by {keyid[:16]}")


@command.command()
@home_option
@keys_option
@click.argument("model")
@click.option(
    "--public-key",
    "public_keys",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A .pub file of a key that may publish the model; may be given again [a new key is made].",
)
@click.option("--threshold", type=click.IntRange(1, 16), default=1, show_default=True, help="How many must sign.")
@json_option
def delegate(
    home: Path,
    key_folders: tuple[Path, ...],
    model: str,
    public_keys: tuple[Path, ...],
    threshold: int,
    as_json: bool,
) -> None:
    """Say whose keys may publish MODEL, before its first release."""
    from edgeops.trust.keys import load_public
    from edgeops.trust.publisher import Publisher

    publisher = Publisher(home, key_folders=key_folders)
    publisher.delegate(model, [load_public(path) for path in public_keys], threshold)
    keyids = sorted(publisher.models()[model])
    if as_json:
        print_json({"model": model, "keys": keyids, "threshold": threshold})
    else:
        click.echo(f"{model} may be published by {threshold} of: {', '.join(keyid[:16] for keyid in keyids)}")
