"""What a pipeline does, whoever runs it: jobs of steps, each a few lines of shell. Pure.

Environment that the writers for each CI provide: EDGEOPS_VERSION (the release), EDGEOPS_RUN_URL (this run), and from
secrets EDGEOPS_HOME, EDGEOPS_KEY_PASSPHRASE, EDGEOPS_URL, EDGEOPS_CA and EDGEOPS_TOKEN.
"""

from __future__ import annotations

import enum
import shlex
from typing import NamedTuple

RESULTS, BUILD, VENV, CONTEXT = "results", "build", ".edgeops-venv", "fleet"
_WIDTH = 100


class Place(enum.Enum):
    """Where a job runs: the CI's own machine, the one with the fleet's home, or the one that the rig hangs on."""

    HOSTED = "hosted"
    FLEET = "edgeops-fleet"
    RIG = "edgeops-rig"


class Step(NamedTuple):
    """Lines of shell; `always`: even if a step before failed."""

    name: str
    run: str
    always: bool = False


class Job(NamedTuple):
    """A job.

    Args:
        name: Its id.
        title: For people.
        place: Where it runs.
        extras: What of edgeops it needs.
        needs: Jobs before it.
        takes_build: It gets the compiled bundles.
        on_merge: It runs only on the branch that is deployed.
        secrets: Names of secrets that its steps read.
        steps: After edgeops is installed.
    """

    name: str
    title: str
    place: Place
    extras: tuple[str, ...]
    steps: tuple[Step, ...]
    needs: tuple[str, ...] = ()
    takes_build: bool = False
    on_merge: bool = False
    secrets: tuple[str, ...] = ()


class Plan(NamedTuple):
    """What is to be built and shipped.

    Args:
        handover: The hand-over's folder, from the repository's root.
        model: The model's name.
        profiles: Profiles as `compile` takes them → their names.
        rig: A rig's name or file; None: none is configured.
        branch: Whose merges are deployed.
        version_prefix: MAJOR.MINOR; the run's number makes the third part.
        groups: Of the rollout, the canary first.
        lock: A compile.lock in the repository that the compile must agree with; None: it chooses anew.
        requirement: edgeops, as pip takes it, `{extras}` to be filled in.
    """

    handover: str
    model: str
    profiles: dict[str, str]
    rig: str | None
    branch: str
    version_prefix: str
    groups: str
    lock: str | None
    requirement: str

    def install(self, job: Job) -> str:
        """Return what pip is asked for."""
        return self.requirement.replace("{extras}", ",".join(job.extras))


def jobs(plan: Plan) -> tuple[Job, ...]:
    """Return the jobs in the order in which they run."""
    before = ("compile",) if plan.rig is None else ("compile", "hil")
    return (
        _compile(plan),
        *(() if plan.rig is None else (_hil(plan, plan.rig),)),
        _publish(plan, before),
        _canary(plan),
    )


def _compile(plan: Plan) -> Job:
    profiles = [word for profile in plan.profiles for word in ("--profile", profile)]
    lock = [] if plan.lock is None else ["--locked", plan.lock, "--check"]
    return Job(
        name="compile",
        title="Compile and gate",
        place=Place.HOSTED,
        extras=("compiler", "litert", "onnxruntime", "openvino"),
        steps=(
            Step(
                "Compile for every profile, under gates",
                script(
                    ["mkdir", "-p", RESULTS],
                    ["edgeops", "compile", plan.handover, *profiles, *lock, "--out", BUILD,
                     "--junit", f"{RESULTS}/compile.xml", "--json", ">", f"{RESULTS}/compile.json"],
                ),
            ),
            Step(
                "Report, also of what failed",
                script(
                    ["edgeops", "report", BUILD, "--out", f"{RESULTS}/report.html", "--out", f"{RESULTS}/report.md"]
                ),
                always=True,
            ),
        ),
    )  # fmt: skip


def _hil(plan: Plan, rig: str) -> Job:
    bundles = [word for name in plan.profiles.values() for word in ("--bundle", f"{BUILD}/{name}/bundle")]
    return Job(
        name="hil",
        title="Run on the boards of the rig",
        place=Place.RIG,
        extras=("agent", "control", "litert", "onnxruntime", "openvino"),
        needs=("compile",),
        takes_build=True,
        steps=(
            Step(
                "Run the bundles on real boards",
                script(
                    ["mkdir", "-p", RESULTS],
                    ["edgeops", "hil", "run", rig, *bundles, "--handover", plan.handover,
                     "--junit", f"{RESULTS}/hil.xml", "--report", f"{RESULTS}/hil.html", "--json",
                     ">", f"{RESULTS}/hil.json"],
                ),
            ),
        ),
    )  # fmt: skip


