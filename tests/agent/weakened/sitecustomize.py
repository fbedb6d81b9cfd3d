"""Takes one check away from every Python process that starts with this folder in its path: for negative controls only.

`EDGEOPS_TEST_WITHOUT` names the check.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def metadata_signatures() -> None:
    """Whoever signed metadata may have."""
    from tuf.api.metadata import Root, Targets

    for kind in (Root, Targets):
        kind.verify_delegate = lambda *_: None  # type: ignore[method-assign]


def metadata_floor() -> None:
    """What was known before a refresh is forgotten."""
    from edgeops.trust.tuf_client import TufClient

    read = TufClient._read

    def forgetful(self: TufClient, role: str) -> bytes:
        if role in ("timestamp", "snapshot"):
            raise FileNotFoundError(role)
        return read(self, role)

    TufClient._read = forgetful  # type: ignore[method-assign]


def expiry() -> None:
    """Nothing ever expires."""
    from tuf.api.metadata import Signed

    from edgeops.trust import tuf_client

    Signed.is_expired = lambda *_: False  # type: ignore[method-assign]
    tuf_client._earliest_expiry = lambda _: float("inf")


def delegated_paths() -> None:
    """Who was given which paths is not looked at."""
    from tuf.api.metadata import Delegations

    named = Delegations.get_roles_for_target

    def anybody(self: Delegations, path: str) -> Iterator[tuple[str, bool]]:
        if self.roles is None:
            yield from ((role, False) for role, _ in named(self, path))
        for role in self.roles or {}:
            if role.startswith("model-"):
                yield role, False

    Delegations.get_roles_for_target = anybody  # type: ignore[method-assign]


def snapshots_word() -> None:
    """What the snapshot says of a delegated role is not looked at."""
    from tuf.api.metadata import Metadata, MetaFile

    from edgeops.trust import tuf_client

    verified = tuf_client._verified
    tuf_client._verified = lambda data, role, delegator, meta, now: verified(
        data, role, delegator, MetaFile(Metadata.from_bytes(data).signed.version), now
    )


def size_limits() -> None:
    """A server may send as much as it likes."""
    from edgeops.trust.tuf_client import TufClient

    download = TufClient._download
    TufClient._download = lambda self, name, limit: download(self, name, 1 << 40)  # type: ignore[method-assign]


def token_pins() -> None:
    """Whatever CA and root a server gives are those of the token."""
    import hashlib

    from edgeops.trust import certificates
    from edgeops.trust.tuf_client import TufClient

    certificates.check_ca = lambda *_: None
    bootstrap = TufClient.bootstrap
    TufClient.bootstrap = lambda self, root, _: bootstrap(self, root, hashlib.sha256(root).hexdigest())  # type: ignore[method-assign]


def statement_signatures() -> None:
    """Whoever signed a statement may have."""
    from edgeops.trust import envelopes

    envelopes.Envelope.verify = lambda *_: {}  # type: ignore[method-assign]


def _lenient_desired(**ignored: Any) -> None:
    from edgeops.contracts.deployment import DESIRED_TYPE, Desired
    from edgeops.contracts.wire import decode
    from edgeops.trust import desired, envelopes

    verify = desired.verify

    def lenient(data: bytes, **given: Any) -> Desired:
        said = decode(envelopes.unseal(data, DESIRED_TYPE, given["keys"]), Desired, what="desired")
        return verify(data, **{**given, **{name: value(said) for name, value in ignored.items()}})

    desired.verify = lenient


def addressee() -> None:
    """A statement for another device is taken."""
    _lenient_desired(connection=lambda said: said.connection)


def generation() -> None:
    """An older statement is taken."""
    _lenient_desired(floor_generation=lambda said: 0)


def statement_expiry() -> None:
    """An expired statement is taken."""
    _lenient_desired(now_s=lambda said: 0.0)


def downgrade() -> None:
    """A release's number says nothing."""
    from edgeops.agent.trust_desk import TrustDesk

    check = TrustDesk._check
    TrustDesk._check = lambda self, want, target, floor: check(self, want, target, 0)  # type: ignore[method-assign]


def agreement() -> None:
    """What is desired may be called otherwise than what was signed."""
    from edgeops.agent.trust_desk import TrustDesk

    TrustDesk._check = lambda *_: None  # type: ignore[method-assign]


def kept_desired() -> None:
    """What was accepted before is not looked at."""
    from edgeops.agent.store import StateDirectory

    StateDirectory.read_desired = lambda _: None  # type: ignore[method-assign]


def target_bytes() -> None:
    """The bytes of a bundle are not held against what was signed: at the download, unpacked, and by the worker."""
    from edgeops.releases import bundles, opening
    from edgeops.transport import download

    open_bundle, unpack = bundles.open_bundle, bundles.unpack
    download._verify = lambda *_: None
    bundles.open_bundle = opening.open_bundle = lambda directory, **_: open_bundle(directory)
    bundles.unpack = lambda source, directory, **_: unpack(source, directory)


