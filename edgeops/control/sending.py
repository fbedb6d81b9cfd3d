"""Sends signed commands to devices and rigs that are there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from edgeops.contracts.topics import unit_topic
from edgeops.transport.mqtt import MqttLink


class _Command(Protocol):
    @property
    def connection(self) -> str: ...

    @property
    def unit(self) -> str: ...

    @property
    def id(self) -> str: ...


C = TypeVar("C", bound=_Command)


def send(link: MqttLink, fleet: str, commands: Iterable[C], sign: Callable[[C], bytes]) -> list[str]:
    """Publish commands until the link is down; return the ids of those that it took."""
    taken = []
    for command in commands:
        topic = unit_topic(fleet, command.connection, command.unit, "cmd", command.id)
        if link.publish(topic, sign(command)) is None:
            break
        taken.append(command.id)
    return taken
