"""`cacse-trainer train` and `export` on tiny towers: what a run leaves behind, and what it says to wrong input."""

import json
import logging
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from cacse_trainer.cli import export, import_reference, main, train
from cacse_trainer.cli.common import run
from tests.conftest import GOLDEN
from tests.tolerances import assert_near


@pytest.fixture
def command(tmp_path, tiny_towers, text_file, dev_file):
    """The arguments of a small run; its output folder is tmp_path/run."""
    a, b, constraint = tiny_towers("bert")
    return [
        *("--tower_a", a, "--tower_b", b, "--constraint", constraint, "--cascade_start_layer", "2"),
        *("--constraint_layers", "1", "--tower_dropout", "0.1", "0.15", "--train_file", str(text_file)),
        *("--dev_file", f"stsb={dev_file}", "--max_steps", "4", "--eval_steps", "2"),
        *("--per_device_train_batch_size", "8", "--learning_rate", "1e-3", "--bf16", "false"),
        *("--logging_steps", "1", "--use_cpu", "true", "--disable_tqdm", "true"),
        *("--output_dir", str(tmp_path / "run")),
    ]


def failed(capsys, arguments, command=train.main) -> str:
    """The one line of a run that must end with code 2."""
    assert run(command, arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    message = [line for line in lines if line.startswith("error: ")]
    assert len(message) == 1 and "Traceback" not in "\n".join(lines)
    return message[0]


def test_a_run_leaves_exports_report_and_plot(command, tmp_path, capsys):
    assert run(train.main, command) == 0
    said = capsys.readouterr().out
    assert "baseline" in said and "export/tower_a" in said
    folder = tmp_path / "run"
    report = json.loads((folder / "training_report.json").read_text(), parse_constant=pytest.fail)
    assert [point["step"] for point in report["curve"]] == [0, 2, 4]
    assert report["best"] == max(point["value"] for point in report["curve"][1:])
    assert report["baseline"] == report["curve"][0]["value"]
    assert report["data"]["kept"] == 64 and report["run"]["effective_negatives"] == 14
    assert report["settings"]["learning_rate"] == 1e-3 and report["peak_memory_gb"] > 0
    assert (folder / "training_curves.png").read_bytes()[:4] == b"\x89PNG"
    assert type(AutoModel.from_pretrained(folder)).__name__ == "CacseBertModel"
    assert {path.name for path in (folder / "export").iterdir()} == {"tower_a", "tower_b", "ensemble"}
    for name, scores in report["exported"].items():
        card = (folder / "export" / name / "README.md").read_text()
        assert f"| stsb | {scores['stsb']:.2f} |" in card
        assert "cls" in card and "sentence-similarity" in card
    assert report["exported"]["ensemble"]["stsb"] == pytest.approx(report["best"], abs=1e-6)


def test_exports_are_plain_and_equal_the_model(command, tmp_path):
    assert run(train.main, command) == 0
    folder = tmp_path / "run"
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "export" / "tower_a")
    inputs = tokenizer(["a man is playing the guitar", "the dog"], padding=True, return_tensors="pt")
    expected = {"tower_a": model.tower_a, "tower_b": model.tower_b, "ensemble": model}
    for name, trained in expected.items():
        exported = AutoModel.from_pretrained(folder / "export" / name).eval()
        assert_near(exported(**inputs).last_hidden_state, trained(**inputs).last_hidden_state)
        pooling = json.loads((folder / "export" / name / "1_Pooling" / "config.json").read_text())
        assert [key for key, value in pooling.items() if value is True] == ["pooling_mode_cls_token"]
    tower = AutoModel.from_pretrained(folder / "export" / "tower_b")
    assert type(tower).__name__ == "BertModel"
    assert tower.config.hidden_dropout_prob == 0.0  # what it had before training with 0.15
    assert model.tower_b.config.hidden_dropout_prob == 0.15
    assert tokenizer.model_max_length == 64
    assert json.loads((folder / "export" / "tower_a" / "tokenizer.json").read_text())["truncation"] is None
    limit = json.loads((folder / "export" / "tower_a" / "sentence_bert_config.json").read_text())
    assert limit["max_seq_length"] == 64