def server_certificate() -> None:
    """Any server may be the fleet's."""
    load = ssl.SSLContext.load_verify_locations

    def trusting(self: ssl.SSLContext, *args: Any, **named: Any) -> None:
        load(self, *args, **named)
        self.check_hostname = False
        self.verify_mode = ssl.CERT_NONE

    ssl.SSLContext.load_verify_locations = trusting  # type: ignore[method-assign,assignment]


def memory_limit() -> None:
    """A worker may have all the memory there is."""
    import resource

    set_limit = resource.setrlimit

    def lenient(which: int, limits: tuple[int, int]) -> None:
        if which != resource.RLIMIT_DATA:
            set_limit(which, limits)

    resource.setrlimit = lenient


def acknowledged_windows() -> None:
    """What the broker has acknowledged is forgotten at once."""
    from edgeops.agent.uplink import Uplink

    Uplink.has_kept = lambda self, acknowledged_s: True


def freshening() -> None:
    """Metadata is asked for only when something is wanted."""
    from edgeops.agent.freshening import Freshener

    Freshener.look = lambda self: None


def desired_expiry() -> None:
    """A desired state that has expired says nothing about who speaks."""
    from edgeops.agent.trust_desk import TrustDesk

    stale_s = TrustDesk.stale_s
    TrustDesk.stale_s = lambda self, accepted=None: stale_s(self)


def forgetting_requests() -> None:
    """A worker keeps what it was sent, and much beside it, for ever."""
    from edgeops.agent.worker.server import _Connection

    received, kept = _Connection.data_received, []

    def keeping(self: _Connection, data: bytes) -> None:
        kept.append(data + b"x" * (16 << 10))
        received(self, data)

    _Connection.data_received = keeping  # type: ignore[method-assign]


def commit_before_acknowledging() -> None:
    """The control plane acknowledges what it has heard before that is committed, and notes in a file that it did."""
    from edgeops.control.ingest.worker import Ingest

    commit = Ingest._commit

    def hasty(self: Ingest, messages: Any) -> bool:
        for message in messages:
            message.ack()
        with Path(os.environ["EDGEOPS_TEST_NOTE"]).open("ab") as note:
            note.write(b"." * len(messages))
        return commit(self, [message._replace(ack=lambda: None) for message in messages])

    Ingest._commit = hasty  # type: ignore[method-assign]


def agent_deadline() -> None:
    """A version of the agent on trial may take as long as it likes."""
    from edgeops.agent import versions

    versions._GRACE = float("inf")


def agent_starts() -> None:
    """A version of the agent may end as often as it likes."""
    from edgeops.agent import versions

    versions.MAX_TRIAL_STARTS = 1_000_000


def mcu_identity() -> None:
    """Whatever answers on a serial line is the right device, and takes any blob."""
    from edgeops.agent.gateway import line, model

    def anybody(self: line.McuLine) -> line.SmpLink:
        if self._link is None:
            port = line.SerialPort(self._rules.port, baud_rate=self._rules.baud_rate)
            self._link = line.SmpLink(port)
            self._say(line.LineState("anybody", ""))
        return self._link

    line.McuLine._reach = anybody  # type: ignore[method-assign]
    model.check_fit = lambda *_: None


def mcu_resume() -> None:
    """An upload to a microcontroller always begins anew."""
    from firmware_bridge.link import SmpLink

    upload = SmpLink.upload

    def anew(self: SmpLink, blob: bytes, **told: Any) -> None:
        self.erase()
        upload(self, blob, **told)

    SmpLink.upload = anew  # type: ignore[method-assign]


def mcu_golden() -> None:
    """Whatever a microcontroller answers is right."""
    import msgspec

    from edgeops.agent.gateway import model

    read = model.read_installable

    def lenient(load: Any) -> model.Installable:
        found = read(load)
        golden = found.manifest.golden
        loose = {
            name: msgspec.structs.replace(one, artifact_max_abs=float("inf"), source_min_cosine=-1.0)
            for name, one in golden.tolerances.items()
        }
        manifest = msgspec.structs.replace(found.manifest, golden=msgspec.structs.replace(golden, tolerances=loose))
        return found._replace(manifest=manifest)

    model.read_installable = lenient


def life_after_keeping() -> None:
    """The agent is killed when a microcontroller has kept a model, before it has noticed."""
    import signal

    from edgeops.agent.gateway import model

    confirm = model.confirm

    def last(link: Any, of: model.Installable) -> None:
        was_trial = link.model_info().trial
        confirm(link, of)
        if was_trial:
            os.kill(os.getpid(), signal.SIGKILL)

    model.confirm = last


def mcu_keeping() -> None:
    """A model is confirmed before the microcontroller has kept it."""
    from edgeops.agent.gateway.serving import McuServing

    McuServing.keep = lambda _: True  # type: ignore[method-assign]


globals()[os.environ["EDGEOPS_TEST_WITHOUT"]]()