def _publish(plan: Plan, before: tuple[str, ...]) -> Job:
    home = ["--home", "$EDGEOPS_HOME"]
    bundles = [f"{BUILD}/{name}/bundle" for name in plan.profiles.values()]
    return Job(
        name="publish",
        title="Sign and publish the release",
        place=Place.FLEET,
        extras=("control",),
        needs=before,
        takes_build=True,
        on_merge=True,
        secrets=("EDGEOPS_HOME", "EDGEOPS_KEY_PASSPHRASE"),
        steps=(
            Step(
                "Make a release of bundles that passed",
                script(
                    ["mkdir", "-p", RESULTS],
                    ["edgeops", "release", "create", *home, "--version", "$EDGEOPS_VERSION", "--model", plan.model,
                     "--gated", "--junit", f"{RESULTS}/create.xml", *bundles],
                ),
            ),
            Step(
                "Sign it, and verify what was signed",
                script(
                    ["edgeops", "release", "publish", *home, "--run-url", "$EDGEOPS_RUN_URL",
                     "--junit", f"{RESULTS}/publish.xml", plan.model, "$EDGEOPS_VERSION"],
                    ["edgeops", "release", "verify", *home, plan.model, "$EDGEOPS_VERSION",
                     "--out", f"{RESULTS}/release"],
                ),
            ),
            Step(
                "Report, with what changes on devices",
                script(
                    ["edgeops", "report", plan.model, "$EDGEOPS_VERSION", *home,
                     "--out", f"{RESULTS}/report.html", "--out", f"{RESULTS}/report.md"],
                ),
            ),
        ),
    )  # fmt: skip


def _canary(plan: Plan) -> Job:
    there = ["--context", CONTEXT]
    number = f"import json; print(json.load(open('{RESULTS}/rollout.json'))['id'])"
    return Job(
        name="canary",
        title="Roll out, the canary first",
        place=Place.HOSTED,
        extras=("control",),
        needs=("publish",),
        on_merge=True,
        secrets=("EDGEOPS_URL", "EDGEOPS_CA", "EDGEOPS_TOKEN"),
        steps=(
            Step(
                "Reach the control plane",
                script(
                    ["mkdir", "-p", RESULTS],
                    ["printf", "%s\\n", "$EDGEOPS_CA", ">", "fleet-ca.pem"],
                    ["printf", "%s\\n", "$EDGEOPS_TOKEN", "|", "edgeops", "context", "add", CONTEXT,
                     "--url", "$EDGEOPS_URL", "--ca", "fleet-ca.pem", "--token-file", "-"],
                ),
            ),
            Step(
                "Start the rollout",
                script(
                    ["edgeops", "rollout", "create", *there, plan.model, "$EDGEOPS_VERSION", "--groups", plan.groups,
                     "--on-failure", "revert", "--start", "--json", ">", f"{RESULTS}/rollout.json"],
                ),
            ),
            Step(
                "Watch its gates",
                script(
                    ["edgeops", "rollout", "status", *there, f'$(python3 -c "{number}")', "--watch",
                     "--junit", f"{RESULTS}/rollout.xml"],
                ),
            ),
        ),
    )  # fmt: skip


def script(*commands: list[str]) -> str:
    """Return commands as lines of shell, long ones broken before an option or a redirection.

    Words that begin with `$` are expanded, within quotes; `>` and `|` are the shell's; all others are quoted.
    """
    return "\n".join(_broken([_quoted(word) for word in command]) for command in commands)


def _quoted(word: str) -> str:
    if word in (">", "|"):
        return word
    return f'"{word}"' if word.startswith("$") else shlex.quote(word)


def _broken(words: list[str]) -> str:
    lines, line = [], ""
    for word in words:
        if line and len(line) + len(word) >= _WIDTH and (word.startswith("--") or word in (">", "|")):
            lines.append(line)
            line = ""
        line = f"{line} {word}" if line else word
    return " \\\n  ".join([*lines, line])
