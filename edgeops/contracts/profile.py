"""Device profile: what one class of device can do. One TOML file each, every hardware figure with its source."""

from __future__ import annotations

import enum
from typing import Literal

from edgeops.contracts.wire import Declared


class Precision(str, enum.Enum):
    """Number formats of weights and activations, as a profile's runtime allows them."""

    FLOAT32 = "fp32"
    FLOAT16 = "fp16"
    WEIGHT_INT8 = "int8-weights"
    DYNAMIC_INT8 = "int8-dynamic"
    INT8 = "int8"
    INT16X8 = "int16x8"

    def __str__(self) -> str:
        return self.value


class Cpu(Declared, frozen=True, kw_only=True):
    """The processor. `isa`: instruction set extensions that matter to inference (neon, dotprod, avx512_vnni)."""

    model: str
    arch: Literal["x86_64", "aarch64", "armv7e-m", "armv7-m"]
    cores: int
    clock_mhz: int
    isa: tuple[str, ...] = ()
    source: str


class Memory(Declared, frozen=True, kw_only=True):
    """Main memory; for microcontrollers RAM and flash that a model may take."""

    ram_mib: float
    flash_kib: int | None = None
    arena_kib: int | None = None
    source: str


class Accelerator(Declared, frozen=True, kw_only=True):
    """A GPU, NPU or TPU of the board."""

    name: str
    kind: Literal["gpu", "npu", "tpu"]
    source: str


class Runtime(Declared, frozen=True, kw_only=True):
    """A runtime that the device class has.

    Args:
        name: A backend: onnxruntime, litert, openvino, mcu.
        runtime_min: Oldest version found in the field; artifacts stay within what it reads.
        onnx_ir_max: Newest ONNX IR version that `runtime_min` reads; onnxruntime only.
        onnx_opset_max: Newest default-domain opset that `runtime_min` reads; onnxruntime only.
        precisions: What may be tried, in the order of escalation.
        providers: Execution providers in order of preference; onnxruntime only.
        int8_scheme: `asymmetric` (uint8 activations) or `symmetric` (int8, zero point 0: TensorRT).
        options: Runtime settings baked into the bundle: `inference_precision` (OpenVINO), `xnnpack`.
        source: Where the versions come from.
    """

    name: str
    runtime_min: str
    precisions: tuple[Precision, ...]
    onnx_ir_max: int | None = None
    onnx_opset_max: int | None = None
    providers: tuple[str, ...] = ()
    int8_scheme: Literal["asymmetric", "symmetric"] = "asymmetric"
    options: dict[str, str] = {}
    source: str


class Budgets(Declared, frozen=True, kw_only=True):
    """Upper limits that a bundle must keep; None: no limit. Latency is p95 of one inference, batch as declared."""

    latency_p95_ms: float | None = None
    size_mib: float | None = None
    peak_memory_mib: float | None = None


class Serving(Declared, frozen=True, kw_only=True):
    """How the agent runs a model on this class: inference threads, and the CPUs they may use (empty: any)."""

    threads: int = 1
    affinity: tuple[int, ...] = ()


class Profile(Declared, frozen=True, kw_only=True):
    """One class of device.

    Args:
        name: Unique name, the file's stem.
        title: For people.
        status: `supported`, or `unsupported` with `reason`.
        runtimes: In order of preference; the compiler tries all of them and serves the best that passes.
        python_min: Oldest Python of the board's operating system.
        glibc_min: Oldest glibc of it.
        extends: Name of a profile whose values this one takes over.
    """

    name: str
    title: str
    status: Literal["supported", "unsupported"] = "supported"
    reason: str | None = None
    cpu: Cpu
    memory: Memory
    accelerators: tuple[Accelerator, ...] = ()
    runtimes: tuple[Runtime, ...]
    budgets: Budgets = Budgets()
    serving: Serving = Serving()
    python_min: str | None = None
    glibc_min: str | None = None
    extends: str | None = None
