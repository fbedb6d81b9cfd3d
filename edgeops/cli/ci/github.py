"""The pipeline as a workflow of GitHub Actions. Pure."""

from __future__ import annotations

from edgeops.cli.ci.pipeline import BUILD, RESULTS, VENV, Job, Place, Plan, Step, jobs
from edgeops.cli.ci.yaml import Value, dump

FILE = ".github/workflows/edgeops.yml"
_HEAD = """\
# Written by `edgeops ci init github`. What it needs:
#   secrets   EDGEOPS_KEY_PASSPHRASE  opens the keys that sign releases
#             EDGEOPS_URL, EDGEOPS_CA, EDGEOPS_TOKEN  the control plane: address, ca.pem, API token (role operator)
#   variable  EDGEOPS_HOME  the fleet's home on the runner that publishes
#   runners   self-hosted with label edgeops-fleet: has the fleet's home{rig}
# Statuses of the steps: docs/guide/ci.md of edgeops. 3 is a gate's no; the report and the JUnit files say why.
"""
_RIG = "\n#             self-hosted with label edgeops-rig: the rig's boards hang on it"


def workflow(plan: Plan) -> str:
    """Return the workflow file."""
    return _HEAD.format(rig="" if plan.rig is None else _RIG) + dump(
        {
            "name": "edgeops",
            "on": {"pull_request": {}, "push": {"branches": [plan.branch]}},
            "permissions": {"contents": "read"},
            "env": {
                "EDGEOPS_VERSION": f"{plan.version_prefix}.${{{{ github.run_number }}}}",
                "EDGEOPS_RUN_URL": (
                    "${{ github.server_url }}/${{ github.repository }}/actions/runs/${{ github.run_id }}"
                ),
            },
            "jobs": {job.name: _job(plan, job) for job in jobs(plan)},
        }
    )


def _job(plan: Plan, job: Job) -> dict[str, Value]:
    found: dict[str, Value] = {"name": job.title}
    if job.needs:
        found["needs"] = list(job.needs)
    if job.on_merge:
        found["if"] = f"github.event_name == 'push' && github.ref == 'refs/heads/{plan.branch}'"
        # One after the other: a release's number grows, and devices go one way.
        found["concurrency"] = {"group": f"edgeops-{job.name}", "cancel-in-progress": False}
    elif job.place is not Place.HOSTED:
        # A stranger's pull request runs nothing on a machine of one's own.
        found["if"] = (
            "github.event_name == 'push' || github.event.pull_request.head.repo.full_name == github.repository"
        )
    found["runs-on"] = "ubuntu-24.04" if job.place is Place.HOSTED else ["self-hosted", job.place.value]
    found["timeout-minutes"] = 120
    if job.secrets:
        found["env"] = {name: _secret(name) for name in job.secrets}
    steps: list[Value] = [{"uses": "actions/checkout@v4"}]
    if job.place is Place.HOSTED:
        steps.append({"uses": "actions/setup-python@v5", "with": {"python-version": "3.11"}})
    steps.append({"name": "Install edgeops", "run": _install(plan, job)})
    if job.takes_build:
        steps.append(
            {"name": "Get the bundles", "uses": "actions/download-artifact@v4", "with": {"name": BUILD, "path": BUILD}}
        )
    steps += [_step(step) for step in job.steps]
    if job.name in ("compile", "publish"):
        summary = f'cat {RESULTS}/report.md >> "$GITHUB_STEP_SUMMARY"'
        steps.append(_step(Step("Show the report", summary, always=True)))
    if job.name == "compile":
        steps.append(_upload(BUILD, BUILD))
    steps.append(_upload(f"results-{job.name}", RESULTS, always=True))
    found["steps"] = steps
    return found


def _step(step: Step) -> dict[str, Value]:
    return {
        "name": step.name,
        **({"if": "${{ !cancelled() }}"} if step.always else {}),
        "shell": "bash",
        "run": step.run,
    }


def _upload(name: str, path: str, *, always: bool = False) -> dict[str, Value]:
    return {
        "name": f"Keep {path}",
        **({"if": "${{ !cancelled() }}"} if always else {}),
        "uses": "actions/upload-artifact@v4",
        "with": {"name": name, "path": path, "if-no-files-found": "warn" if always else "error"},
    }


def _install(plan: Plan, job: Job) -> str:
    return "\n".join(
        (
            f"python3 -m venv {VENV}",
            f'{VENV}/bin/pip install --quiet "{plan.install(job)}"',
            f'echo "$PWD/{VENV}/bin" >> "$GITHUB_PATH"',
        )
    )


def _secret(name: str) -> str:
    kind = "vars" if name == "EDGEOPS_HOME" else "secrets"
    return f"${{{{ {kind}.{name} }}}}"
