"""The folder of an evaluation's results: what lies there and is of no evaluation stays."""

import pytest

from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.results import BESIDE, ResultStore


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_a_person_are_not_written_over(tmp_path, name, overwrite):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds {name} of no evaluation"):
        ResultStore(tmp_path, model="m", pooling="cls", settings={}, overwrite=overwrite)
    (tmp_path / "results.json").write_text('{"model": "m", "pooling": "cls", "tasks": {}, "settings": {}}')
    ResultStore(tmp_path, model="m", pooling="cls", settings={}, overwrite=overwrite)
