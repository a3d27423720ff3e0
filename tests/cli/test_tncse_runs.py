"""TNCSE from the command line: what a run leaves, its card, a resumed run, its student, and the release's pairs."""

import json

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from cacse_trainer import TncseModel
from cacse_trainer.cli import distill, export, import_reference, train
from cacse_trainer.cli.common import run
from tests.conftest import StopAt
from tests.tolerances import assert_near


@pytest.fixture
def command(tmp_path, tiny_towers, text_file, dev_file):
    """The arguments of a small run; its output folder is tmp_path/run."""
    a, b, _ = tiny_towers("bert")
    return [
        *("--tower_a", a, "--tower_b", b, "--norm_constraint_weight", "1", "--tower_dropout", "0.1", "0.15"),
        *("--train_file", str(text_file), "--dev_file", f"stsb={dev_file}", "--max_steps", "4", "--eval_steps", "2"),
        *("--per_device_train_batch_size", "8", "--learning_rate", "1e-3", "--bf16", "false", "--card_note", "Held X."),
        *("--logging_steps", "1", "--use_cpu", "true", "--disable_tqdm", "true"),
        *("--output_dir", str(tmp_path / "run")),
    ]


def test_a_run_its_exports_and_its_student(command, tmp_path, tiny_towers):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    assert run(train.main, command) == 0
    folder = tmp_path / "run"
    report = json.loads((folder / "training_report.json").read_text())
    assert report["model"] == "TncseModel" and report["run"]["effective_negatives"] == 14
    logged = next(entry for entry in report["log_history"] if "loss_norm" in entry)
    assert {"loss_tower_a", "loss_tower_b", "loss_cross", "loss_norm"} <= set(logged)
    model = AutoModel.from_pretrained(folder).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(["a man", "the red dog"], padding=True, return_tensors="pt")
    expected = {"tower_a": model.tower_a, "tower_b": model.tower_b, "ensemble": model}
    for name, trained in expected.items():
        loaded = sentence_transformers.SentenceTransformer(str(folder / "export" / name), device="cpu")
        assert_near(loaded.encode(["a man", "the red dog"]), trained(**inputs).last_hidden_state[:, 0])
        assert "| note | Held X. |" in (folder / "export" / name / "README.md").read_text()
    checkpoint = next(folder.glob("checkpoint-*"))
    assert run(export.main, ["--checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "again")]) == 0
    assert "| note | Held X. |" in (tmp_path / "again" / "tower_a" / "README.md").read_text()
    taught = [*("--teacher", str(folder), "--student", tiny_towers("bert")[2], "--max_steps", "2", "--eval_steps", "2")]
    shared = command[command.index("--train_file") : command.index("--max_steps")]
    out = ["--use_cpu", "true", "--bf16", "false", "--output_dir", str(tmp_path / "student")]
    assert run(distill.main, [*taught, *shared, *out]) == 0


def test_a_resumed_run_is_the_run(make_trainer, tiny_towers):
    def model():
        torch.manual_seed(3)
        return TncseModel.from_towers(*tiny_towers("bert")[:2], tower_dropout=[0.1, 0.1])

    whole = make_trainer("whole", model=model())
    whole.train()
    make_trainer("broken", model=model(), callbacks=[StopAt(4)]).train()
    resumed = make_trainer("broken", model=model())
    resumed.train(resume_from_checkpoint=True)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_import_of_a_released_pair(tmp_path, tiny_towers, capsys):
    a, b, _ = tiny_towers("roberta")
    out = ["--output_dir", str(tmp_path / "pair")]
    assert run(import_reference.main, ["--tower_a", a, "--tower_b", b, *out]) == 0
    pair = AutoModel.from_pretrained(tmp_path / "pair")
    assert type(pair) is TncseModel
    for tower, folder in ((pair.tower_a, a), (pair.tower_b, b)):
        expected = AutoModel.from_pretrained(folder).state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in tower.state_dict().items())
    flags = ["--checkpoint", str(tmp_path / "pair"), "--output_dir", str(tmp_path / "exported")]
    assert run(export.main, flags) == 0
    assert {path.name for path in (tmp_path / "exported").iterdir()} == {"tower_a", "tower_b", "ensemble"}
    capsys.readouterr()
    for flags, words in (
        (["--tower_a", a], "give --checkpoint, or --tower_a and --tower_b"),
        (["--head", "drop"], "give --checkpoint, the folder of SimCSE"),
        (["--tower_a", a, "--tower_b", tiny_towers("bert")[0]], "the towers must agree in kind"),
    ):
        assert run(import_reference.main, [*flags, *out]) == 2
        assert words in capsys.readouterr().err
