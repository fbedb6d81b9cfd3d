"""A rollout's progress on a terminal: a bar per group while it goes on; plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from edgeops.client.rollout_resources import CountsInfo, GroupInfo, RolloutInfo
from edgeops.contracts.rollouts import ENDED_STATES, RolloutState


def shown_live(look: Callable[[], RolloutInfo], *, every_s: float) -> RolloutInfo:
    """Show a rollout until it ends or pauses, and return it as it is then.

    Args:
        look: Returns it as it is now.
        every_s: How often to look.
    """
    if not sys.stdout.isatty():
        return _told(look, every_s)
    with Live(console=Console(), auto_refresh=False) as live:
        while True:
            rollout = look()
            live.update(_drawn(rollout), refresh=True)
            if _rests(rollout):
                return rollout
            time.sleep(every_s)


def _told(look: Callable[[], RolloutInfo], every_s: float) -> RolloutInfo:
    said = ""
    while True:
        rollout = look()
        line = f"{rollout.state}: {rollout.reason}"
        if line != said:
            click.echo(line)
            said = line
        if _rests(rollout):
            return rollout
        time.sleep(every_s)


def _rests(rollout: RolloutInfo) -> bool:
    return rollout.state in ENDED_STATES or rollout.state == RolloutState.PAUSED


def _drawn(rollout: RolloutInfo) -> RenderableType:
    table = Table(box=None, pad_edge=False)
    for title in ("group", "", "confirmed", "failed", "on the way", "held", "silent"):
        table.add_column(title, justify="left" if title in ("group", "") else "right")
    for rig in rollout.rigs:
        bar = ProgressBar(total=1, completed=int(rig.answered_at_s is not None), width=30)
        word = rig.state if rig.state in ("passed", "waiting", "unasked") else f"[red]{rig.state}[/red]"
        table.add_row(f"0 (rig {rig.rig})", bar, word)
    for group in rollout.groups:
        counts = list(group.profiles.values())
        total = sum(map(_all, counts))
        done = sum(_through(count) for count in counts)
        columns = [sum(getattr(count, name) for count in counts) for name in ("confirmed", "running", "held", "silent")]
        failed = sum(count.failed + count.rejected + count.timed_out for count in counts)
        table.add_row(
            group.label,
            ProgressBar(total=max(1, total), completed=done, width=30),
            str(columns[0]),
            f"[red]{failed}[/red]" if failed else "0",
            *(str(number) if _begun(group) else "" for number in columns[1:]),
        )
    title = f"rollout {rollout.id}: {rollout.model} {rollout.version} is {rollout.state}"
    return Group(title, table, rollout.reason)


def _begun(group: GroupInfo) -> bool:
    return group.started_at_s is not None


def _through(counts: CountsInfo) -> int:
    return counts.confirmed + counts.failed + counts.rejected + counts.timed_out


def _all(counts: CountsInfo) -> int:
    return _through(counts) + counts.running + counts.held + counts.silent
