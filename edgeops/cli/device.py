"""Enrol devices, and see how they are."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeops.cli.options import FloatRange, said, served_option
from edgeops.cli.output import json_option, print_json, print_table, show_again, watch_option
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.samples import MAX_SAMPLES, MAX_SAMPLES_BYTES, MAX_SAMPLES_S

if TYPE_CHECKING:
    from edgeops.client.resources import ComponentInfo, DeviceInfo, SelfTestInfo, UnitInfo
    from edgeops.contracts.samples import Sample
    from edgeops.contracts.telemetry import DeviceWindow

SAMPLES_LOOK_EVERY_S = 1.0
COLUMNS = (
    "device", "profile", "online", "model", "version", "state", "p50 ms", "p95 ms", "requests", "errors",
    "last refusal",
)  # fmt: skip


@click.group()
def command() -> None:
    """Devices: enrol them, list them, show one."""


@command.command("list")
@served_option
@json_option
@watch_option
@click.option("--where", default="", callback=said, metavar="QUERY", help="Only devices that this query finds.")
def list_devices(home: Path, where: str, watch: bool, as_json: bool) -> None:
    """List all devices and the units behind them: version, state, latency, requests, errors, and refusals."""
    from edgeops.client.api import Api

    api = Api.from_home(home)

    def show() -> None:
        devices = list(api.devices(where))
        if as_json:
            print_json(devices)
        else:
            print_table(COLUMNS, [row for device in devices for row in _rows(device)])

    show_again(show, watch=watch)


@command.command("show")
@served_option
@json_option
@click.argument("name")
def show_device(home: Path, name: str, as_json: bool) -> None:
    """Show one device: what it should run, what it runs, and its newest steps."""
    from edgeops.client.api import Api

    device = Api.from_home(home).device(name)
    if as_json:
        print_json(device)
        return
    print_table(COLUMNS, _rows(device))
    seen = "never" if device.last_seen_s is None else f"{_ago(device.last_seen_s)} ago"
    if device.cloned_since_s is not None:
        click.echo(
            f"two machines speak with its key, for {_ago(device.cloned_since_s)}: "
            f"`edgeops device revoke {device.connection}`, or `edgeops device renew {device.connection}` for one"
        )
    if device.certificate_until_s is not None:
        days = (device.certificate_until_s - time.time()) / 86400
        click.echo(f"its certificate {f'holds for {days:.0f} days' if days > 0 else f'ran out {-days:.0f} days ago'}")
    click.echo(f"agent {device.agent_version or 'unknown'}, last heard {seen}, labels {_said(device.labels)}")
    for unit in device.units:
        click.echo(
            f"unit {unit.unit}, {unit.profile or 'of no known profile'}: desired generation {unit.desired_generation}"
            f"{'' if unit.published else ' (not yet with the broker)'}, observed {unit.observed_generation}"
        )
        for what, words in (
            ("labels", unit.labels), ("attributes", unit.attributes), ("capabilities", unit.capabilities)
        ):  # fmt: skip
            if words:
                click.echo(f"  {what}: {_said(words)}")
        for part in unit.components:
            if part.self_test is not None:
                click.echo(f"  {part.name} measured there: {_measured(part.self_test)}")
        if unit.stale_s:
            click.echo(f"  its trusted metadata has been stale for {unit.stale_s:.0f} s")
    if device.figures is not None:
        click.echo(_figures(device.figures))
    if device.dropped_windows:
        click.echo(f"{device.dropped_windows} windows of its telemetry were given up before it could tell them")
    if device.rejected_messages:
        click.echo(f"{device.rejected_messages} of its messages were refused; the last: {device.rejected_last}")
    if device.progress:
        print_table(
            ("when", "component", "generation", "release", "state", "code", "detail"),
            [
                (f"{_ago(p.received_at_s)} ago", p.component, p.generation, p.release, p.state, p.code or "", p.detail)
                for p in device.progress
            ],
        )


@command.command("history")
@served_option
@json_option
@click.argument("name")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 500))
def history(home: Path, name: str, limit: int, as_json: bool) -> None:
    """Show what a device, or a unit behind it (GATEWAY/UNIT), was to run: since when, why, and how far it got."""
    from edgeops.client.api import Api

    past = Api.from_home(home).history(name, limit)
    if as_json:
        print_json(past)
        return
    print_table(
        ("when", "generation", "why", "to run", "how that went"),
        [
            (
                f"{_ago(one.at_s)} ago", one.generation, one.cause,
                ", ".join(f"{part.name} {part.release}" for part in one.components) or "nothing",
                ", ".join(f"{who}: {state}" for who, state in sorted(one.outcomes.items())),
            )
            for one in past
        ],
    )  # fmt: skip


@command.command("label")
@served_option
@click.argument("name")
@click.argument("changes", nargs=-1, required=True, metavar="KEY=VALUE|KEY-...")
def label(home: Path, name: str, changes: tuple[str, ...]) -> None:
    """Set labels of a device, or of a unit behind it (GATEWAY/UNIT); KEY- removes one, the others stay."""
    from edgeops.client.api import Api

    gone = [change for change in changes if change.endswith("-") and "=" not in change]
    labels: dict[str, str | None] = {change[:-1]: None for change in gone}
    labels |= parse_labels(tuple(change for change in changes if change not in gone))
    device = Api.from_home(home).label_device(name, labels)
    behind = {unit.unit: unit.labels for unit in device.units}.get(name.partition("/")[2])
    click.echo(f"{name}: {_said(device.labels if behind is None else behind)}")


@command.command("revoke")
@served_option
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def revoke(home: Path, name: str, yes: bool) -> None:
    """Shut a device out, at once and for good: its session ends, and its certificate lets it in nowhere."""
    from edgeops.client.api import Api

    if not yes:
        click.confirm(f"Shut {name} out? It can come back only by enrolling anew, under another name", abort=True)
    Api.from_home(home).revoke_device(name)
    click.echo(f"{name} is revoked; what it runs goes on serving, and it gets nothing more")


@command.command("enroll")
@served_option
@click.argument("request", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File for the answer.")
def enroll(home: Path, request: Path, out: Path) -> None:
    """Let a device in that has no network.

    REQUEST is what `edgeops agent enroll --request` wrote on the device; carry the answer back to
    `edgeops agent enroll --answer`. The device checks it against its token.
    """
    from edgeops import durable
    from edgeops.client.api import Api
    from edgeops.contracts.enrolment import EnrolRequest
    from edgeops.contracts.wire import decode, encode

    answer = Api.from_home(home).enroll(decode(request.read_bytes(), EnrolRequest, what=str(request)))
    durable.write_file(out.resolve(), encode(answer))
    click.echo(f"{answer.response.connection} is enrolled; carry {out} to it")


@command.command("renew")
@served_option
@click.argument("name")
def renew(home: Path, name: str) -> None:
    """Have a device renew its certificate now; by itself it does so two thirds through the certificate's life."""
    from edgeops.client.api import Api

    Api.from_home(home).renew_device(name)
    click.echo(f"{name} will renew its certificate as soon as it hears of it")


