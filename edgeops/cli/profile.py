"""List, show and check device profiles."""

from __future__ import annotations

from pathlib import Path

import click

from edgeops.cli.output import json_option, print_json, print_table
from edgeops.contracts.profile import Profile
from edgeops.profiles import registry


@click.group()
def command() -> None:
    """List, show and check device profiles: what each class of device can do."""


@command.command("list")
@json_option
def list_profiles(as_json: bool) -> None:
    """List all profiles: the built-in ones and those of plugins."""
    profiles = [registry.load(name) for name in registry.names()]
    if as_json:
        print_json(profiles)
        return
    rows = [(profile.name, profile.title, profile.cpu.arch, _runtimes(profile), profile.status) for profile in profiles]
    print_table(("name", "device", "arch", "runtimes", "status"), rows)


@command.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show one profile with everything that it inherits, and the source of each figure."""
    profile = registry.load(name)
    if as_json:
        print_json(profile)
        return
    print_table(("key", "value"), _rows(profile))


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def check(file: Path, as_json: bool) -> None:
    """Check a profile's file; a wrong key or value is named."""
    profile = registry.check(file)
    if as_json:
        print_json({"name": profile.name, "valid": True})
    else:
        click.echo(f"{file}: profile {profile.name} is valid")


def _runtimes(profile: Profile) -> str:
    return ", ".join(runtime.name for runtime in profile.runtimes)


def _rows(profile: Profile) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [("name", profile.name), ("title", profile.title), ("status", profile.status)]
    if profile.reason:
        rows.append(("reason", profile.reason))
    cpu, memory = profile.cpu, profile.memory
    rows.append(
        ("cpu", f"{cpu.cores} × {cpu.model}, {cpu.arch}, {cpu.clock_mhz} MHz {' '.join(cpu.isa)} [{cpu.source}]")
    )
    arena = f", arena {memory.arena_kib} KiB" if memory.arena_kib else ""
    flash = f", flash {memory.flash_kib} KiB" if memory.flash_kib else ""
    rows.append(("memory", f"{memory.ram_mib:g} MiB{flash}{arena} [{memory.source}]"))
    rows += [("accelerator", f"{item.name} ({item.kind}) [{item.source}]") for item in profile.accelerators]
    for runtime in profile.runtimes:
        precisions = ", ".join(str(item) for item in runtime.precisions)
        rows.append(("runtime", f"{runtime.name} ≥ {runtime.runtime_min}: {precisions} [{runtime.source}]"))
    limits = (
        ("budget p95 latency", profile.budgets.latency_p95_ms, "ms"),
        ("budget size", profile.budgets.size_mib, "MiB"),
        ("budget peak memory", profile.budgets.peak_memory_mib, "MiB"),
    )
    rows += [(label, f"{value:g} {unit}") for label, value, unit in limits if value is not None]
    rows.append(("serving threads", profile.serving.threads))
    return rows
