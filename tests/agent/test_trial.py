"""When a new bundle has proved itself."""

from __future__ import annotations

import pytest

from edgeops.agent.settings import TrialRules
from edgeops.agent.trial import TrialFacts, faults, judge

RULES = TrialRules()
WELL = TrialFacts(elapsed_s=6, serving=True, probes=5, crashes=0, requests=100, errors=0)


def test_health_and_time_together_confirm():
    assert judge(WELL, RULES).healthy is True


@pytest.mark.parametrize(
    "facts",
    [
        WELL._replace(elapsed_s=1),
        WELL._replace(probes=0),
        WELL._replace(serving=False),
        WELL._replace(crashes=1, serving=False),
    ],
)
def test_neither_alone_confirms(facts: TrialFacts):
    assert judge(facts, RULES).healthy is None


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        (WELL._replace(crashes=3, last_crash="killed by SIGSEGV"), "SIGSEGV"),
        (WELL._replace(errors=30), "failed"),
        (WELL._replace(requests=0, errors=5), "failed"),
        (WELL._replace(probes=0, elapsed_s=121), "within 120 s"),
    ],
)
def test_illness_ends_the_trial_with_its_reason(facts: TrialFacts, word: str):
    verdict = judge(facts, RULES)
    assert verdict.healthy is False
    assert word in verdict.reason


def test_a_few_errors_among_many_requests_do_not():
    assert judge(WELL._replace(errors=4), RULES).healthy is True
    assert judge(WELL._replace(requests=1000, errors=50), RULES).healthy is True


def test_clients_mistakes_are_not_the_bundles():
    assert faults({"E-INFER-REQUEST": 50, "E-RUNTIME-INPUT": 9, "E-INFER-VALUES": 2, "E-RUNTIME-RUN": 1}) == 3