@command.command("samples")
@served_option
@json_option
@click.argument("name")
@click.argument("model", required=False)
@click.option("--count", default=16, show_default=True, type=click.IntRange(1, MAX_SAMPLES), help="Requests at most.")
@click.option("--max-kib", default=4096, show_default=True, type=click.IntRange(1, MAX_SAMPLES_BYTES >> 10))
@click.option("--within-s", default=600.0, show_default=True, type=FloatRange(1, MAX_SAMPLES_S), help="So long.")
@click.option("--share", default=1.0, show_default=True, type=FloatRange(0, 1, min_open=True), help="Of requests.")
@click.option("--fetch", "id", metavar="ID", help="Fetch what was asked for before.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for the inputs, as .npy files.")
def samples(
    home: Path,
    name: str,
    model: str | None,
    count: int,
    max_kib: int,
    within_s: float,
    share: float,
    id: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Ask a device for raw inputs of MODEL, or fetch them; without either, list what it was asked for.

    The device gives them only to this signed command, within its bounds, and notes it; its owner may have forbidden it.
    With --out the command waits for them.
    """
    from edgeops.client.api import Api

    api = Api.from_home(home)
    if model is None and id is None:
        asked = api.samples(name)
        if as_json:
            print_json(asked)
        else:
            print_table(
                ("id", "asked", "by", "model", "state", "bytes", "code", "detail"),
                [
                    (
                        o.id,
                        f"{_ago(o.created_at_s)} ago",
                        o.created_by,
                        o.model,
                        o.state,
                        o.total_bytes,
                        o.code,
                        o.detail,
                    )
                    for o in asked
                ],
            )
        return
    if model is not None and id is None:
        bounds = {"count": count, "max_bytes": max_kib << 10, "within_s": within_s, "share": share}
        state = api.ask_for_samples(name, model, **bounds)
        id = state.id
    else:
        assert id is not None
        state = api.samples_state(name, id)
    if out is not None:
        while state.state in ("asked", "accepted"):
            time.sleep(SAMPLES_LOOK_EVERY_S)
            state = api.samples_state(name, id)
        if state.state != "done":
            raise EdgeopsError(state.code or "E-COMMAND", f"{name}: {state.state}; {state.detail}")
        _write_samples(api.fetch_samples(name, id), out)
    if as_json:
        print_json(state)
    else:
        click.echo(f"{state.id}: {state.state}{f', {state.detail}' if state.detail else ''}")


def _write_samples(found: list[Sample], out: Path) -> None:
    """Write each sample's inputs as `NNNN-PLACE.npy`, and what answered them as `samples.json`.

    Raises:
        EdgeopsError: E-WIRE-MALFORMED; a tensor is not what its description says. E-DISK-FULL or E-DISK-WRITE.
    """
    import json

    import numpy as np

    from edgeops import durable

    told = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for number, sample in enumerate(found):
            files = {}
            for place, (name, tensor) in enumerate(sorted(sample.inputs.items())):
                array = np.frombuffer(tensor.data, np.dtype(tensor.dtype).newbyteorder("<")).reshape(tensor.shape)
                files[name] = f"{number:04d}-{place}.npy"
                np.save(out / files[name], array, allow_pickle=False)
            told.append({"at_s": sample.at_s, "release": sample.release, "digest": sample.digest, "inputs": files})
    except (TypeError, ValueError) as error:
        raise EdgeopsError("E-WIRE-MALFORMED", f"a sample's tensor is not as it says: {error}") from error
    except OSError as error:
        raise durable.disk_error(error, out) from error
    durable.write_file(out / "samples.json", json.dumps(told, indent=1).encode())


@command.command("token")
@served_option
@json_option
@click.option("--profile", help="Only a device of this profile may use it.")
@click.option("--name", help="The device gets this name.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label for the device; repeatable.")
@click.option("--valid-s", type=float, help="How long it may be used, in seconds [one day].")
@click.option("--rig", metavar="NAME", help="It is for the rig of this name: `edgeops hil serve`.")
def token(
    home: Path,
    profile: str | None,
    name: str | None,
    labels: tuple[str, ...],
    valid_s: float | None,
    rig: str | None,
    as_json: bool,
) -> None:
    """Make a one-time token with which one device, or one rig, can join."""
    from edgeops.client.api import Api

    if rig is not None and (profile or name):
        raise EdgeopsError("E-CONFIG", "a rig joins under its own name, and without a profile", "Give --rig alone.")
    created = Api.from_home(home).create_token(
        profile=profile,
        name=rig or name,
        labels=parse_labels(labels),
        valid_s=valid_s,
        kind="device" if rig is None else "rig",
    )
    if as_json:
        print_json(created)
    else:
        click.echo(created.token)


def parse_labels(texts: tuple[str, ...]) -> dict[str, str]:
    """Return labels from `KEY=VALUE` texts.

    Raises:
        EdgeopsError: E-CONFIG; one has no `=`, or a key comes twice.
    """
    labels: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key in labels:
            raise EdgeopsError("E-CONFIG", f"label {text!r} is not KEY=VALUE, or comes twice")
        labels[key] = value
    return labels


def _rows(device: DeviceInfo) -> list[tuple[object, ...]]:
    rows = [row for unit in device.units for row in _rows_of_unit(device, unit)]
    return rows or [(device.connection, device.profile, _online(device), *[""] * 7, _refusal(device, None, None))]


def _rows_of_unit(device: DeviceInfo, unit: UnitInfo) -> list[tuple[object, ...]]:
    """Return a row for each component; a unit without any has one too, but a mere gateway's own."""
    rows = [_row(device, unit, component) for component in unit.components]
    if rows or (unit.unit == "self" and len(device.units) == 1):
        return rows
    return [(_name(device, unit), unit.profile, _online(device), *[""] * 7, _refusal(device, unit, None))]


def _name(device: DeviceInfo, unit: UnitInfo) -> str:
    return device.connection if unit.unit == "self" else f"{device.connection}/{unit.unit}"


def _said(words: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(words.items())) or "none"


def _measured(figures: SelfTestInfo) -> str:
    return (
        f"{figures.latency_p50_ms:.2f} ms (p95 {figures.latency_p95_ms:.2f}), {figures.peak_memory_mib:.0f} MiB, "
        f"by {figures.provider}, {figures.vectors} golden vectors within {figures.max_abs_diff:.3g}"
    )


def _row(device: DeviceInfo, unit: UnitInfo, component: ComponentInfo) -> tuple[object, ...]:
    return (
        _name(device, unit),
        unit.profile or device.profile,
        _online(device),
        component.name,
        component.active_release or "",
        component.state,
        _ms(component.latency_p50_ms),
        _ms(component.latency_p95_ms),
        component.requests,
        component.errors,
        _refusal(device, unit, component),
    )


def _online(device: DeviceInfo) -> str:
    if device.revoked_at_s is not None:
        return "revoked"
    if device.cloned_since_s is not None:
        return "cloned"
    online = "yes" if device.online else "no"
    # It hears no news that are signed: somebody holds them back, or its servers are away.
    return f"{online}, stale" if any(unit.stale_s for unit in device.units) else online


def _refusal(device: DeviceInfo, unit: UnitInfo | None, component: ComponentInfo | None) -> str:
    """Return what was refused last: by the component, else by the unit, else what the control plane refused of it."""
    for failure in (component and component.failure, unit and unit.refused):
        if failure:
            return f"{failure.release} {failure.code}".strip()
    return device.rejected_last


def _figures(found: DeviceWindow) -> str:
    """Return what a device said of itself last, what is not to be had left out."""
    link = found.link
    said = (
        ("up", found.boot_s, lambda value: f"{value / 86400:.1f} d"),
        ("processor", found.cpu_share, lambda value: f"{value:.0%}"),
        ("memory free", found.memory_available_mib, lambda value: f"{value:.0f} MiB"),
        ("disk free", found.disk_free_mib, lambda value: f"{value:.0f} MiB"),
        ("at most", found.temperature_c, lambda value: f"{value:.0f} °C"),
        ("held back by", ", ".join(found.throttled) or None, str),
        ("link", link and link.interface, str),
        ("signal", link and link.signal_dbm, lambda value: f"{value:.0f} dBm"),
        ("connections", (link and link.connects) or None, str),
    )
    return "device: " + ", ".join(f"{name} {shown(value)}" for name, value, shown in said if value is not None)


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _ago(at_s: float) -> str:
    seconds = max(0.0, time.time() - at_s)
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} s"
