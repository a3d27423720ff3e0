"""Spoiled files of every kind end in success or in one line: a few by default, some hundred when slow."""

import pytest

from tests.faults.fuzz import Ground

FEW, MANY = range(0, 201, 3), range(1000, 1400)
"""Numbers of the cases, each a seed of its own; 3 and the number of targets have no common factor."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Ground:
    """Good files of all kinds."""
    return Ground(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("numbers", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
def test_spoiled_files_end_in_success_or_one_line(ground, numbers, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = [ground.try_case(number) for number in numbers]
    assert [(what, wrong) for what, wrong in found if wrong] == []


def test_a_fault_of_ours_is_seen(ground, monkeypatch):
    def fail(*arguments):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("cacse_trainer.cli.encode.Corpus", fail)
    assert "unexpected ZeroDivisionError: ours" in ground.try_case(0)[1]
