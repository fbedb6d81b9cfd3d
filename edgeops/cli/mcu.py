"""Look at microcontrollers on serial lines, install models on them, measure and watch them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeops.cli.options import FloatRange
from edgeops.cli.output import json_option, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from firmware_bridge.link import Inference, SmpLink


_key_option = click.option(
    "--key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="PEM of the key that must have signed an MCUboot image; its public half is enough [its hash is checked].",
)


@click.group()
def command() -> None:
    """Look at microcontrollers on serial lines, install models on them, measure and watch them."""


def _open(port: str) -> SmpLink:
    from firmware_bridge.link import SmpLink
    from firmware_bridge.ports import SerialPort

    return SmpLink(SerialPort(port))


@command.command("list")
@json_option
def list_ports(as_json: bool) -> None:
    """List the serial ports of this machine."""
    from firmware_bridge.ports import serial_ports

    rows = [{"port": port, "description": description} for port, description in serial_ports()]
    if as_json:
        print_json(rows)
    else:
        print_table(("port", "description"), [tuple(row.values()) for row in rows])


@command.command()
@click.argument("port")
@json_option
def probe(port: str, as_json: bool) -> None:
    """Ask the device at PORT (a device file, or socket://host:port) what it is and what it runs."""
    from firmware_bridge.blobs import Cpu

    with _open(port) as link:
        firmware, info = link.system_info(), link.model_info()
    cpu = next((one.name.lower().replace("_", "-") for one in Cpu if one.value == info.cpu), str(info.cpu))
    facts = {
        "firmware": firmware,
        **info._asdict(),
        "cpu": cpu,
        "hash": info.hash.hex() if info.hash is not None else None,
    }
    if as_json:
        print_json(facts)
    else:
        print_table(("fact", "value"), [(key, "-" if value is None else value) for key, value in facts.items()])


@command.command()
@click.argument("port")
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--confirm/--trial", default=True, show_default=True, help="Keep it, or let its trial go on.")
@_key_option
def install(port: str, image: Path, confirm: bool, key: Path | None) -> None:
    """Install IMAGE on the device at PORT: upload, trial, and confirm when it answers.

    IMAGE is a signed model blob, or firmware as a signed MCUboot image.
    """
    from firmware_bridge import mcuboot

    data = image.read_bytes()
    if mcuboot.is_image(data):
        _install_firmware(port, data, confirm, key)
    else:
        _install_model(port, data, confirm)


def _install_model(port: str, data: bytes, confirm: bool) -> None:
    from edgeops.contracts.errors import EdgeopsError
    from firmware_bridge import blobs
    from firmware_bridge.link import check_fit

    header, identity = blobs.read(data), blobs.identity(data)
    with _open(port) as link:
        check_fit(header, len(data), link.model_info())
        with _upload_bar(len(data)) as bar:
            link.upload(data, on_progress=lambda done, _size: bar.update(done - bar.pos))
        link.test(identity)
        link.reset()
        if confirm:
            # One inference first: what cannot run must not be kept.
            link.infer(bytes(header.input.nbytes))
            link.confirm(identity)
        info = link.model_info()
    if info.hash != identity:
        runs = "nothing" if info.model is None else f"{info.model} {info.version}"
        raise EdgeopsError("E-TRIAL", f"{port}: the device went back and runs {runs}; outcome {info.outcome}")
    click.echo(f"{info.model} {info.version} {'is on trial' if info.trial else 'is confirmed'}")


def _install_firmware(port: str, data: bytes, confirm: bool, key: Path | None) -> None:
    from firmware_bridge import mcuboot
    from firmware_bridge.flashers import Options
    from firmware_bridge.flashers.smp import SmpFlasher

    way = SmpFlasher(port, Options(key=key))
    for line in way.plan(data):
        click.echo(line)
    with _upload_bar(len(data)) as bar:
        way.write(data, on_progress=lambda done, _size: bar.update(done - bar.pos))
    way.verify(data)
    way.reset()
    if confirm:
        way.confirm(data)
    click.echo(f"firmware {mcuboot.read(data).version} {'is confirmed' if confirm else 'is on trial'}")


def _upload_bar(size: int) -> Any:
    return click.progressbar(length=size, label="upload")


@command.command()
@click.argument("port")
@click.option("--runs", type=click.IntRange(1, 10_000), default=20, show_default=True, help="Inferences.")
@json_option
def measure(port: str, runs: int, as_json: bool) -> None:
    """Time inferences of the model that the device at PORT runs, on zeros, by the device's own clock."""
    from edgeops.contracts.errors import EdgeopsError

    with _open(port) as link:
        info = link.model_info()
        if info.input_size is None:
            raise EdgeopsError("E-MCU-REFUSED", f"{port}: the device runs no model", "edgeops mcu install PORT BLOB")
        done = [link.infer(bytes(info.input_size)) for _ in range(runs)]
    facts = {"model": info.model, "version": info.version, "runs": runs, **_durations(done)}
    if as_json:
        print_json(facts)
    else:
        print_table(("fact", "value"), list(facts.items()))


def _durations(done: list[Inference]) -> dict[str, float | int]:
    """Return median and largest duration in milliseconds, and in ticks of the device's clock."""
    ticks = sorted(one.ticks for one in done)
    median, hz = ticks[len(ticks) // 2], done[0].ticks_hz
    return {
        "median_ms": round(1000 * median / hz, 4),
        "max_ms": round(1000 * ticks[-1] / hz, 4),
        "median_ticks": median,
        "ticks_hz": hz,
    }


@command.command()
@click.argument("port")
@click.option("--every", "every_s", type=FloatRange(0.1, 86400), default=5.0, show_default=True, help="Seconds.")
@click.option("--count", type=click.IntRange(1), default=None, help="End after so many lines; default: never.")
def monitor(port: str, every_s: float, count: int | None) -> None:
    """Print the counters of the device at PORT again and again, one line of JSON each."""
    import json

    with _open(port) as link:
        line = 0
        while count is None or line < count:
            if line:
                time.sleep(every_s)
            counters = {name: link.statistics(name) for name in ("smp", "model")}
            click.echo(json.dumps(counters, sort_keys=True))
            line += 1


@command.command()
@click.argument("target")
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--by", "way", required=True, help="How: smp, esptool, pyocd, uf2, or a way of a plugin.")
@click.option("--address", default="0", show_default=True, help="Where it lies in the flash, as 0x10000; not for smp.")
@click.option("--chip", default="", help="esptool's chip or pyocd's target [they find out].")
@_key_option
@click.option("--plan", "only_plan", is_flag=True, help="Say what would be done, and do nothing.")
def flash(target: str, image: Path, way: str, address: str, chip: str, key: Path | None, only_plan: bool) -> None:
    """Write IMAGE to the board at TARGET, verify it, and start the board anew.

    TARGET is a serial port (smp: a signed blob or MCUboot image, which then runs on trial; esptool), the id of a probe
    or "" (pyocd), or the mounted drive of a boot loader (uf2).
    """
    from edgeops import plugins
    from edgeops.contracts.errors import EdgeopsError
    from firmware_bridge.flashers import Flasher, Options

    try:
        begins = int(address, 0)
    except ValueError as error:
        raise EdgeopsError("E-CONFIG", f"--address {address!r} is no number", "Give one such as 0x10000.") from error
    if not 0 <= begins < 1 << 32:
        raise EdgeopsError("E-CONFIG", f"--address {address} is no address of 32 bits", "Give one such as 0x10000.")
    make: Callable[[str, Options], Flasher] = plugins.load("edgeops.flashers", way)
    board, data = make(target, Options(begins, chip, key)), image.read_bytes()
    for line in board.plan(data):
        click.echo(line)
    if only_plan:
        return
    click.echo(f"found {board.probe().board}")
    with click.progressbar(length=len(data), label="write") as bar:
        board.write(data, on_progress=lambda done, whole: bar.update(done * len(data) // whole - bar.pos))
    board.verify(data)
    board.reset()
