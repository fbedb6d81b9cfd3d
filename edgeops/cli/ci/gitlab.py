"""The pipeline as a configuration of GitLab CI/CD. Pure."""

from __future__ import annotations

from edgeops.cli.ci.pipeline import BUILD, RESULTS, VENV, Job, Place, Plan, jobs
from edgeops.cli.ci.yaml import Value, dump

FILE = ".gitlab-ci.yml"
_HEAD = """\
# Written by `edgeops ci init gitlab`. What it needs:
#   variables EDGEOPS_KEY_PASSPHRASE (masked)  opens the keys that sign releases
#             EDGEOPS_URL, EDGEOPS_CA, EDGEOPS_TOKEN (masked)  the control plane: address, ca.pem, API token (operator)
#             EDGEOPS_HOME  the fleet's home on the runner that publishes
#   runners   with tag edgeops-fleet: has the fleet's home{rig}
# Statuses of the steps: docs/guide/ci.md of edgeops. 3 is a gate's no; the report and the JUnit files say why.
"""
_RIG = "\n#             with tag edgeops-rig: the rig's boards hang on it"
_PATH = f'export PATH="$PWD/{VENV}/bin:$PATH"'


def configuration(plan: Plan) -> str:
    """Return the configuration file."""
    found = jobs(plan)
    return _HEAD.format(rig="" if plan.rig is None else _RIG) + dump(
        {
            "stages": [job.name for job in found],
            "variables": {
                "EDGEOPS_VERSION": f"{plan.version_prefix}.$CI_PIPELINE_IID",
                "EDGEOPS_RUN_URL": "$CI_PIPELINE_URL",
            },
            "workflow": {
                "rules": [
                    {"if": '$CI_PIPELINE_SOURCE == "merge_request_event"'},
                    {"if": f'$CI_COMMIT_BRANCH == "{plan.branch}"'},
                ]
            },
            **{job.name: _job(plan, job) for job in found},
        }
    )


def _job(plan: Plan, job: Job) -> dict[str, Value]:
    found: dict[str, Value] = {"stage": job.name}
    if job.place is Place.HOSTED:
        found["image"] = "python:3.11"
    else:
        found["tags"] = [job.place.value]
    if job.needs:
        found["needs"] = [{"job": name, "artifacts": job.takes_build and name == "compile"} for name in job.needs]
    if job.on_merge:
        found["rules"] = [{"if": f'$CI_COMMIT_BRANCH == "{plan.branch}"'}]
        # One after the other: a release's number grows, and devices go one way.
        found["resource_group"] = f"edgeops-{job.name}"
    found["timeout"] = "2 hours"
    found["before_script"] = [
        f"python3 -m venv {VENV}",
        f'{VENV}/bin/pip install --quiet "{plan.install(job)}"',
        _PATH,
    ]
    found["script"] = [step.run for step in job.steps if not step.always]
    if late := [step.run for step in job.steps if step.always]:
        found["after_script"] = [_PATH, *late]
    found["artifacts"] = {
        "when": "always",
        "paths": [RESULTS, *([BUILD] if job.name == "compile" else [])],
        "reports": {"junit": f"{RESULTS}/*.xml"},
    }
    return found
