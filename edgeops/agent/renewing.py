"""Renews the device's certificate in time, also after it ran out while the device was away. Serving goes on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from securesystemslib.signer import Signer

from edgeops.agent.enrolment import MAX_ANSWER_BYTES, Enrolment, problem_of
from edgeops.agent.loop import Loop, Timer
from edgeops.contracts.enrolment import RenewalAnswer
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.wire import decode
from edgeops.transport.http import HttpClient, context_for, quick_backoff_s
from edgeops.transport.mqtt import backoff_s
from edgeops.trust import certificates, renewal
from edgeops.trust.authority import SKEW_S
from edgeops.trust.device import DeviceIdentity

log = logging.getLogger(__name__)

LOOK_EVERY_S = 6 * 3600.0
RETRY_FIRST_S, RETRY_MAX_S = 30.0, 6 * 3600.0


def is_due(validity: certificates.Validity, connection: str, now_s: float, issued_before_s: float | None) -> bool:
    """Say whether a certificate is to be renewed now; pure.

    Args:
        validity: Of the certificate.
        connection: Whose it is.
        now_s: The time rule, seconds since 1970.
        issued_before_s: An operator wants every certificate replaced that was issued before; None: nobody does.
    """
    wanted = issued_before_s is not None and validity.not_before_s + SKEW_S < issued_before_s
    return wanted or now_s >= renewal.due_s(validity, connection)


class Renewer:
    """Looks after one device's certificate. All but the request itself runs on the loop.

    Args:
        loop: The supervisor's loop.
        identity: The identity in use.
        enrolment: Who this device is, and where to ask.
        now: The time rule, seconds.
        on_renewed: Called with the new identity, once its files lie in place of the old ones.
    """

    def __init__(
        self,
        loop: Loop,
        identity: DeviceIdentity,
        enrolment: Enrolment,
        now: Callable[[], float],
        on_renewed: Callable[[DeviceIdentity], None],
    ) -> None:
        self._loop, self._identity, self._enrolment, self._now = loop, identity, enrolment, now
        self._on_renewed = on_renewed
        self._issued_before_s: float | None = None
        self._asking = False
        self._tries = 0
        self._timer: Timer | None = None

    def look(self) -> None:
        """Renew the certificate if that is due, and look again later."""
        if self._asking:
            return
        if self._timer is not None:
            self._timer.cancel()
        validity = certificates.validity(self._identity.certificate_pem)
        if not is_due(validity, self._enrolment.connection, self._now(), self._issued_before_s):
            self._timer = self._loop.after(LOOK_EVERY_S, self.look)
            return
        self._asking = True
        threading.Thread(target=self._work, name="renew", daemon=True).start()

    def want(self, issued_before_s: float | None) -> None:
        """Take up an operator's wish; see `Desired.renew_issued_before_s`."""
        if issued_before_s is not None and issued_before_s != self._issued_before_s:
            self._issued_before_s = issued_before_s
            self.look()

    def _work(self) -> None:
        outcome: DeviceIdentity | EdgeopsError
        try:
            outcome = self._renewed()
        except EdgeopsError as error:
            outcome = error
        self._loop.post(lambda: self._done(outcome))

    def _renewed(self) -> DeviceIdentity:
        """Ask for a certificate of the next key, and install it.

        Raises:
            EdgeopsError: What the server answered, or E-NET-UNREACHABLE; E-TRUST-SIGNATURE or E-TRUST-KEY; what it
                gave is not a certificate of this fleet for this device and key; E-DISK-FULL or E-DISK-WRITE. The
                certificate in use stays.
        """
        following = self._identity.next_key()
        ca_pem = self._identity.tls_files().ca.read_bytes()
        http = HttpClient(context_for(ca_pem), backoff=quick_backoff_s)
        try:
            certificate = self._answer(http, following, self._identity.signer)
        except EdgeopsError as error:
            if error.code != "E-TRUST-SIGNATURE":
                raise
            # After an answer that was lost long ago only the next key still speaks for this device.
            certificate = self._answer(http, following, following.signer)
        if certificates.common_name(certificate) != self._enrolment.connection:
            raise EdgeopsError("E-ENROLL", f"the new certificate is not for {self._enrolment.connection}")
        following.install(certificate, ca_pem)
        return DeviceIdentity.load(self._identity.directory)

    def _answer(self, http: HttpClient, following: DeviceIdentity, signer: Signer) -> bytes:
        """Return the certificate (PEM) that the server gives for the next key on the word of one that it knows."""
        connection = self._enrolment.connection
        message = renewal.sign(self._enrolment.fleet, connection, following.csr_pem(connection), signer)
        url = f"{self._enrolment.server.rstrip('/')}/bootstrap/renew"
        status, body = http.post_json(url, message, max_bytes=MAX_ANSWER_BYTES)
        if status != 200:
            raise problem_of(status, body, "renew this device's certificate")
        return decode(body, RenewalAnswer, what="the server's renewal answer").certificate_pem.encode()

    def _done(self, outcome: DeviceIdentity | EdgeopsError) -> None:
        self._asking = False
        if isinstance(outcome, EdgeopsError):
            wait_s = max(1.0, backoff_s(self._tries, first_s=RETRY_FIRST_S, max_s=RETRY_MAX_S))
            self._tries += 1
            log.warning("the certificate is not renewed, next try in %.0f s: %s", wait_s, outcome)
            self._timer = self._loop.after(wait_s, self.look)
            return
        self._tries, self._identity = 0, outcome
        end_s = certificates.validity(outcome.certificate_pem).not_after_s
        log.info("the certificate is renewed; it holds for %.0f days", (end_s - self._now()) / 86400)
        self._on_renewed(outcome)
        self._timer = self._loop.after(LOOK_EVERY_S, self.look)
