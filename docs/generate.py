"""Write the parts of the reference that the code already knows: commands, error codes, topics. `make docs` runs it.

Into docs/reference, or into the folder that is named.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from edgeops import plugins
from edgeops.agent import states
from edgeops.cli import root
from edgeops.contracts.errors import ERROR_CODES, EXIT_STATUSES
from edgeops.contracts.topics import DOWN_LEAVES, UP_LEAVES, presence_topic, unit_topic

REFERENCE = Path(__file__).parent / "reference"
_LEAVES = {
    "desired": ("1, retained", "signed envelope: what the unit should run"),
    "cmd": (
        "1",
        "a signed command for [samples](agent.md#samples-of-inputs), [measurements](agent.md#measurements) or, to rigs,"
        " [a run](hil.md#before-a-fleets-rollouts); expires; `id` is its idempotency key",
    ),
    "reported": (
        "1, retained",
        "signed by the device: observed generation, slots, versions, capabilities; by a rig: its boards, what it does",
    ),
    "progress": ("1", "monotonic step per generation and component; terminal states"),
    "telemetry": ("1", "one window of sketches, or a batch of them; `boot_id`, `seq`"),
    "log": ("0", "log lines, rate-limited"),
    "res": ("1", "signed by the device or rig: how far it is with a command, and the answer, in parts"),
}


def errors() -> str:
    """Return the reference of error codes and exit statuses."""
    lines = ["# Error codes", "", "Every error has a stable code, says what happened, and names the next step.", ""]
    lines += ["| exit status | meaning |", "|---|---|"]
    lines += [f"| {status} | {meaning} |" for status, meaning in EXIT_STATUSES.items()]
    lines += ["", "| code | exit status | meaning |", "|---|---|---|"]
    lines += [f"| `{code}` | {entry.fault.value} | {entry.meaning} |" for code, entry in sorted(ERROR_CODES.items())]
    return "\n".join(lines) + "\n"


def topics() -> str:
    """Return the reference of MQTT topics."""
    lines = ["# MQTT topics", "", "Devices and rigs read only `desired` and `cmd`, and write only the rest.", ""]
    lines += ["| topic | direction | QoS | content |", "|---|---|---|---|"]
    for leaf in DOWN_LEAVES + UP_LEAVES:
        topic = unit_topic("fleet", "connection", "unit", leaf, "id" if leaf in ("cmd", "res") else None)
        for part in ("fleet", "connection", "unit"):
            topic = topic.replace(f"/{part}", f"/{{{part}}}", 1)
        qos, content = _LEAVES[leaf]
        topic = topic.removesuffix("/id") + ("/{id}" if topic.endswith("/id") else "")
        lines.append(f"| `{topic}` | {'down' if leaf in DOWN_LEAVES else 'up'} | {qos} | {content} |")
    presence = (
        presence_topic("fleet", "connection").replace("/fleet", "/{fleet}").replace("/connection", "/{connection}")
    )
    lines.append(f"| `{presence}` | up | 1, retained | online or gone (last will); `boot_id` |")
    return "\n".join(lines) + "\n"


def commands() -> str:
    """Return the reference of all commands: their help texts, as the program prints them."""
    lines = [
        "# Commands",
        "",
        "Exit statuses: see [errors](errors.md). `--json` prints one JSON document on stdout.",
        "",
    ]
    context = click.Context(root, info_name="edgeops")
    for name in sorted(plugins.found("edgeops.commands")):
        command = root.get_command(context, name)
        assert command is not None
        lines += _describe(command, click.Context(command, info_name=name, parent=context))
    return "\n".join(lines) + "\n"


def _describe(command: click.Command, context: click.Context) -> list[str]:
    lines = [f"## `{context.command_path}`", "", "```text", command.get_help(context).rstrip(), "```", ""]
    if isinstance(command, click.Group):
        for name in sorted(command.list_commands(context)):
            child = command.get_command(context, name)
            assert child is not None
            lines += _describe(child, click.Context(child, info_name=name, parent=context))
    return lines


def agent_states() -> str:
    """Return the reference of the agent's transition table."""
    lines = ["# States of a component", "", "Written from `edgeops/agent/states.py` by `make docs`.", ""]
    lines += ["```mermaid", states.diagram().rstrip(), "```", ""]
    lines += ["An event that a state does not list is impossible there: `E-AGENT-STATE`, and nothing changes.", ""]
    lines += ["| state | event | new state | then, in this order |", "|---|---|---|---|"]
    for (state, event), step in sorted(states.TABLE.items(), key=lambda item: (item[0][0].name, item[0][1].name)):
        effects = "; ".join(effect.value for effect in step.effects) or "–"
        lines.append(f"| `{state}` | {event.value} | `{step.state}` | {effects} |")
    return "\n".join(lines) + "\n"


PAGES = {"agent-states.md": agent_states, "errors.md": errors, "topics.md": topics, "commands.md": commands}

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else REFERENCE
    folder.mkdir(exist_ok=True)
    for page, write in PAGES.items():
        (folder / page).write_text(write())
    sys.exit(0)
