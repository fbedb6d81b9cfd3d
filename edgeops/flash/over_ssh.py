"""From a bare board to a device of the fleet in one go, over SSH; whatever is cut off goes on at the next try."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from edgeops.contracts.errors import ERROR_CODES, EdgeopsError
from edgeops.flash import fit, steps
from edgeops.flash.facts import Board
from edgeops.flash.fit import Choice
from edgeops.flash.link import Link, Login
from edgeops.flash.payload import Packer, Payload
from edgeops.flash.steps import Say, Trouble, Where
from edgeops.profiles import registry

T = TypeVar("T")

TRIES = 6
_RETRY_FIRST_S, _RETRY_MAX_S = 1.0, 15.0
_LOOK_EVERY_S = 1.0
# Why a board has not enrolled, and may yet.
_MAY_PASS = {"E-NET-UNREACHABLE", "E-NET-RESPONSE", "E-DISK-FULL"}


class Fleet(Protocol):
    """What flashing needs of a control plane."""

    def token(self, profile: str, name: str | None) -> str:
        """Return a new one-time enrolment token."""

    def online(self, name: str) -> bool:
        """Say whether a device of this name is connected now."""


class Wish(NamedTuple):
    """What a board shall become.

    Args:
        profile: Device profile; None: what the board says that it is.
        name: Its name in the fleet; None: the fleet gives one.
        token: Enrolment token; None: the fleet is asked for one.
        stick: An exported release to install at once.
        where: Paths on the board.
        online_within_s: How long its first connection may take.
        start: Whether the service is started and waited for; without, a system that is only prepared.
    """

    profile: str | None = None
    name: str | None = None
    token: str | None = None
    stick: Path | None = None
    where: Where = Where()
    online_within_s: float = 180.0
    start: bool = True


class Plan(NamedTuple):
    """What is to be done on a board, in words; empty where nothing is."""

    board: Board
    choice: Choice
    payload: Payload
    steps: tuple[str, ...]


class Flashed(NamedTuple):
    """What became of a board.

    Args:
        host: Address.
        device: Its name in the fleet; empty: it is not known here.
        profile: Its profile.
        version: The version of the agent.
        online: Whether the control plane has seen it; None: it was not asked.
        release: What the agent said of the release that was brought; empty: none was.
        notes: What a person should know.
    """

    host: str
    device: str
    profile: str
    version: str
    online: bool | None
    release: str
    notes: tuple[str, ...]


async def plan(link: Link, wish: Wish, cache: Path, say: Say, packer: Packer | None = None) -> Plan:
    """Find out what is to be done. Nothing is changed on the board; arguments are those of `flash`.

    Raises:
        EdgeopsError: E-FLASH-BOARD; it cannot be served. E-FLASH-WHEELS. E-FLASH-LINK. E-PROFILE-UNKNOWN and the like.
    """
    board = await persist(link, lambda: steps.probe(link, wish.where), say)
    say(f"{board.model or board.os}: {board.arch}, {board.memory_mib} MiB, {board.disk_mib} MiB free")
    profile = registry.load(wish.profile or fit.guess_profile(board, registry.names()))
    choice = fit.choose(board, profile)
    payload = await asyncio.to_thread((packer or Packer()).build, board, choice, cache, say)
    is_there = payload.version in board.versions
    # Unpacked, and on its way.
    needed_mib = 0 if is_there else payload.unpacked_mib + (payload.file.stat().st_size >> 20)
    fit.choose(board, profile, size_mib=needed_mib)
    todo = []
    if not is_there:
        todo.append(f"send {payload.file.stat().st_size >> 20} MiB and unpack edgeops {payload.version}")
    if board.current != payload.version:
        todo.append(f"switch {wish.where.prefix}/current to it" + (f" from {board.current}" if board.current else ""))
    todo += ["enrol it, unless it is enrolled", "install the systemd unit"]
    if wish.start:
        todo.append("start it, and wait until it is online")
    if wish.stick is not None:
        todo.append(f"install the release in {wish.stick.name}")
    return Plan(board, choice, payload, tuple(todo))


async def flash(
    login: Login, wish: Wish, fleet: Fleet | None, cache: Path, say: Say = lambda _line: None,
    packer: Packer | None = None,
) -> Flashed:  # fmt: skip
    """Make a board a device of the fleet. Done again, it brings the board up to date and changes nothing else.

    Args:
        login: How to log in.
        wish: What it shall become.
        fleet: The control plane; None: only where the wish has a token, or the board is enrolled.
        cache: A folder for payloads.
        say: Hears what goes on.
        packer: Shared by boards that are flashed together; None: this one is alone.

    Raises:
        EdgeopsError: As `plan`. E-CONFIG; no token can be had. E-TOKEN, E-ENROLL or E-TRUST-ROOT; the fleet does not
            take it. E-DEVICE; it does not come online in time.
    """
    async with Link(login) as link:
        planned = await plan(link, wish, cache, say, packer)
        payload, where = planned.payload, wish.where

        async def step(name: str, do: Callable[[], Awaitable[T]]) -> T:
            say(name)
            return await persist(link, do, say)

        if payload.version not in planned.board.versions:
            file = await step("send", lambda: steps.bring(link, payload, say))
            await step("unpack and try", lambda: steps.unpack(link, where, payload, planned.choice, file))
            await step("clean up", lambda: steps.clean(link, payload))
        await step("switch", lambda: steps.switch(link, where, payload.version))
        device = await step("look whether it is enrolled", lambda: steps.is_enrolled(link, where))
        if device is None:
            token = wish.token or (fleet.token(planned.choice.profile, wish.name) if fleet is not None else None)
            if token is None:
                raise EdgeopsError(
                    "E-CONFIG", f"{login.host} is not enrolled", "Give --home, --context or --token-file."
                )
            if note := fit.server_note(token, login.host):
                say(note)
            await step("give it a token", lambda: steps.give_token(link, where, token))
        before = await persist(link, lambda: steps.trouble(link, where), say) if device is None else None
        try:
            await step(
                "install the service",
                lambda: steps.install_service(link, where, planned.board, planned.choice.profile, wish.name),
            )
        except EdgeopsError as error:
            # A service that cannot start says less than what keeps it from starting.
            if error.code == "E-FLASH-BOARD" and device is None:
                await _look_for_refusal(link, where, before, say)
            raise
        online = None
        if wish.start:
            device = await _await_enrolled(link, where, before, wish.online_within_s, say)
            online = await _await_online(fleet, device, wish.online_within_s, say)
        release = ""
        if (stick := wish.stick) is not None:
            sha256 = hashlib.sha256(stick.read_bytes()).hexdigest()
            release = await step("install the release", lambda: steps.install_release(link, where, stick, sha256))
        return Flashed(
            login.host, device or "", planned.choice.profile, payload.version, online, release, planned.choice.notes
        )


async def persist(link: Link, do: Callable[[], Awaitable[T]], say: Say) -> T:
    """Do a step; connect and do it again where the connection is lost.

    Raises:
        EdgeopsError: E-FLASH-LINK; lost again and again. What the step raised.
    """
    wait_s = _RETRY_FIRST_S
    for left in range(TRIES - 1, -1, -1):
        try:
            return await do()
        except EdgeopsError as error:
            if error.code != "E-FLASH-LINK" or not left:
                raise
            say(f"the connection was lost ({error.what}); again in {wait_s:.0f} s")
        await asyncio.sleep(wait_s)
        wait_s = min(_RETRY_MAX_S, 2 * wait_s)
        try:
            await link.connect()
        except EdgeopsError as error:
            if error.code != "E-FLASH-LINK":
                raise
    raise AssertionError("the last try returns or raises")


async def _look_for_refusal(link: Link, where: Where, before: Trouble | None, say: Say) -> Trouble | None:
    """Return why the board has not enrolled yet; raise where waiting does not help: it was refused.

    Raises:
        EdgeopsError: What refused it: E-TOKEN, E-ENROLL, E-TRUST-ROOT and the like. E-FLASH-LINK.
    """
    now = await persist(link, lambda: steps.trouble(link, where), say)
    if now is None or now == before:
        return None
    if now.code not in _MAY_PASS:
        code = now.code if now.code in ERROR_CODES else "E-DEVICE"
        raise EdgeopsError(code, f"{link.login.host}: {now.what}", "Give another token: it goes on from here.")
    return now


async def _await_enrolled(link: Link, where: Where, before: Trouble | None, within_s: float, say: Say) -> str:
    """Wait until the board's agent says who it is."""
    deadline_s = time.monotonic() + within_s
    say("wait until it is enrolled")
    while True:
        device = await persist(link, lambda: steps.is_enrolled(link, where), say)
        if device is not None:
            return device
        now = await _look_for_refusal(link, where, before, say)
        if time.monotonic() > deadline_s:
            said = f": {now.what}" if now is not None else ""
            raise EdgeopsError(
                "E-DEVICE",
                f"{link.login.host} does not enrol in {within_s:.0f} s{said}",
                "On the board: journalctl -u edgeops-agent; does it reach the control plane?",
            )
        await asyncio.sleep(_LOOK_EVERY_S)


async def _await_online(fleet: Fleet | None, device: str, within_s: float, say: Say) -> bool | None:
    if fleet is None:
        return None
    deadline_s = time.monotonic() + within_s
    say(f"wait until {device} is online")
    while not await asyncio.to_thread(fleet.online, device):
        if time.monotonic() > deadline_s:
            raise EdgeopsError(
                "E-DEVICE",
                f"{device} is enrolled, but not online in {within_s:.0f} s",
                "On the board: journalctl -u edgeops-agent; does it reach the broker?",
            )
        await asyncio.sleep(_LOOK_EVERY_S)
    return True