def test_sentence_transformers_loads_the_exports(command, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    assert run(train.main, command) == 0
    model = AutoModel.from_pretrained(tmp_path / "run").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    sentences = ["a man is playing the guitar", "the dog", "", "red"]
    inputs = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = {
            "tower_a": model.tower_a(**inputs).last_hidden_state[:, 0],
            "tower_b": model.tower_b(**inputs).last_hidden_state[:, 0],
            "ensemble": model.embed(**inputs),
        }
    for name, vectors in expected.items():
        loaded = sentence_transformers.SentenceTransformer(str(tmp_path / "run" / "export" / name), device="cpu")
        assert_near(loaded.encode(sentences), vectors)


def test_export_of_a_checkpoint(command, tmp_path, dev_file, capsys):
    """The cards say what those of the run's own export say, from the run's report beside the checkpoint."""
    assert run(train.main, [*command, "--export", "false"]) == 0
    checkpoint = next((tmp_path / "run").glob("checkpoint-*"))
    out = tmp_path / "exported"
    arguments = ["--checkpoint", str(checkpoint), "--output_dir", str(out)]
    assert run(export.main, arguments) == 0
    assert {path.name for path in out.iterdir()} == {"tower_a", "tower_b", "ensemble"}
    score = json.loads((tmp_path / "run" / "training_report.json").read_text())["best"]
    card = (out / "ensemble" / "README.md").read_text()
    for row in (f"stsb | {score:.2f}", "learning rate | 0.001", "training text | sentences.txt, 64 rows", "batch | 8"):
        assert f"| {row}" in card
    assert "@misc{cacse," in card
    capsys.readouterr()
    assert run(export.main, [*arguments, "--dev_file", f"mine={dev_file}"]) == 0
    assert f"mine {score:.2f}" in capsys.readouterr().out
    assert "no config.json" in failed(
        capsys, ["--checkpoint", str(tmp_path), "--output_dir", str(out)], command=export.main
    )


def test_export_of_a_checkpoint_without_its_run(command, tmp_path, dev_file, caplog):
    """Dev sets that have moved cost the score and no more; a checkpoint alone is exported, too."""
    assert run(train.main, [*command, "--export", "false"]) == 0
    dev_file.rename(tmp_path / "moved.tsv")
    out = tmp_path / "exported"
    assert run(export.main, ["--checkpoint", str(tmp_path / "run"), "--output_dir", str(out)]) == 0
    assert "name them with --dev_file" in caplog.text
    next((tmp_path / "run").glob("checkpoint-*")).rename(tmp_path / "alone")
    assert run(export.main, ["--checkpoint", str(tmp_path / "alone"), "--output_dir", str(out)]) == 0
    assert "No dev set was given" in (out / "tower_a" / "README.md").read_text()


def test_finished_and_unfinished_folders(command, tmp_path, capsys):
    assert run(train.main, command) == 0
    assert "holds a finished run" in failed(capsys, command)
    report = (tmp_path / "run" / "training_report.json").read_text()
    (tmp_path / "run" / "training_report.json").unlink()
    assert "holds an unfinished run (checkpoint-" in failed(capsys, command)
    (tmp_path / "run" / "training_report.json").write_text(report)
    assert run(train.main, [*command, "--overwrite_output_dir"]) == 0
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    foreign = [*command, "--overwrite_output_dir", "--output_dir", str(tmp_path / "precious")]
    assert "no run of this program" in failed(capsys, foreign)
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"


def test_overwriting_waits_until_all_is_checked(command, tmp_path, capsys):
    """A misspelt file beside --overwrite_output_dir must not cost the earlier run."""
    assert run(train.main, command) == 0
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    for change in (["--train_file", "missing.txt"], ["--tower_b", "missing"], ["--dev_file", "stsb=missing.tsv"]):
        failed(capsys, [*command, "--overwrite_output_dir", *change])
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


def test_check_trains_nothing(command, tmp_path, capsys):
    assert run(train.main, [*command, "--check"]) == 0
    assert "nothing was trained" in capsys.readouterr().out
    assert list((tmp_path / "run").iterdir()) == []
    assert "missing.txt" in failed(capsys, [*command, "--check", "--train_file", "missing.txt"])


def test_resume_on_the_command_line(command, tmp_path, capsys):
    assert run(train.main, [*command, "--save_total_limit", "9"]) == 0
    whole = AutoModel.from_pretrained(tmp_path / "run").state_dict()
    folder = tmp_path / "run"
    for path in ("training_report.json", "model.safetensors"):
        (folder / path).unlink()
    import shutil

    shutil.rmtree(folder / "checkpoint-4")
    assert run(train.main, [*command, "--save_total_limit", "9", "--resume_from_checkpoint", "last"]) == 0
    resumed = AutoModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    report = json.loads((folder / "training_report.json").read_text())
    assert [point["step"] for point in report["curve"]] == [0, 2, 4]
    assert "nothing to resume" in failed(
        capsys, [*command, "--output_dir", str(tmp_path / "new"), "--resume_from_checkpoint", "last"]
    )


def test_evaluation_none_exports_the_last_model(command, tmp_path):
    cut = command.index("--dev_file")
    arguments = [*command[:cut], *command[cut + 2 :], "--evaluation", "none"]
    assert run(train.main, arguments) == 0
    report = json.loads((tmp_path / "run" / "training_report.json").read_text())
    assert "best" not in report and report["exported"]["ensemble"] == {}
    assert (tmp_path / "run" / "export" / "ensemble" / "model.safetensors").is_file()


def test_training_that_did_not_help_is_said(command, caplog):
    with caplog.at_level(logging.WARNING, logger="cacse_trainer"):
        assert run(train.main, [*command, "--learning_rate", "0"]) == 0
    assert "TRAINING DID NOT HELP" in caplog.text


def test_all_scores_undefined_exports_nothing(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "cacse_trainer.evaluation.dev_sets.score_pairs",
        lambda *_a, **_k: {"spearman": float("nan"), "average_cosine": 0.5},
    )
    assert run(train.main, command) == 1
    assert "nothing is exported" in capsys.readouterr().err
    assert not (tmp_path / "run" / "export").exists()


def test_no_dev_set_without_a_network(command, capsys):
    cut = command.index("--dev_file")
    message = failed(capsys, [*command[:cut], *command[cut + 2 :]])
    assert "no dev_file is given" in message and "--dev_file stsb=PATH, or --evaluation none" in message


def test_streaming_and_csv_pairs(command, tmp_path):
    rows = tmp_path / "pairs.csv"
    rows.write_text(
        "en,back\n" + "".join(f"a man {w},the man {w}\n" for w in ("red blue big small not and dog cat " * 4).split())
    )
    arguments = [*command, "--train_file", str(rows), "--text_columns", "en", "back", "--streaming", "true"]
    assert run(train.main, arguments) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--learning_rat", "1"], "did you mean --learning_rate?"),
        (["--config", "quickstrat"], "the nearest are quickstart,"),
        (["--train_file", "missing.txt"], "missing.txt"),
        (["--dev_file", "dev.tsv"], "dev.tsv: no such file"),
        (["--dev_file", "stsb=missing.tsv"], "missing.tsv"),
        (["--tower_b", "no/such-model"], "no/such-model"),
        (["--cascade_start_layer", "9"], "cascade_start_layer=9 is out of range"),
        (["--constraint_layers", "9"], "constraint_layers=9 is out of range"),
        (["--tower_dropout", "0.1"], "two numbers"),
        (["--per_device_train_batch_size", "100"], "fewer than one batch of 100"),
        (["--max_seq_length", "100"], "beyond the model's 64 positions"),
        (["--metric_for_best_model", "sts_spearman"], "the dev sets give stsb_spearman"),
        (["--eval_steps", "2", "--save_steps", "3"], "multiple"),
        (["--streaming", "true", "--max_steps", "-1"], "streaming needs max_steps"),
        (["--evaluation", "mteb"], "must be sts or none"),
        (["--tower_a", "package:no_such_package/model"], "not installed"),
        (["--train_file", "sample:nothing.txt"], "no file nothing.txt"),
        (["--resume_from_checkpoint", "nowhere"], "no such folder"),
    ],
)
def test_wrong_input_is_one_line(command, capsys, tmp_path, change, words):
    assert words in failed(capsys, [*command, *change])
    assert not (tmp_path / "run" / "export").exists()


