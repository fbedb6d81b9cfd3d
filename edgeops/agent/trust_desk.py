"""All that the agent believes passes here: verified metadata, desired state, and what a component's bundle must be."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple, TypeVar

from securesystemslib.signer import Key

from edgeops.contracts.deployment import Component, Desired, Slot, kind_of
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.measurement import Candidate, MeasureCommand
from edgeops.contracts.samples import SamplesCommand
from edgeops.contracts.topics import SELF_UNIT
from edgeops.releases.offline import OfflineRepository
from edgeops.trust import desired as desired_statements
from edgeops.trust import measure_commands, samples
from edgeops.trust.time import Clock
from edgeops.trust.tuf_client import CandidateTarget, Target, TufClient

log = logging.getLogger(__name__)

T = TypeVar("T")


class Freshness(NamedTuple):
    """Until when the metadata on this device allows changes (None: not at all), and when it was last fetched."""

    until_s: float | None
    last_s: float | None


class Postponed(EdgeopsError):  # noqa: N818  says what follows, as Cancelled does
    """What could not be judged now, because the metadata for it could not be had: ask again later."""


class TrustDesk:
    """Verifies, one question at a time; may be asked from several threads.

    Args:
        tuf: The metadata.
        clock: The time rule.
        fleet: This device's fleet.
        connection: This device's identity.
        profile: This device's profile.
        unit: The unit whose desired state it verifies.
    """

    def __init__(
        self, tuf: TufClient, clock: Clock, *, fleet: str, connection: str, profile: str, unit: str = SELF_UNIT
    ) -> None:
        self._tuf, self._clock = tuf, clock
        self._fleet, self._connection, self._profile, self._unit = fleet, connection, profile, unit
        self._lock = threading.Lock()
        # Desks of one device share its metadata: what one has fetched is fresh for all.
        self._first: TrustDesk = self
        self._freshness = Freshness(tuf.expires_s(), tuf.last_fresh_s)

    def for_unit(self, unit: str, profile: str) -> TrustDesk:
        """Return the desk of another unit of this connection; both ask the same metadata, one question at a time."""
        other = TrustDesk(
            self._tuf, self._clock, fleet=self._fleet, connection=self._connection, profile=profile, unit=unit
        )
        other._lock, other._first = self._lock, self._first
        return other

    @property
    def freshness(self) -> Freshness:
        """Until when the metadata allows changes, and when it was last fetched."""
        return self._first._freshness

    def refresh(self) -> None:
        """Fetch and verify what changed.

        Raises:
            EdgeopsError: As `TufClient.refresh`.
        """
        with self._lock:
            self._refresh()

    def desired(self, envelope: bytes, floor_generation: int) -> Desired:
        """Return a desired state that may be acted on. Keys that are not known yet are looked for on the server.

        Raises:
            Postponed: The server had to be asked, and could not, or its metadata is not valid now.
            EdgeopsError: As `trust.desired.verify`; asking again would not help.
        """
        return self._with_newest_keys(lambda: self._verified(envelope, floor_generation))

    def samples_command(self, envelope: bytes, id: str) -> SamplesCommand:
        """Return a command that may be carried out, unless one of this id was. Keys are looked for as for `desired`.

        Raises:
            Postponed: As `desired`.
            EdgeopsError: As `trust.samples.verify`; asking again would not help.
        """
        return self.command(
            lambda keys, now_s: samples.verify(
                envelope, keys=keys, fleet=self._fleet, connection=self._connection, unit=SELF_UNIT, id=id, now_s=now_s
            )
        )

    def measure_command(self, envelope: bytes, id: str) -> MeasureCommand:
        """Return a command that may be obeyed; keys are looked for as for a desired state.

        Raises:
            Postponed: The server had to be asked, and could not, or its metadata is not valid now.
            EdgeopsError: As `trust.measure_commands.verify`; asking again would not help.
        """
        return self.command(
            lambda keys, now_s: measure_commands.verify(
                envelope, keys=keys, fleet=self._fleet, connection=self._connection, unit=SELF_UNIT, id=id, now_s=now_s
            )
        )

    def command(self, verify: Callable[[Mapping[str, Key], float], T]) -> T:
        """Return what `verify` makes of a command by the keys of desired state and the time rule, for whoever else may
        be commanded; keys are looked for as for a desired state.

        Raises:
            Postponed: The server had to be asked, and could not, or its metadata is not valid now.
            EdgeopsError: As `verify`; asking again would not help.
        """
        return self._with_newest_keys(lambda: verify(self._tuf.desired_keys(), self._clock.now()))

    def candidates(self, wanted: Sequence[Candidate]) -> list[CandidateTarget]:
        """Return the files of bundles that were published to be measured.

        Raises:
            EdgeopsError: E-TRUST-TARGET; one is not published, or is no candidate. Otherwise as `TufClient.refresh`.
        """
        with self._lock:
            self._refresh()
            return [self._tuf.candidate(one.target) for one in wanted]

    def look_up(
        self, want: Component, floor_number: int, *, is_here: Callable[[Target], bool] = lambda target: False
    ) -> Target:
        """Return the file of the bundle that a component is to hold, after all checks that need no byte of it.

        Args:
            want: What the desired state asks for.
            floor_number: Number of the release that was last confirmed.
            is_here: Whether a target's bytes are on this device: while the server is away, such a bundle is judged
                by the metadata that was verified before, until that expires.

        Raises:
            EdgeopsError: E-TRUST-TARGET; not released, or not what the desired state says. E-BUNDLE-PROFILE; for
                another profile. E-TRUST-DOWNGRADE; older than what ran, and no downgrade was signed. Otherwise as
                `TufClient.refresh`.
        """
        with self._lock:
            try:
                self._refresh()
                target = self._tuf.target(want.target)
            except EdgeopsError as error:
                known = self._known(want.target) if error.code in ("E-NET-UNREACHABLE", "E-NET-RESPONSE") else None
                if known is None or not is_here(known):
                    raise
                target = known
        self._check(want, target, floor_number)
        return target

    def admit(self, stick: OfflineRepository, floor_of: Callable[[str], int]) -> tuple[Component, Target]:
        """Return what an exported release brings for this device, verified by its metadata as over the network.

        Validly signed metadata is kept also if the release is refused, so a stick that is older than what this device
        knows is refused as a rollback.

        Args:
            stick: The release.
            floor_of: Number of the release of a model that was last confirmed.

        Raises:
            EdgeopsError: E-RELEASE-INVALID; the file is damaged. E-BUNDLE-PROFILE; it holds nothing for this device.
                E-TRUST-DOWNGRADE; it is older than what ran. Otherwise as `TufClient.refresh` and `target`.
        """
        mine = f"{self._profile}.edgeops"
        path = next((path for path in stick.index.targets if PurePosixPath(path).name == mine), None)
        if path is None:
            raise EdgeopsError("E-BUNDLE-PROFILE", f"the release has no bundle for a {self._profile}")
        with self._lock:
            tuf = self._tuf.by_way_of(stick.metadata_url, stick)
            try:
                tuf.refresh()
                target = tuf.target(path)
            finally:
                self._tuf.forget()
                self._note_freshness()
        custom = target.custom
        want = Component(
            name=custom.model, kind=kind_of(custom.model), release=custom.version, target=path, digest=custom.digest
        )
        self._check(want, target, floor_of(custom.model))
        return want, target

    def stale_s(self, accepted: Desired | None = None) -> float | None:
        """Return for how long nothing fresh has come, so that nothing may change any more; None: all is fresh.

        Args:
            accepted: The desired state that was accepted last: the control plane signs it anew before it expires, so
                one that has expired says that somebody holds back the next, or that the control plane is away.
        """
        now_s = self._clock.now()
        until_s, last_s = self.freshness
        for_s = None
        if until_s is None or now_s >= until_s:
            for_s = now_s - last_s if last_s is not None else 0.0
        if accepted is not None and now_s >= accepted.expires_at_s:
            for_s = max(for_s or 0.0, now_s - accepted.issued_at_s)
        return for_s

    def _known(self, path: str) -> Target | None:
        """Return a target as the cache describes it; None: not there, or no longer valid."""
        try:
            return self._tuf.target(path)
        except EdgeopsError:
            return None

    def _check(self, want: Component, target: Target, floor_number: int) -> None:
        custom = target.custom
        if custom.profile != self._profile:
            raise EdgeopsError(
                "E-BUNDLE-PROFILE", f"{want.target} is for {custom.profile}, this device is a {self._profile}"
            )
        said = (want.name, want.release, want.digest)
        if (custom.model, custom.version, custom.digest) != said:
            raise EdgeopsError("E-TRUST-TARGET", f"desired is {' '.join(said)}, the signed target is {custom}")
        if custom.number < floor_number and not want.allow_downgrade:
            raise EdgeopsError(
                "E-TRUST-DOWNGRADE",
                f"{want.name} {want.release} is release number {custom.number}, number {floor_number} ran here",
                "Sign a downgrade to go back.",
            )

    def _verified(self, envelope: bytes, floor_generation: int) -> Desired:
        return desired_statements.verify(
            envelope,
            keys=self._tuf.desired_keys(),
            fleet=self._fleet,
            connection=self._connection,
            unit=self._unit,
            floor_generation=floor_generation,
            now_s=self._clock.now(),
        )

    def _with_newest_keys(self, verify: Callable[[], T]) -> T:
        """Verify by the keys that are known, then by those that the server knows.

        Raises:
            Postponed: The server had to be asked, and could not, or its metadata is not valid now.
            EdgeopsError: As `verify`.
        """
        with self._lock:
            try:
                return verify()
            except EdgeopsError as error:
                if error.code not in ("E-TRUST-SIGNATURE", "E-TRUST-METADATA", "E-TRUST-EXPIRED", "E-TRUST-ROOT"):
                    raise
                log.info("%s; asking for newer metadata", error.what)
            try:
                self._refresh()
            except EdgeopsError as error:
                raise Postponed(error.code, error.what, error.next_step) from error
            return verify()

    def _refresh(self) -> None:
        try:
            self._tuf.refresh()
        finally:
            self._note_freshness()

    def _note_freshness(self) -> None:
        self._first._freshness = Freshness(self._tuf.expires_s(), self._tuf.last_fresh_s)


def slot_of(target: Target) -> Slot:
    """Return what a target's bundle is called in a slot."""
    custom = target.custom
    return Slot(release=custom.version, digest=custom.digest, number=custom.number, trailer=custom.blob_trailer)
