"""Bundle: a model compiled for one profile, or a version of the agent. Its digest covers what the manifest says."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from edgeops.contracts.handover import ResultStep, Step
from edgeops.contracts.profile import Budgets, Precision
from edgeops.contracts.tensors import TensorSpec
from edgeops.contracts.wire import Wire, encode

MANIFEST_NAME = "manifest.json"
BUNDLE_SCHEMA = 1


class FileEntry(Wire, frozen=True, kw_only=True):
    """A file of the bundle: lower-case hex SHA-256 and length in bytes."""

    sha256: str
    length: int


class Binding(Wire, frozen=True, kw_only=True):
    """How one device tensor maps to the artifact's own: the layout adapter.

    Args:
        device: Name that clients use.
        artifact: The artifact's own tensor: name, dtype, shape.
        transpose: Axes to apply from the device's order to the artifact's (inputs), or from the artifact's to the
            device's (outputs); None: none. A reshape to the target's shape follows.
        scale: With `zero_point`: the artifact's tensor is quantized; real = (q - zero_point) * scale.
        zero_point: See `scale`.
        bound: What is bound in the place of the device's tensor: an input after `agent_steps`, an output before
            `agent_results`; None: there are none.
    """

    device: str
    artifact: TensorSpec
    transpose: tuple[int, ...] | None = None
    scale: float | None = None
    zero_point: int | None = None
    bound: TensorSpec | None = None


class OutputTolerance(Wire, frozen=True, kw_only=True):
    """How far an output may be from its golden vector.

    Args:
        artifact_max_abs: Largest absolute difference from this artifact's own output on the compile host.
        source_min_cosine: Smallest mean cosine similarity to the float source's output.
        reason: Where `artifact_max_abs` comes from.
    """

    artifact_max_abs: float
    source_min_cosine: float
    reason: str


class Golden(Wire, frozen=True, kw_only=True):
    """Golden vectors: .npy files, vectors along the first axis. Maps go from tensor name to file of the bundle."""

    count: int
    inputs: dict[str, str]
    source_outputs: dict[str, str]
    artifact_outputs: dict[str, str]
    tolerances: dict[str, OutputTolerance]


class Histogram(Wire, frozen=True, kw_only=True):
    """Counts per bin: `len(edges) + 1` counts, the first below the first edge, the last from the last edge on."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class DriftLevel(Wire, frozen=True, kw_only=True):
    """Limits of drift for windows of so many requests, or more: name of a tensor → limit; see `contracts.drift`."""

    requests: int
    psi: dict[str, float]
    js: dict[str, float]


class DriftCalibration(Wire, frozen=True, kw_only=True):
    """Limits of drift, found by resampling the evaluation data.

    Args:
        false_alarm: Which share of windows without any drift goes beyond a limit of any tensor.
        resamples: How many windows were drawn for each level.
        levels: By number of requests.
    """

    false_alarm: float
    resamples: int
    levels: tuple[DriftLevel, ...]


class DriftReference(Wire, frozen=True, kw_only=True):
    """What inputs, outputs and confidence looked like at compile time, over `samples` samples.

    Args:
        samples: How many.
        elements_per_sample: Of a larger tensor only so many elements are counted, always the same ones.
        inputs: Input → counts.
        outputs: Output → counts.
        confidence: Of the first output with classes.
        class_mix: The same output: how often each class was the largest.
        request_share: Which share of the requests a device counts, drawn at random, in (0, 1].
        calibration: Limits; None: they were not found.
    """

    samples: int
    elements_per_sample: int
    inputs: dict[str, Histogram]
    outputs: dict[str, Histogram]
    confidence: Histogram | None = None
    class_mix: tuple[int, ...] = ()
    request_share: float = 1.0
    calibration: DriftCalibration | None = None


class OutputInfo(Wire, frozen=True, kw_only=True):
    """An output as clients see it, with its labels, kind, and for state the input that it feeds."""

    tensor: TensorSpec
    kind: str
    labels: tuple[str, ...] = ()
    state_to: str | None = None


class BundleManifest(Wire, frozen=True, kw_only=True):
    """Everything that a device needs to know of a bundle; the digest is the SHA-256 of its canonical bytes.

    Args:
        model: The model's name.
        profile: The profile that it was compiled for.
        arch: Processor architecture of the profile.
        runtime: Backend that runs it.
        runtime_min: Oldest runtime version that reads the artifact.
        providers: Execution providers in order of preference (onnxruntime).
        options: Runtime settings (precision hint, threads).
        precision: Number format that compile chose.
        scheme: The candidate's name: how that precision was reached.
        artifact: File of the bundle that the runtime opens.
        inputs: As clients see them.
        outputs: As clients see them.
        input_bindings: One per input.
        output_bindings: One per output.
        preprocessing: Steps baked into the artifact, per input, for the reader.
        postprocessing: The same of outputs.
        agent_steps: Steps per input that whoever runs the bundle does before the artifact: it cannot hold them.
        agent_results: The same of outputs, after the artifact.
        golden: Golden vectors.
        budgets: Limits that the self-test on the device holds.
        drift: Drift reference.
        nan_policy: What to do when an output is not finite.
        files: Every file beside the manifest.
    """

    model: str
    profile: str
    arch: str
    runtime: str
    runtime_min: str
    precision: Precision
    scheme: str
    artifact: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[OutputInfo, ...]
    input_bindings: tuple[Binding, ...]
    output_bindings: tuple[Binding, ...]
    golden: Golden
    files: dict[str, FileEntry]
    providers: tuple[str, ...] = ()
    options: dict[str, str] = {}
    preprocessing: dict[str, tuple[Step, ...]] = {}
    postprocessing: dict[str, tuple[ResultStep, ...]] = {}
    agent_steps: dict[str, tuple[Step, ...]] = {}
    agent_results: dict[str, tuple[ResultStep, ...]] = {}
    budgets: Budgets = Budgets()
    drift: DriftReference | None = None
    nan_policy: Literal["pass", "flag", "fail"] = "fail"
    schema_version: int = msgspec.field(default=BUNDLE_SCHEMA, name="schema")

    @property
    def states(self) -> dict[str, str]:
        """Output → the input of the next call that takes its value."""
        return {info.tensor.name: info.state_to for info in self.outputs if info.state_to is not None}

    def digest(self) -> str:
        """Return the bundle's digest: `sha256:` and the hex SHA-256 of the manifest's canonical bytes."""
        return "sha256:" + hashlib.sha256(encode(self)).hexdigest()


class AgentManifest(Wire, frozen=True, kw_only=True):
    """What a version of the agent consists of: wheels, which go before what is installed on the device.

    Args:
        agent: The version.
        profile: The profile that its wheels are for.
        files: The wheels.
    """

    agent: str
    profile: str
    files: dict[str, FileEntry]
    schema_version: int = msgspec.field(default=BUNDLE_SCHEMA, name="schema")

    def digest(self) -> str:
        """Return the bundle's digest, as `BundleManifest.digest`."""
        return "sha256:" + hashlib.sha256(encode(self)).hexdigest()
