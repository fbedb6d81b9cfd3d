"""The wire form is pinned: what today's edgeops writes is what an older or newer one must be able to read."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgeops.contracts.deployment import (
    Component,
    ComponentKind,
    ComponentReport,
    DeploymentState,
    Desired,
    Failure,
    Presence,
    Progress,
    Reported,
    SelfTestFigures,
    Shadowing,
    Slot,
)
from edgeops.contracts.enrolment import (
    BrokerAddress,
    EnrolmentToken,
    EnrolRequest,
    EnrolResponse,
    RenewalAnswer,
    RenewalMessage,
    RenewalRequest,
)
from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.evidence import (
    CandidateEvidence,
    Evidence,
    GateResult,
    Host,
    Latency,
    Metric,
    OutputError,
    Source,
)
from edgeops.contracts.examination import Confusion, Examination, HandedOver, Why, WorstSample
from edgeops.contracts.measurement import (
    BundleFigures,
    Candidate,
    MeasureAnswer,
    MeasureCommand,
    Measured,
    Measurements,
    candidate_path,
)
from edgeops.contracts.provenance import (
    BUILD_TYPE,
    BuildDefinition,
    Builder,
    Metadata,
    Provenance,
    Resource,
    RunDetails,
    Statement,
)
from edgeops.contracts.release import Release, ReleaseTarget, TargetCustom, target_path
from edgeops.contracts.rig_runs import (
    ROLLOUT_FEATURE,
    RigAnswer,
    RigBoard,
    RigBundle,
    RigCommand,
    RigDoing,
    RigReport,
)
from edgeops.contracts.rigs import BoardResult, CheckResult, RigResult, Verdict
from edgeops.contracts.samples import AnswerState, SamplesAnswer, SamplesCommand, SamplesWish
from edgeops.contracts.sketches import QuantileSketch
from edgeops.contracts.telemetry import DeviceWindow, LinkFigures, ModelWindow, ShadowFigures, Telemetry, TelemetryBatch
from edgeops.contracts.wire import Wire, decode, encode

FOLDER = Path(__file__).parent / "wire"
DIGEST = "sha256:" + "ab" * 32
T0 = 1_795_392_000.0

FAILURE = Failure(code="E-SELFTEST-GOLDEN", what="output 'p': 0.3 > 0.01", release="1.2.0", at_s=T0)
SLOT = Slot(release="1.1.0", digest=DIGEST, number=2)
FIGURES = SelfTestFigures(
    vectors=12, worst_output="p", max_abs_diff=0.001, min_cosine=0.999, load_ms=12.5,
    latency=Latency(p50_ms=1.5, p95_ms=2.0, runs=50), peak_memory_mib=60.0, provider="CPUExecutionProvider",
)  # fmt: skip
ERROR = OutputError(output="p", cosine=0.999, sqnr_db=30.0, max_abs=0.1, agreement=0.9, samples=10)
METRIC = Metric(
    name="accuracy", source=0.95, artifact=0.9, drop=0.05, drop_low=0.0, drop_high=0.1, confidence=0.95, samples=10,
    source_interval=(0.9, 1.0), artifact_interval=(0.8, 0.95),
)  # fmt: skip
CONFUSION = Confusion(support=(6, 4), decided=(7, 3), right=(6, 3), pairs=((1, 0, 1),), left_out=0)
WORST = WorstSample(
    index=3, why=Why.CHANGED, truth=1.0, source=1.0, artifact=0.0, confidence=0.7, wrong=1, input="image",
    picture=b"\x89PNG", trace=((0.0, 1.0),),
)  # fmt: skip
EVIDENCE = Evidence(
    bundle=DIGEST, model="m", profile="p",
    host=Host(arch="x86_64", cpu="c", cores=2, python="3.11", tools={"onnx": "1"}),
    candidates=(
        CandidateEvidence(
            scheme="int8", runtime="litert", precision="int8", size_bytes=10, conversion=(ERROR,), metric=METRIC,
            latency=Latency(p50_ms=1.5, p95_ms=2.0, runs=50), passed=True, chosen=True, pareto=True, reason="first",
            gates=(GateResult(gate="cosine:p", measured=0.999, limit=0.99, passed=True, binding=True),),
            source=Source.MEASURED_DEVICE, measured_on="pi-1",
        ),
    ),
    calibration_samples=4, evaluation_samples=10, created_at_s=T0, arch="aarch64",
    handed_over=HandedOver(
        digest=DIGEST, file="model.onnx", description="d", files={"model.onnx": "cd" * 32}, opsets={"ai.onnx": 17},
        operators={"Add": 2}, weights_bytes=8,
    ),
    examination=Examination(
        output="p", kind="probabilities", metric="accuracy", data="evaluation", samples=10, decisions=1,
        source=CONFUSION, artifact=CONFUSION, worst=(WORST,),
    ),
)  # fmt: skip
ONE_OF_EACH: dict[str, Wire] = {
    "evidence": EVIDENCE,
    "provenance": Statement(
        subject=(Resource(name="m/1.0.0/p.edgeops", digest={"sha256": "cd" * 32}),),
        predicate=Provenance(
            build_definition=BuildDefinition(
                build_type=BUILD_TYPE, external_parameters={"model": "m"}, internal_parameters={"hosts": {}},
                resolved_dependencies=(Resource(uri="file:model.onnx", digest={"sha256": "ab" * 32}),),
            ),
            run_details=RunDetails(
                builder=Builder(id="urn:edgeops:fleet:demo", version={"edgeops": "0.1.0"}),
                metadata=Metadata(invocation_id="https://ci.example/1", finished_on="2026-11-27T00:00:00Z"),
            ),
        ),
    ),
    "desired": Desired(
        fleet="demo", connection="pi-1", unit="self", generation=7, issued_at_s=T0, expires_at_s=T0 + 3600,
        components=(
            Component(
                name="m", kind=ComponentKind.MODEL, release="1.1.0", target="m/1.1.0/p.edgeops", digest=DIGEST,
                shadow=Shadowing(share=0.1, cpu=0.25),
            ),
        ),
    ),
    "reported": Reported(
        fleet="demo", connection="pi-1", unit="self", boot_id="b1", seq=3, at_s=T0, agent_version="0.1.0",
        profile="raspberry-pi-4", observed_generation=7, capabilities={"litert": "2.3.0"},
        attributes={"arch": "aarch64"},
        components=(
            ComponentReport(
                name="m", kind=ComponentKind.MODEL, state=DeploymentState.FAILED, generation=7, active=SLOT,
                fallback=SLOT, failure=FAILURE, self_test=FIGURES, endpoint="http://127.0.0.1:8080",
            ),
        ),
    ),
    "progress": Progress(
        fleet="demo", connection="pi-1", unit="self", boot_id="b1", seq=4, at_s=T0, component="m", generation=7, step=2,
        state=DeploymentState.DOWNLOADING, release="1.1.0", percent=50.0,
    ),
    "presence": Presence(online=False, boot_id="b1"),
    "telemetry": Telemetry(
        fleet="demo", connection="pi-1", unit="self", boot_id="b1", seq=5, start_s=T0, end_s=T0 + 900,
        models=(
            ModelWindow(
                model="m", release="1.1.0", digest=DIGEST, latency_ms=QuantileSketch.of([1.0, 2.0, 0.0]), requests=3,
                sampled=2, errors={"E-RUNTIME-RUN": 1}, inputs={"image": (1, 2)}, outputs={"p": (0, 3)},
                class_mix=(1, 2),
                shadow=ShadowFigures(
                    compared=2, agreed=1, skipped=3, distance=QuantileSketch.of([0.5]), errors={"E-RUNTIME-RUN": 1}
                ),
            ),
        ),
        device=DeviceWindow(
            uptime_s=100.0, boot_s=200.0, cpu_share=0.25, temperature_c=51.5, zones_c={"cpu-thermal": 51.5},
            throttled=("under-voltage",), link=LinkFigures(interface="wlan0", signal_dbm=-61.0, connects=2),
        ),
    ),
    "telemetry-batch": TelemetryBatch(
        fleet="demo", connection="pi-1", unit="self",
        windows=(
            Telemetry(
                fleet="demo", connection="pi-1", unit="self", boot_id="b1", seq=6, start_s=T0, end_s=T0 + 9, models=(),
            ),
        ),
    ),
    "samples-command": SamplesCommand(
        fleet="demo", connection="pi-1", unit="self", id="0a1b", issued_at_s=T0, expires_at_s=T0 + 600,
        wish=SamplesWish(model="m", count=16, max_bytes=1 << 20, within_s=60.0, share=0.5),
    ),
    "samples-answer": SamplesAnswer(
        fleet="demo", connection="pi-1", unit="self", id="0a1b", state=AnswerState.DONE, at_s=T0, what="2 requests",
        offset=0, total=3, sha256="ef" * 32, data=b"\x00\x01\x02",
    ),
    "release": Release(
        model="m", version="1.1.0", number=2, created_at_s=T0,
        targets=(
            ReleaseTarget(profile="p", digest=DIGEST, path=target_path("m", "1.1.0", "p"), length=10, sha256="cd" * 32),
        ),
    ),
    "target-custom": TargetCustom(model="m", version="1.1.0", number=2, profile="p", digest=DIGEST),
    "enrol-request": EnrolRequest(secret="s", csr_pem="PEM", profile="raspberry-pi-4", name="pi-1"),
    "enrol-response": EnrolResponse(
        fleet="demo", connection="pi-1", certificate_pem="PEM", ca_pem="PEM",
        broker=BrokerAddress(host="127.0.0.1", port=8883, tls=True), artifacts_url="https://127.0.0.1:8444",
        profile="raspberry-pi-4",
    ),
    "renewal-message": RenewalMessage(connection="pi-1", envelope="{}"),
    "renewal-request": RenewalRequest(fleet="demo", connection="pi-1", csr_pem="PEM"),
    "renewal-answer": RenewalAnswer(certificate_pem="PEM"),
    "rig-command": RigCommand(
        fleet="demo", connection="bench", unit="self", id="c1", issued_at_s=T0, expires_at_s=T0 + 3600, rollout=7,
        attempt=1, model="m", version="1.1.0",
        bundles=(RigBundle(profile="cortex-m4", target="m/1.1.0/cortex-m4.edgeops", digest=DIGEST),),
    ),
    "rig-answer": RigAnswer(
        fleet="demo", connection="bench", unit="self", id="c1", statement="{}", code="E-TRUST-TARGET", what="gone"
    ),
    "rig-report": RigReport(
        fleet="demo", connection="bench", unit="self", boot_id="b1", seq=3, at_s=T0, version="0.1.0",
        boards=(RigBoard(name="m4", kind="qemu-cortex-m", profile="cortex-m4"),), features=(ROLLOUT_FEATURE,),
        doing=RigDoing(id="c1", said="m4: update"),
    ),
    "rig-result": RigResult(
        rig="bench", run="r1", at_s=T0, duration_s=12.5, edgeops="0.1.0", host="h", fleet="demo", command="c1",
        boards=(
            BoardResult(
                board="m4", kind="qemu-cortex-m", profile="cortex-m4", model="m", release="1.1.0", digest=DIGEST,
                cut="its supply", timing=True, console="…",
                checks=(
                    CheckResult(
                        check="golden", verdict=Verdict.FAILED, said="they differ", code="E-SELFTEST-GOLDEN",
                        figures={"vectors": 12}, duration_s=0.5,
                    ),
                ),
            ),
        ),
    ),
    "measure-command": MeasureCommand(
        fleet="demo", connection="pi-1", unit="self", id="c1", issued_at_s=T0, expires_at_s=T0 + 3600,
        bundles=(Candidate(target=candidate_path("m", DIGEST), digest=DIGEST),), threads=4, runs=100,
    ),
    "measure-answer": MeasureAnswer(
        fleet="demo", connection="pi-1", unit="self", id="c1",
        measurements=Measurements(
            source=Source.MEASURED_DEVICE, device="pi-1", arch="aarch64", processor="Cortex-A72", threads=4, at_s=T0,
            power_mode="MAXN", clocks="performance, 1500 of at most 1500 MHz",
            bundles=(
                BundleFigures(
                    digest=DIGEST, artifact_sha256="cd" * 32, model="m", profile="p", scheme="litert-int8",
                    runtime="litert", runtime_version="2.3.0",
                    measured=Measured(
                        load_ms=12.5, latency=Latency(p50_ms=1.5, p95_ms=2.0, runs=100), peak_memory_mib=60.0,
                        provider="XNNPACK", golden_vectors=16, source_min_cosine=0.999, own_max_abs=0.01,
                    ),
                ),
                BundleFigures(
                    digest=DIGEST, artifact_sha256="ef" * 32, model="m", profile="p", scheme="litert-fp32",
                    runtime="litert", failure="E-RUNTIME-RUN: out of memory",
                ),
            ),
        ),
    ),
    "token": EnrolmentToken(
        server="https://127.0.0.1:8443", fleet="demo", ca_sha256="ab" * 32, root_sha256="cd" * 32, secret="s"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(ONE_OF_EACH))
def test_wire_form_is_the_recorded_one(name: str):
    """Byte for byte. A new optional field changes the file; a renamed or removed one breaks devices in the field."""
    assert encode(ONE_OF_EACH[name]).decode() == (FOLDER / f"{name}.json").read_text().strip()


@pytest.mark.parametrize("name", sorted(ONE_OF_EACH))
def test_recorded_message_is_read_back_whole(name: str):
    assert decode((FOLDER / f"{name}.json").read_bytes(), type(ONE_OF_EACH[name]), what=name) == ONE_OF_EACH[name]


@pytest.mark.parametrize("name", sorted(ONE_OF_EACH))
def test_newer_writers_unknown_field_is_ignored(name: str):
    newer = msgspec.json.decode((FOLDER / f"{name}.json").read_bytes()) | {"from_the_future": {"x": [1]}}
    assert decode(msgspec.json.encode(newer), type(ONE_OF_EACH[name]), what=name) == ONE_OF_EACH[name]


def test_evidence_of_before_the_report_is_still_read():
    """What was signed then is shown now; what it did not hold is absent."""
    old = decode((FOLDER / "evidence-before-reports.json").read_bytes(), Evidence, what="evidence")
    assert (old.candidates[0].passed, old.handed_over, old.examination, old.arch) == (True, None, None, "")
    metric = old.candidates[0].metric
    assert metric is not None
    assert (metric.artifact, metric.artifact_interval) == (0.9, None)


def test_newer_writers_unknown_enum_value_is_read_as_unknown():
    text = (FOLDER / "reported.json").read_text().replace('"failed"', '"levitating"').replace('"model"', '"poem"', 1)
    component = decode(text, Reported, what="reported").components[0]
    assert (component.state, component.kind) == (DeploymentState.UNKNOWN, ComponentKind.UNKNOWN)


@pytest.mark.parametrize("bad", [b"", b"{}", b"[]", b'{"fleet": 3}', b"\xff", b"[" * 5000])
def test_malformed_message_is_refused_with_its_code(bad: bytes):
    with pytest.raises(EdgeopsError) as caught:
        decode(bad, Desired, what="desired")
    assert caught.value.code == "E-WIRE-MALFORMED"


def test_token_survives_its_text_form():
    token = ONE_OF_EACH["token"]
    assert isinstance(token, EnrolmentToken)
    assert EnrolmentToken.from_text(f" {token.to_text()}\n") == token


@pytest.mark.parametrize("bad", ["", "eo1.", "eo1.!!!", "eo2.e30", "eo1.e30", "eo1." + "A" * 5000])
def test_bad_token_is_refused_without_repeating_it(bad: str):
    with pytest.raises(EdgeopsError) as caught:
        EnrolmentToken.from_text(bad)
    assert caught.value.code == "E-TOKEN"
    assert "AAAA" not in str(caught.value)
