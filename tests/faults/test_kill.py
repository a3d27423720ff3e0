"""A run that is killed at random moments and resumed ends as one that never was, bit for bit."""

import pytest

from tests.faults.kills import kill_and_resume


@pytest.mark.parametrize("kills", [2, pytest.param(12, marks=pytest.mark.slow)])
def test_killed_and_resumed_equals_uninterrupted(kills, tmp_path):
    counts = kill_and_resume(tmp_path, kills, seed=kills)
    assert counts["kills"] == kills == counts.get("resumes", 0) + counts.get("restarts", 0)