def test_tokenizer_that_does_not_fit(command, tmp_path, tiny_tokenizer, capsys):
    from transformers import BertModel

    from tests.conftest import tiny_config

    small = tmp_path / "small"
    BertModel(tiny_config("bert", vocab_size=10)).save_pretrained(small)
    tiny_tokenizer.save_pretrained(small)
    arguments = [*command, "--tower_a", str(small), "--tower_b", str(small), "--constraint", str(small)]
    assert "gives ids up to" in failed(capsys, arguments)


def test_import_of_a_reference_checkpoint(tmp_path, tiny_tokenizer, capsys):
    """The release's state dict as a .bin with DataParallel's prefix and the old position_ids buffers."""
    from safetensors.torch import load_file

    golden = GOLDEN / "cacse" / "bert_begin7_constraint4"
    state = {
        f"module.{name}": tensor for name, tensor in load_file(golden / "reference_state_dict.safetensors").items()
    }
    state["module.Submodel_1.embeddings.position_ids"] = torch.arange(80)[None]
    torch.save(state, tmp_path / "pytorch_model.bin")
    tower = tmp_path / "tower"
    tower.mkdir()
    (tower / "config.json").write_text((golden / "submodel1" / "config.json").read_text())
    tiny_tokenizer.save_pretrained(tower)
    arguments = ["--checkpoint", str(tmp_path / "pytorch_model.bin"), "--tower_a", str(tower)]
    out = ["--output_dir", str(tmp_path / "imported")]
    assert run(import_reference.main, [*arguments, *out]) == 0
    said = capsys.readouterr().out
    assert "position_ids" in said and "missing: 0" in said and "left over: 0" in said
    assert type(AutoModel.from_pretrained(tmp_path / "imported")).__name__ == "CacseBertModel"
    wrong = failed(capsys, [*arguments, *out, "--constraint_layers", "3"], command=import_reference.main)
    assert "left over" in wrong


