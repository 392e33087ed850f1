"""Hostile checkpoints: whatever a file says, it is read or refused in a sentence, and nothing else happens.

A few hundred cases, the same on every run; tests/bench/fuzz.py tries twenty thousand.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests import hostile

CASES = 40  # of each kind


@pytest.fixture(scope="module")
def trial(tmp_path_factory) -> hostile.Trial:
    return hostile.Trial(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("name", hostile.KINDS)
def test_a_spoiled_file_is_read_or_refused_in_a_sentence_and_nothing_else_happens(trial, name):
    kind = hostile.KINDS[name]
    outcomes = []

    @settings(max_examples=CASES, suppress_health_check=list(HealthCheck))
    @given(kind.spoiled(trial.good))
    def tried(spoiled):
        outcomes.append(trial.run(kind, spoiled))

    tried()
    assert len(outcomes) > CASES / 2
    assert ("refused" in outcomes) is (kind.error != ())
