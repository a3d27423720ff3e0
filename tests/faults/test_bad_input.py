"""Each wrong input gets one line and exit code 2, and what was there is as it was."""

import pytest

from cacse_trainer.cli import main
from tests.faults.bad_input import ACCEPTED, CASES, try_case
from tests.faults.places import Place


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    """Whole models and files, to be spoiled."""
    return Place(tmp_path_factory.mktemp("bad"))


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.what for case in CASES])
def test_wrong_input(place, number):
    code, lines, untouched = try_case(place, CASES[number], number)
    said = "\n".join(lines)
    errors = [line for line in lines if line.startswith("error: ")]
    assert "Traceback" not in said, said
    assert code == 2 and len(errors) == 1, said
    assert CASES[number].words in errors[0], errors[0]
    assert untouched


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case.what)
def test_odd_but_good_input(place, case, tmp_path):
    place.here = tmp_path
    assert main.main([*case.make(place), "--check"]) == 0


def test_the_list_is_long_and_without_repetition():
    assert len(CASES) >= 60
    assert len({case.what for case in CASES}) == len(CASES)
