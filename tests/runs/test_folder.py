"""An output folder: only what a run left there is ever replaced or deleted."""

import json
from pathlib import Path

import pytest

from cacse_trainer.encoding.model_card import CardFacts, render_card
from cacse_trainer.errors import UserError
from cacse_trainer.runs.folder import RUN, check_output_dir, clear_output_dir, save_model
from cacse_trainer.settings.arguments import CacseTrainingArguments

CARD = render_card(CardFacts(title="encoder", what=""))
OF_A_RUN = {
    "checkpoint-2/trainer_state.json": "{}",
    "checkpoint-2/model.safetensors": "weights",
    "export/encoder/README.md": CARD,
    "export/encoder/config.json": "{}",
    "export/encoder/1_Pooling/config.json": "{}",
    "config.json": "{}",
    "model.safetensors": "weights",
    "tokenizer.json": "{}",
    "training_report.json": "{}",
}
OF_A_PERSON = {
    "README.md": "my project",
    "runs/notes.txt": "mine",
    "runs/old/events.out.tfevents.1": "mine",
    "checkpoint-notes.txt": "mine",
    "checkpoint-7/notes.txt": "mine",
    "tokenizer_notes.txt": "mine",
    "model.safetensors.md": "mine",
    "src/config.json": "mine",
}


def fill(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def contents(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def settings(folder, **changes):
    return CacseTrainingArguments(output_dir=str(folder), bf16=False, use_cpu=True, **changes)


def test_overwriting_deletes_the_run_and_nothing_else(tmp_path):
    """In the folder of a project, with files whose names begin alike."""
    fill(tmp_path, {**OF_A_RUN, **OF_A_PERSON})
    args = settings(tmp_path, overwrite_output_dir=True)
    assert check_output_dir(args) is None
    clear_output_dir(args)
    assert contents(tmp_path) == {RUN, *OF_A_PERSON}


class Saving:
    """Of a trainer what `save_model` needs."""

    names = ("config.json", "model.safetensors", "tokenizer_0/vocab.txt", "README.md")

    def is_world_process_zero(self):
        return True

    def save_model(self, folder):
        fill(Path(folder), dict.fromkeys(self.names, "ours"))


def test_a_run_knows_what_it_saved(tmp_path):
    """A file beside it that bears the name of a model's is somebody's, and in the way; so is one in the next run's."""
    fill(tmp_path, {"README.md": "mine", "export/encoder/README.md": CARD})
    clear_output_dir(settings(tmp_path))
    for _ in range(2):  # the second time over the first
        save_model(Saving(), tmp_path)
        assert contents(tmp_path) == {RUN, "export/encoder/README.md", *Saving.names}
        assert (tmp_path / "README.md").read_text() == "mine"
    fill(tmp_path, {"training_report.json": "{}", "vocab.txt": "mine"})
    for flags in ({"overwrite_output_dir": True}, {"resume_from_checkpoint": "x", "overwrite_output_dir": True}):
        with pytest.raises(UserError, match="did not write vocab"):
            check_output_dir(settings(tmp_path, **flags))
    (tmp_path / "vocab.txt").unlink()
    args = settings(tmp_path, overwrite_output_dir=True)
    check_output_dir(args)
    clear_output_dir(args)
    assert contents(tmp_path) == {RUN, "README.md"}


@pytest.mark.parametrize(
    "name", ["export/encoder/notes.txt", "export/mine/model.bin", "export/.mine", "checkpoint-2/notes.txt"]
)
def test_foreign_files_inside_a_run_are_named(tmp_path, name):
    fill(tmp_path, {**OF_A_RUN, name: "mine"})
    listed = {"model.safetensors": {}, "trainer_state.json": {}}
    (tmp_path / "checkpoint-2" / "manifest.json").write_text(json.dumps(listed))
    before = contents(tmp_path)
    with pytest.raises(UserError, match=f"did not write {name}"):
        check_output_dir(settings(tmp_path, overwrite_output_dir=True))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "export/x", "report.html", "checkpoint-4/x"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_replaces_nothing_that_is_no_runs(tmp_path, name, overwrite):
    """A start model's folder as output folder, for example: its weights would be written over at the end."""
    fill(tmp_path, {name: "mine"})
    with pytest.raises(UserError, match=f"no run of this program .{name.partition('/')[0]}"):
        check_output_dir(settings(tmp_path, overwrite_output_dir=overwrite))


def test_beside_other_files_a_run_has_its_place(tmp_path):
    fill(tmp_path, {"README.md": "my project", "src/a.py": ""})
    args = settings(tmp_path)
    assert check_output_dir(args) is None
    clear_output_dir(args)
    save_model(Saving(), tmp_path)  # killed before its report
    args = settings(tmp_path, overwrite_output_dir=True)
    assert check_output_dir(args) is None
    clear_output_dir(args)
    assert contents(tmp_path) == {RUN, "README.md", "src/a.py"}
