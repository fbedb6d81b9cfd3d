"""A small typed client of the control plane's REST API, for the command line and for users' programs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from edgeops.client import resources, rollout_resources
from edgeops.client.session import PAGE, Session
from edgeops.contracts.enrolment import EnrolRequest, EnrolResponse, OfflineAnswer
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.measurement import Candidate
from edgeops.contracts.release import Release
from edgeops.contracts.samples import Sample, unpack_samples
from edgeops.contracts.wire import Wire, decode


class _Serving(Wire, frozen=True, kw_only=True):
    api: str


class Api:
    """One control plane. Safe for use by many threads.

    A lost connection and status 503 are tried again. A change has an idempotency key, so that it is made once.

    Args:
        base_url: `https://host:port`.
        token: Bearer token.
        ca_file: PEM file of the fleet's CA: no other is trusted.
        sleep: Waits so many seconds before a further try.

    Raises:
        EdgeopsError: E-CONFIG; the URL is no HTTPS URL, or the CA file cannot be read.
    """

    def __init__(
        self, base_url: str, token: str, ca_file: Path, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._session = Session(base_url, token, ca_file, sleep=sleep)

    @classmethod
    def from_home(cls, home: Path) -> Api:
        """Return the client of the control plane that serves a fleet's home on this machine.

        Raises:
            EdgeopsError: E-CONFIG; nothing was served from there yet, or its token cannot be read.
        """
        try:
            serving = decode((home / "serve.json").read_bytes(), _Serving, what=str(home / "serve.json"))
            token = (home / "api.token").read_text(encoding="utf-8").strip()
        except OSError as error:
            raise EdgeopsError(
                "E-CONFIG", f"{error.filename}: {error.strerror}", f"Run `edgeops serve --home {home}`."
            ) from error
        return cls(serving.api, token, home / "ca" / "ca.pem")

    def health(self) -> resources.HealthInfo:
        """Return whether the control plane works."""
        return self._session.call("GET", "/api/v1/health", resources.HealthInfo)

    def create_token(
        self,
        *,
        profile: str | None = None,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        valid_s: float | None = None,
        kind: str = "device",
    ) -> resources.TokenCreated:
        """Make a one-time token with which one device can join, or the rig of that name; narrowed to what is given."""
        wish: dict[str, Any] = {"profile": profile, "name": name, "labels": dict(labels or {}), "kind": kind}
        if valid_s is not None:
            wish["valid_s"] = valid_s
        return self._session.call("POST", "/api/v1/enrolment-tokens", resources.TokenCreated, wish)

    def tokens(self) -> list[resources.Token]:
        """Return the tokens that were made, newest first."""
        found = self._session.pages("/api/v1/enrolment-tokens", list[resources.Token])
        return sorted(found, key=lambda token: -token.created_at_s)

    def devices(self, where: str = "") -> Iterator[resources.DeviceInfo]:
        """Yield all devices by name, or those that a query finds.

        Raises:
            EdgeopsError: E-QUERY; the query cannot be read.
        """
        yield from self._session.pages("/api/v1/devices", list[resources.DeviceInfo], {"where": where})

    def device_page(self, after: str = "", limit: int = PAGE) -> list[resources.DeviceInfo]:
        """Return some devices by name, after a name."""
        return self._session.items(
            "/api/v1/devices", list[resources.DeviceInfo], {"limit": str(limit), "after": after}
        )[0]

    def device(self, connection: str) -> resources.DeviceDetail:
        """Return one device in full.

        Raises:
            EdgeopsError: E-DEVICE-UNKNOWN.
        """
        return self._session.call("GET", f"/api/v1/devices/{_part(connection)}", resources.DeviceDetail)

    def label_device(self, name: str, labels: Mapping[str, str | None]) -> resources.DeviceDetail:
        """Set labels of a device or of a unit behind it (`gateway/unit`); None: the label goes.

        Raises:
            EdgeopsError: E-DEVICE-UNKNOWN. E-NAME or E-CONFIG; a label is not acceptable.
        """
        connection, _, unit = name.partition("/")
        path = f"/api/v1/devices/{_part(connection)}" + (f"/units/{_part(unit)}" if unit else "")
        return self._session.call("PATCH", path, resources.DeviceDetail, {"labels": dict(labels)})

    def history(self, name: str, limit: int = 100) -> list[resources.PastInfo]:
        """Return what a device or a unit behind it was to run, newest first, at most 500.

        Raises:
            EdgeopsError: E-DEVICE-UNKNOWN.
        """
        connection, _, unit = name.partition("/")
        query = {"unit": unit or "self", "limit": str(limit)}
        return self._session.items(f"/api/v1/devices/{_part(connection)}/history", list[resources.PastInfo], query)[0]

    def telemetry(
        self, model: str, *, devices: Sequence[str] = (), by: str = "all", **narrowed: str | float | None
    ) -> list[resources.TelemetryInfo]:
        """Return what devices said of a model, merged exactly by release, profile and time.

        Args:
            model: The model.
            devices: Only these; empty: all.
            by: Spans to tell apart, `quarter`, `hour` or `day`; `all`: one sum.
            narrowed: `since_s` and `until_s` (Unix time; a day ago, now), `release`, `profile`, `group`, `where`.

        Raises:
            EdgeopsError: E-QUERY; the query cannot be read, or so many devices and so long a time are too much.
                E-GROUP or E-DEVICE-UNKNOWN.
        """
        query: dict[str, str | Sequence[str]] = {"by": by}
        query |= {name: str(value) for name, value in narrowed.items() if value not in (None, "")}
        if devices:
            query["device"] = list(devices)
        path = f"/api/v1/telemetry/{_part(model)}"
        return self._session.items(path, list[resources.TelemetryInfo], query)[0]

    def revoke_device(self, connection: str) -> resources.DeviceDetail:
        """Shut a device out, at once and for good.

        Raises:
            EdgeopsError: E-DEVICE-UNKNOWN. E-BROKER; it is revoked, but its live session could not be ended.
        """
        return self._session.call("POST", f"/api/v1/devices/{_part(connection)}/revoke", resources.DeviceDetail)

    def enroll(self, request: EnrolRequest) -> OfflineAnswer:
        """Let a device in that has no network: its request in, what it needs out.

        Raises:
            EdgeopsError: E-TOKEN; the token of the request is unknown, used or expired. E-ENROLL; it does not allow
                this.
        """
        response = self._session.call("POST", "/bootstrap/enrol", EnrolResponse, msgspec.to_builtins(request))
        return OfflineAnswer(response=response, root_json=self._session.send("GET", "/bootstrap/root.json").decode())

    def renew_device(self, connection: str) -> resources.DeviceDetail:
        """Have a device renew its certificate as soon as it hears of it.

        Raises:
            EdgeopsError: E-DEVICE-UNKNOWN; no such device, or revoked.
        """
        return self._session.call("POST", f"/api/v1/devices/{_part(connection)}/renew", resources.DeviceDetail)

    def ask_for_samples(self, connection: str, model: str, **bounds: float) -> resources.SamplesInfo:
        """Ask a device for raw inputs of a model.

        Args:
            connection: The device.
            model: The model.
            bounds: `count`, `max_bytes`, `within_s`, `share` and `valid_s`, as `contracts.samples.SamplesWish`.

        Raises:
            EdgeopsError: E-DEVICE-UNKNOWN. E-AGENT-FEATURE; its agent does not know how. E-COMMAND; impossible bounds,
                or it has too much to answer. E-API-ROLE; only operators may.
        """
        path = f"/api/v1/devices/{_part(connection)}/samples"
        return self._session.call("POST", path, resources.SamplesInfo, {"model": model, **bounds})

    def samples(self, connection: str) -> list[resources.SamplesInfo]:
        """Return what a device was asked for, newest first.

        Raises:
            EdgeopsError: E-DEVICE-UNKNOWN or E-API-ROLE.
        """
        return self._session.items(f"/api/v1/devices/{_part(connection)}/samples", list[resources.SamplesInfo])[0]

    def samples_state(self, connection: str, id: str) -> resources.SamplesInfo:
        """Return how far a device is with a wish for raw inputs.

        Raises:
            EdgeopsError: E-COMMAND-UNKNOWN or E-API-ROLE.
        """
        path = f"/api/v1/devices/{_part(connection)}/samples/{_part(id)}"
        return self._session.call("GET", path, resources.SamplesInfo)

    def fetch_samples(self, connection: str, id: str) -> list[Sample]:
        """Return the raw inputs that a device gave; that is noted in the audit log.

        Raises:
            EdgeopsError: E-COMMAND-UNKNOWN; no such command, or it has no answer yet. E-API-ROLE.
        """
        path = f"/api/v1/devices/{_part(connection)}/samples/{_part(id)}/data"
        return list(unpack_samples(self._session.send("GET", path)))

    def measure(
        self, connection: str, bundles: Sequence[Candidate], *, threads: int = 0, runs: int = 100, valid_s: float = 3600
    ) -> resources.MeasurementInfo:
        """Have a device measure published candidates; `measurement` tells its answer.

        Args:
            connection: The device.
            bundles: What `releases.candidates.offer` published.
            threads: Inference threads; 0: as many as the device's profile serves with.
            runs: Timed inferences of each.
            valid_s: Nothing is begun after so many seconds.

        Raises:
            EdgeopsError: E-DEVICE-UNKNOWN. E-AGENT-FEATURE; its agent measures nothing. E-COMMAND; too many are open.
        """
        wish = {"bundles": msgspec.to_builtins(list(bundles)), "threads": threads, "runs": runs, "valid_s": valid_s}
        return self._session.call(
            "POST", f"/api/v1/devices/{_part(connection)}/measurements", resources.MeasurementInfo, wish
        )

    def measurement(self, connection: str, id: str) -> resources.MeasurementInfo:
        """Return what a device was asked, and its answer once it is there.

        Raises:
            EdgeopsError: E-DEVICE-UNKNOWN. E-COMMAND-UNKNOWN; it was not asked for this.
        """
        path = f"/api/v1/devices/{_part(connection)}/measurements/{_part(id)}"
        return self._session.call("GET", path, resources.MeasurementInfo)

    def measurements(self, connection: str) -> list[resources.MeasurementInfo]:
        """Return what a device was asked to measure, newest first.

        Raises:
            EdgeopsError: E-DEVICE-UNKNOWN.
        """
        path = f"/api/v1/devices/{_part(connection)}/measurements"
        return self._session.items(path, list[resources.MeasurementInfo])[0]

    def releases(self) -> list[Release]:
        """Return the published releases."""
        return self._session.items("/api/v1/releases", list[Release])[0]

    def create_rollout(self, wish: rollout_resources.RolloutWish) -> rollout_resources.RolloutInfo:
        """Create a rollout.

        Raises:
            EdgeopsError: E-RELEASE-UNKNOWN, E-DEVICE-UNKNOWN, E-QUERY, E-GROUP, or E-ROLLOUT-INVALID: impossible gates
                or groups.
        """
        return self._session.call("POST", "/api/v1/rollouts", rollout_resources.RolloutInfo, msgspec.to_builtins(wish))

    def plan_rollout(self, wish: rollout_resources.RolloutWish) -> rollout_resources.RolloutPlan:
        """Return what a rollout would do; nothing is created.

        Raises:
            EdgeopsError: What creating it would raise.
        """
        return self._session.call(
            "POST", "/api/v1/rollouts/plan", rollout_resources.RolloutPlan, msgspec.to_builtins(wish)
        )

    def rollouts(self, before: int = 1 << 53, limit: int = 100) -> list[rollout_resources.RolloutInfo]:
        """Return the newest rollouts before a number, at most 500."""
        query = {"before": str(before), "limit": str(limit)}
        return self._session.items("/api/v1/rollouts", list[rollout_resources.RolloutInfo], query)[0]

    def rollout(self, rollout_id: int) -> rollout_resources.RolloutInfo:
        """Return one rollout.

        Raises:
            EdgeopsError: E-ROLLOUT-UNKNOWN.
        """
        return self._session.call("GET", f"/api/v1/rollouts/{rollout_id}", rollout_resources.RolloutInfo)

    def members(self, rollout_id: int) -> Iterator[rollout_resources.MemberInfo]:
        """Yield the devices of a rollout by name.

        Raises:
            EdgeopsError: E-ROLLOUT-UNKNOWN.
        """
        yield from self._session.pages(f"/api/v1/rollouts/{rollout_id}/members", list[rollout_resources.MemberInfo])

    def rollout_rigs(self, rollout_id: int) -> list[rollout_resources.RigRunInfo]:
        """Return what the rigs of a rollout were asked and answered, in order.

        Raises:
            EdgeopsError: E-ROLLOUT-UNKNOWN.
        """
        return self._session.items(f"/api/v1/rollouts/{rollout_id}/rigs", list[rollout_resources.RigRunInfo])[0]

    def rigs(self) -> list[resources.RigInfo]:
        """Return the rigs by name."""
        return self._session.items("/api/v1/rigs", list[resources.RigInfo])[0]

    def approve_rollout(self, rollout_id: int) -> rollout_resources.RolloutInfo:
        """Say as a second person that a draft may start.

        Raises:
            EdgeopsError: E-ROLLOUT-UNKNOWN, E-ROLLOUT-STATE, or E-ROLLOUT-APPROVAL: you made it yourself.
        """
        return self._act(rollout_id, "approve")

    def start_rollout(self, rollout_id: int) -> rollout_resources.RolloutInfo:
        """Start a draft.

        Raises:
            EdgeopsError: E-ROLLOUT-UNKNOWN, E-ROLLOUT-STATE, or E-ROLLOUT-APPROVAL: nobody else has approved it.
        """
        return self._act(rollout_id, "start")

    def pause_rollout(self, rollout_id: int) -> rollout_resources.RolloutInfo:
        """Give the release to no further group until resumed.

        Raises:
            EdgeopsError: E-ROLLOUT-UNKNOWN or E-ROLLOUT-STATE.
        """
        return self._act(rollout_id, "pause")

    def resume_rollout(self, rollout_id: int) -> rollout_resources.RolloutInfo:
        """Let a paused rollout go on.

        Raises:
            EdgeopsError: E-ROLLOUT-UNKNOWN or E-ROLLOUT-STATE.
        """
        return self._act(rollout_id, "resume")

    def abort_rollout(self, rollout_id: int) -> rollout_resources.RolloutInfo:
        """End a rollout; who has the release keeps it.

        Raises:
            EdgeopsError: E-ROLLOUT-UNKNOWN or E-ROLLOUT-STATE.
        """
        return self._act(rollout_id, "abort")

    def override_holds(self, rollout_id: int) -> rollout_resources.RolloutInfo:
        """Have the devices of a rollout that are held wait no longer.

        Raises:
            EdgeopsError: E-ROLLOUT-UNKNOWN or E-ROLLOUT-STATE.
        """
        return self._act(rollout_id, "override-holds")

    def revert_rollout(self, rollout_id: int) -> rollout_resources.RolloutInfo:
        """End a rollout and give its devices back what they had before.

        Raises:
            EdgeopsError: E-ROLLOUT-UNKNOWN or E-ROLLOUT-STATE.
        """
        return self._act(rollout_id, "revert")

    def fleet(self) -> resources.FleetInfo:
        """Return the fleet at a glance."""
        return self._session.call("GET", "/api/v1/fleet", resources.FleetInfo)

    def freeze(self, reason: str = "") -> resources.FleetInfo:
        """Let no rollout start or go on until thawed."""
        return self._session.call("POST", "/api/v1/fleet/freeze", resources.FleetInfo, {"reason": reason})

    def thaw(self) -> resources.FleetInfo:
        """Let rollouts go on."""
        return self._session.call("POST", "/api/v1/fleet/thaw", resources.FleetInfo)

    def create_group(self, name: str, *, query: str = "", devices: Sequence[str] = ()) -> resources.DeviceGroup:
        """Make a device group, by a query or by names.

        Raises:
            EdgeopsError: E-GROUP; the name is taken. E-QUERY; the query cannot be read. E-DEVICE-UNKNOWN.
        """
        wish = {"name": name, "query": query, "devices": list(devices)}
        return self._session.call("POST", "/api/v1/groups", resources.DeviceGroup, wish)

    def groups(self) -> list[resources.DeviceGroup]:
        """Return the device groups, with who is in each now."""
        return list(self._session.pages("/api/v1/groups", list[resources.DeviceGroup]))

    def group(self, name: str) -> resources.DeviceGroup:
        """Return one device group.

        Raises:
            EdgeopsError: E-GROUP.
        """
        return self._session.call("GET", f"/api/v1/groups/{_part(name)}", resources.DeviceGroup)

    def remove_group(self, name: str) -> None:
        """Remove a device group.

        Raises:
            EdgeopsError: E-GROUP.
        """
        self._session.call("DELETE", f"/api/v1/groups/{_part(name)}", resources.DeviceGroups)

    def create_api_token(self, name: str, role: str, *, valid_s: float) -> resources.ApiTokenCreated:
        """Make an API token.

        Raises:
            EdgeopsError: E-NAME; the name is taken. E-API-ROLE; only admins may.
        """
        wish = {"name": name, "role": role, "valid_s": valid_s}
        return self._session.call("POST", "/api/v1/api-tokens", resources.ApiTokenCreated, wish)

    def api_tokens(self) -> list[resources.ApiTokenInfo]:
        """Return the API tokens by name."""
        return list(self._session.pages("/api/v1/api-tokens", list[resources.ApiTokenInfo]))

    def revoke_api_token(self, name: str) -> None:
        """End an API token at once.

        Raises:
            EdgeopsError: E-NAME; there is none of this name.
        """
        self._session.call("DELETE", f"/api/v1/api-tokens/{_part(name)}", resources.ApiTokens)

    def audit(self, limit: int = 100) -> list[resources.AuditInfo]:
        """Return the newest lines of the audit log, at most 500."""
        return self._session.items("/api/v1/fleet/audit", list[resources.AuditInfo], {"limit": str(limit)})[0]

    def _act(self, rollout_id: int, action: str) -> rollout_resources.RolloutInfo:
        return self._session.call("POST", f"/api/v1/rollouts/{rollout_id}/{action}", rollout_resources.RolloutInfo)


def _part(name: str) -> str:
    return quote(name, safe="")