def test_refuses_a_pickle(tmp_path, capsys):
    import pickle

    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    (tmp_path / "evil.bin").write_bytes(pickle.dumps(Payload()))
    config = str(GOLDEN / "cacse" / "bert_begin7_constraint4" / "submodel1")
    arguments = ["--checkpoint", str(tmp_path / "evil.bin"), "--tower_a", config, "--output_dir", str(tmp_path / "out")]
    assert "no readable checkpoint" in failed(capsys, arguments, command=import_reference.main)
    assert not (tmp_path / "touched").exists()


def test_help_and_unknown_commands(capsys):
    assert main.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in main.COMMANDS)
    assert main.main(["trian"]) == 2
    assert "did you mean train?" in capsys.readouterr().err
    for name in main.COMMANDS:
        assert main.main([name, "--help"]) == 0
        assert "--" in capsys.readouterr().out


def test_overwriting_spares_what_no_run_wrote(command, tmp_path):
    """Notes and even the training text lie in the output folder of a finished run."""
    assert run(train.main, command) == 0
    folder = tmp_path / "run"
    (folder / "notes.md").write_text("mine")
    text = folder / "my_text.txt"
    text.write_text(Path(command[command.index("--train_file") + 1]).read_text())
    assert run(train.main, [*command, "--train_file", str(text), "--overwrite_output_dir"]) == 0
    assert (folder / "notes.md").read_text() == "mine" and text.is_file()


def test_a_failed_export_keeps_the_weights(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("cacse_trainer.encoding.saving.TOLERANCE", -1.0)
    assert run(train.main, [*command, "--save_strategy", "no", "--load_best_model_at_end", "false"]) == 1
    assert "differ from the model's" in capsys.readouterr().err
    assert type(AutoModel.from_pretrained(tmp_path / "run")).__name__ == "CacseBertModel"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--cascade_start_layer", "1", "--resume_with_changes"], "the checkpoint lacks"),
        (["--cascade_start_layer", "3"], "cascade_start_layer was 2, is 3"),
        (["--cascade_loss_weight", "0"], "cascade_loss_weight was 1.0, is 0.0"),
    ],
)
def test_resuming_another_model_is_refused(command, tmp_path, capsys, change, words):
    assert run(train.main, [*command, "--save_total_limit", "9", "--export", "false"]) == 0
    (tmp_path / "run" / "training_report.json").unlink()
    assert words in failed(capsys, [*command, "--resume_from_checkpoint", "last", *change])


def test_damaged_weights_are_one_line(command, tmp_path, capsys):
    assert run(train.main, [*command, "--save_total_limit", "9"]) == 0
    checkpoint = tmp_path / "run" / "checkpoint-4"
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    (tmp_path / "run" / "training_report.json").unlink()
    assert "is damaged (model.safetensors has 5000 bytes" in failed(
        capsys, [*command, "--resume_from_checkpoint", str(checkpoint)]
    )
    exporting = ["--checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "out")]
    assert "checkpoint" in failed(capsys, exporting, command=export.main)
    tower = tmp_path / "tower"
    tower.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tower / name).write_text((tmp_path / "run" / "export" / "tower_a" / name).read_text())
    (tower / "model.safetensors").write_bytes(b"\x00" * 100)
    assert "is damaged" in failed(capsys, [*command, "--tower_a", str(tower), "--overwrite_output_dir"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--learning_rate", "-1"], "learning_rate must be a number from 0"),
        (["--learning_rate", "nan"], "must be a finite number"),
        (["--per_device_train_batch_size", "1"], "no negatives"),
        (["--eval_max_seq_length", "1000"], "beyond the model's 64 positions"),
        (["--max_seq_length", "2"], "leaves no room"),
        (["--metric_for_best_model", "foo", "--load_best_model_at_end", "false"], "the dev sets give"),
        (["--report_to", "wandb"], "settings"),
        (["--config"], "expected one argument"),
    ],
)
def test_more_wrong_settings(command, capsys, change, words):
    assert words in failed(capsys, [*command, *change])


def test_three_columns_are_refused_before_training(command, tmp_path, capsys):
    rows = tmp_path / "triplets.csv"
    rows.write_text("sent0,sent1,hard_neg\n" + "a man,the man,red\nblue cat,big cat,dog\n" * 8)
    assert "choose one or two with text_columns" in failed(capsys, [*command, "--train_file", str(rows)])


def test_export_and_import_refuse_a_file_as_folder(command, tmp_path, capsys):
    assert run(train.main, command) == 0
    (tmp_path / "file").write_text("")
    arguments = ["--checkpoint", str(tmp_path / "run"), "--output_dir", str(tmp_path / "file")]
    assert "cannot be written" in failed(capsys, arguments, command=export.main)
