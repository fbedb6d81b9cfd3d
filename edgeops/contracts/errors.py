"""One error type with stable codes: what happened, where, and what to do next; split by whose fault it is."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Fault(enum.Enum):
    """Whose fault an error is; the value is the exit status of a command that ends with it."""

    INTERNAL = 1
    USAGE = 2
    GATE = 3
    ENVIRONMENT = 4
    PEER = 5


# Every status that a command ends with, and what CI can make of it: the only table; the docs are written from it.
INTERRUPTED = 130
EXIT_STATUSES: dict[int, str] = {
    0: "success",
    Fault.INTERNAL.value: "a defect of edgeops: please report it",
    Fault.USAGE.value: "what was asked or given is wrong; trying again changes nothing",
    Fault.GATE.value: "a gate said no: nothing is broken, and nothing should ship",
    Fault.ENVIRONMENT.value: "this machine or its network; trying again later may help",
    Fault.PEER.value: "a file, message or peer that was checked and refused",
    INTERRUPTED: "interrupted by Ctrl-C (SIGINT)",
}


class ErrorCode(NamedTuple):
    """One stable code: whose fault it is, and what it means in a line."""

    fault: Fault
    meaning: str


ERROR_CODES: dict[str, ErrorCode] = {
    # Wire and files
    "E-WIRE-MALFORMED": ErrorCode(Fault.PEER, "A message or file is not of the agreed form."),
    "E-WIRE-SIZE": ErrorCode(Fault.PEER, "A message or file is larger than allowed."),
    "E-TOPIC": ErrorCode(Fault.PEER, "An MQTT topic is not one of edgeops."),
    "E-NAME": ErrorCode(Fault.USAGE, "A name has characters that names may not have."),
    "E-DISK-FULL": ErrorCode(Fault.ENVIRONMENT, "There is no room on the disk."),
    "E-DISK-WRITE": ErrorCode(Fault.ENVIRONMENT, "A file could not be written."),
    "E-STATE-CORRUPT": ErrorCode(Fault.ENVIRONMENT, "A file of the program's own state is damaged."),
    "E-STATE-LOCKED": ErrorCode(Fault.USAGE, "Another process uses this state directory."),
    "E-CONFIG": ErrorCode(Fault.USAGE, "A configuration value is missing or wrong."),
    "E-DEPENDENCY": ErrorCode(Fault.ENVIRONMENT, "A needed package or program is not installed."),
    "E-PLUGIN": ErrorCode(Fault.ENVIRONMENT, "A plugin could not be loaded."),
    "E-INTERNAL": ErrorCode(Fault.INTERNAL, "A defect of edgeops: please report it."),
    # Profiles
    "E-PROFILE-UNKNOWN": ErrorCode(Fault.USAGE, "No device profile has this name."),
    "E-PROFILE-INVALID": ErrorCode(Fault.USAGE, "A device profile has a wrong key or value."),
    "E-PROFILE-UNSUPPORTED": ErrorCode(Fault.USAGE, "The profile is listed as not supported, with its reason."),
    # Hand-over
    "E-HANDOVER-MISSING": ErrorCode(Fault.USAGE, "The hand-over, or a file that it names, is not there."),
    "E-HANDOVER-KEY": ErrorCode(Fault.USAGE, "handover.toml has an unknown key or a value of a wrong kind."),
    "E-HANDOVER-SHAPE": ErrorCode(Fault.USAGE, "The declared inputs or outputs disagree with the model."),
    "E-HANDOVER-STEP": ErrorCode(Fault.USAGE, "A preprocessing step is unknown or cannot be applied."),
    "E-HANDOVER-OBJECT": ErrorCode(Fault.USAGE, "A Python object is not a model that can be handed over."),
    "E-HANDOVER-EXPORT": ErrorCode(Fault.USAGE, "A model cannot be exported, or its export answers otherwise."),
    "E-HANDOVER-PICKLE": ErrorCode(Fault.USAGE, "A pickle is not trusted, or names what no model consists of."),
    "E-MODEL-FORMAT": ErrorCode(Fault.USAGE, "The model file is not a readable ONNX or TFLite model."),
    "E-MODEL-UNSUPPORTED": ErrorCode(Fault.USAGE, "The model uses something that cannot be deployed."),
    "E-DATA-SHAPE": ErrorCode(Fault.USAGE, "Sample data has a wrong shape, type or count."),
    "E-DATA-VALUES": ErrorCode(Fault.USAGE, "Sample data has NaN or infinite values."),
    "E-PATH-ESCAPE": ErrorCode(Fault.USAGE, "A path leaves the folder that it must stay in."),
    # Compile
    "E-COMPILE-GATE": ErrorCode(Fault.GATE, "No candidate passes all gates; the best one is kept."),
    "E-COMPILE-CANDIDATE": ErrorCode(Fault.ENVIRONMENT, "A candidate could not be built."),
    "E-COMPILE-LOCK": ErrorCode(Fault.GATE, "The compile differs from compile.lock."),
    "E-TOOLCHAIN": ErrorCode(Fault.ENVIRONMENT, "An isolated tool could not be installed or run."),
    # Bundles and runtimes
    "E-BUNDLE-DAMAGED": ErrorCode(Fault.PEER, "A bundle's bytes are not those that its digest names."),
    "E-BUNDLE-INVALID": ErrorCode(Fault.PEER, "A bundle breaks the bundle rules."),
    "E-BUNDLE-PROFILE": ErrorCode(Fault.PEER, "A bundle was made for another profile."),
    "E-RUNTIME-MISSING": ErrorCode(Fault.ENVIRONMENT, "The runtime that a bundle needs is not installed."),
    "E-RUNTIME-LOAD": ErrorCode(Fault.PEER, "The runtime cannot load the artifact."),
    "E-RUNTIME-INPUT": ErrorCode(Fault.USAGE, "An input tensor has a wrong name, type or shape."),
    "E-RUNTIME-RUN": ErrorCode(Fault.PEER, "The runtime failed during inference."),
    # Trust
    "E-TRUST-KEY": ErrorCode(Fault.USAGE, "A key is missing, unreadable or of a wrong kind."),
    "E-TRUST-ROOT": ErrorCode(Fault.PEER, "The first root of trust is not the one that the token names."),
    "E-TRUST-SIGNATURE": ErrorCode(Fault.PEER, "A signature is missing, or not by a key that may sign this."),
    "E-TRUST-METADATA": ErrorCode(Fault.PEER, "TUF metadata failed verification."),
    "E-TRUST-TARGET": ErrorCode(Fault.PEER, "A target is unknown, or differs from its signed description."),
    "E-TRUST-EXPIRED": ErrorCode(Fault.PEER, "A signed statement has expired."),
    "E-TRUST-REPLAY": ErrorCode(Fault.PEER, "A signed statement is older than one that was already accepted."),
    "E-TRUST-DEVICE": ErrorCode(Fault.PEER, "A signed statement is meant for another device."),
    "E-TRUST-DOWNGRADE": ErrorCode(Fault.PEER, "The release is older than what runs, and no downgrade was signed."),
    "E-TOKEN": ErrorCode(Fault.USAGE, "The enrolment token is malformed, used, expired or unknown."),
    "E-ENROLL": ErrorCode(Fault.PEER, "Enrolment was refused."),
    # Releases
    "E-RELEASE-EXISTS": ErrorCode(Fault.USAGE, "This model already has a release of this version."),
    "E-RELEASE-UNKNOWN": ErrorCode(Fault.USAGE, "No such release."),
    "E-RELEASE-GATE": ErrorCode(Fault.GATE, "A bundle has no evidence, or did not pass its gates."),
    "E-RELEASE-INVALID": ErrorCode(Fault.USAGE, "The bundles do not make a release."),
    # Transport
    "E-NET-UNREACHABLE": ErrorCode(Fault.ENVIRONMENT, "The server cannot be reached."),
    "E-NET-RESPONSE": ErrorCode(Fault.PEER, "The server's answer is not usable."),
    "E-BROKER": ErrorCode(Fault.ENVIRONMENT, "The MQTT broker cannot be started or used."),
    "E-BROKER-ADDRESS": ErrorCode(Fault.USAGE, "The built-in broker serves loopback addresses only."),
    # Agent
    "E-AGENT-STATE": ErrorCode(Fault.INTERNAL, "An event is impossible in the state; nothing was changed."),
    "E-AGENT-WORKER": ErrorCode(Fault.PEER, "The runtime worker died, hung or could not start."),
    "E-MEASURE": ErrorCode(Fault.GATE, "A bundle could not be measured, or does not answer as it should."),
    "E-MEASURE-REFUSED": ErrorCode(
        Fault.PEER, "A device does not measure now: it is held, busy, updating or too slow."
    ),
    "E-SELFTEST-GOLDEN": ErrorCode(Fault.PEER, "Outputs on this device differ from the golden vectors."),
    "E-SELFTEST-AGENT": ErrorCode(Fault.PEER, "A new version of the agent cannot be installed or used on this device."),
    "E-SELFTEST-BUDGET": ErrorCode(Fault.GATE, "Latency or memory on this device breaks the budget."),
    "E-TRIAL": ErrorCode(Fault.GATE, "The new bundle was not healthy in its trial."),
    "E-INFER-REQUEST": ErrorCode(Fault.USAGE, "An inference request is malformed, or too large or too slow."),
    "E-INFER-MODEL": ErrorCode(Fault.USAGE, "No such model, version or path at this address."),
    "E-INFER-VALUES": ErrorCode(Fault.PEER, "An output is not finite, and the hand-over says to fail then."),
    "E-INFER-BUSY": ErrorCode(Fault.ENVIRONMENT, "Too many requests wait; try again later."),
    "E-INFER-TOKEN": ErrorCode(Fault.USAGE, "The endpoint wants a token, and it is missing or wrong."),
    "E-INFER-AWAY": ErrorCode(Fault.ENVIRONMENT, "The model is away while its bundle is changed; try again later."),
    "E-SET": ErrorCode(Fault.GATE, "Another component of the same set failed; all of them keep their old bundles."),
    "E-DESIRED-UNSUPPORTED": ErrorCode(Fault.PEER, "The desired state asks for something this agent cannot do."),
    "E-COMMAND": ErrorCode(Fault.PEER, "A command cannot be carried out as it is."),
    "E-SAMPLES-FORBIDDEN": ErrorCode(Fault.PEER, "The device's owner lets no inputs leave it."),
    # Microcontrollers
    "E-MCU-ANSWER": ErrorCode(Fault.PEER, "A device's answer is not of the agreed form."),
    "E-MCU-BLOB": ErrorCode(Fault.PEER, "A model blob is damaged, unsigned, or for another device."),
    "E-MCU-IMAGE": ErrorCode(Fault.PEER, "An MCUboot image is damaged, or not signed by the key that was given."),
    "E-MCU-PORT": ErrorCode(Fault.ENVIRONMENT, "A serial port cannot be opened, is in use, or was lost."),
    "E-MCU-REFUSED": ErrorCode(Fault.PEER, "A device refuses a request, with its reason."),
    "E-MCU-SILENT": ErrorCode(Fault.PEER, "A device on a serial line does not answer."),
    # Flashing boards
    "E-FLASH-BOARD": ErrorCode(Fault.ENVIRONMENT, "A board cannot be served, or does not do what a board does."),
    "E-FLASH-CARD": ErrorCode(Fault.USAGE, "A card or image cannot be written, or reads back otherwise."),
    "E-FLASH-LINK": ErrorCode(Fault.ENVIRONMENT, "A board cannot be reached by SSH, or the connection was lost."),
    "E-FLASH-LOGIN": ErrorCode(Fault.USAGE, "A board refuses the login, or its host key is not the known one."),
    "E-FLASH-WHEELS": ErrorCode(Fault.ENVIRONMENT, "There are no packages for a board, or they cannot be fetched."),
    # Hardware-in-the-loop rigs
    "E-HIL-RIG": ErrorCode(Fault.USAGE, "A rig file has a wrong key or value, or the rig cannot be used for this."),
    "E-HIL-BOARD": ErrorCode(Fault.ENVIRONMENT, "A board does not boot, does not answer, or is another one."),
    "E-HIL-BUSY": ErrorCode(Fault.ENVIRONMENT, "Another run uses the board."),
    "E-HIL-CHECK": ErrorCode(Fault.GATE, "A release did not pass a check on a board."),
    # Control plane
    "E-RIG-UNKNOWN": ErrorCode(Fault.USAGE, "No rig of this name is enrolled."),
    "E-RIG-UNFIT": ErrorCode(Fault.USAGE, "A rig cannot stand before this rollout."),
    "E-RIG-VERDICT": ErrorCode(Fault.PEER, "A rig's verdict is not an answer to what it was asked."),
    "E-DEVICE": ErrorCode(Fault.ENVIRONMENT, "Something keeps this device from serving or from being updated."),
    "E-COMMAND-UNKNOWN": ErrorCode(Fault.USAGE, "No such command was given to this device, or it has no answer yet."),
    "E-DEVICE-FLOOD": ErrorCode(Fault.PEER, "A device sends more messages than any device needs to."),
    "E-DEVICE-UNKNOWN": ErrorCode(Fault.USAGE, "No such device."),
    "E-FLEET-FROZEN": ErrorCode(Fault.USAGE, "The fleet is frozen: no rollout starts or goes on."),
    "E-ROLLOUT-INVALID": ErrorCode(Fault.USAGE, "A rollout's groups or gates are impossible."),
    "E-ROLLOUT-UNKNOWN": ErrorCode(Fault.USAGE, "No such rollout."),
    "E-ROLLOUT-STATE": ErrorCode(Fault.USAGE, "The rollout's state does not allow this."),
    "E-QUERY": ErrorCode(Fault.USAGE, "A query over devices cannot be read; line and column are named."),
    "E-GROUP": ErrorCode(Fault.USAGE, "No such device group, or its name is taken."),
    "E-ROLLOUT-APPROVAL": ErrorCode(Fault.USAGE, "The rollout needs the approval of a second person."),
    "E-ROLLOUT-TIMEOUT": ErrorCode(Fault.PEER, "A device was heard of, but was not through in its group's time."),
    "E-AGENT-FEATURE": ErrorCode(Fault.PEER, "A device's agent is too old for what a rollout asks; update it first."),
    "E-ROLLOUT-STOPPED": ErrorCode(Fault.GATE, "A gate stopped the rollout."),
    "E-REPORT-DIGEST": ErrorCode(Fault.PEER, "A device says it runs the release, but names another bundle."),
    "E-REPORT-STALE": ErrorCode(Fault.PEER, "A device's report is older than one that was already accepted."),
    "E-API-AUTH": ErrorCode(Fault.USAGE, "The API token is missing or wrong."),
    "E-API-RATE": ErrorCode(Fault.PEER, "Too many requests, or refused attempts from this address; try again later."),
    "E-API-ROLE": ErrorCode(Fault.USAGE, "The API token's role does not allow this."),
    "E-API-REQUEST": ErrorCode(Fault.USAGE, "The API request is not valid."),
    "E-API-IDEMPOTENCY": ErrorCode(Fault.USAGE, "The header Idempotency-Key cannot be used as it is."),
    "E-API-REUSED": ErrorCode(Fault.USAGE, "The idempotency key was used for another request."),
    "E-API-BUSY": ErrorCode(Fault.USAGE, "The first request with this idempotency key is still under way."),
    "E-API-DONE": ErrorCode(Fault.USAGE, "The request was carried out before; its answer was not kept."),
    "E-API-CHANGED": ErrorCode(Fault.USAGE, "The resource is not in the form that If-Match names."),
}


class EdgeopsError(Exception):
    """An error with a stable code, what happened, and the next step.

    Args:
        code: A key of `ERROR_CODES`.
        what: What happened and where; expected and got.
        next_step: What the reader can do about it.
    """

    def __init__(self, code: str, what: str, next_step: str = "") -> None:
        self.code = code
        self.what = what
        self.next_step = next_step
        self.fault = ERROR_CODES[code].fault
        super().__init__(code, what, next_step)

    def __str__(self) -> str:
        return f"{self.code}: {self.what}" + (f"\n  {self.next_step}" if self.next_step else "")

    @property
    def exit_status(self) -> int:
        """The exit status of a command that ends with this error."""
        return self.fault.value
