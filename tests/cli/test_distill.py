"""`cacse-trainer distill` on tiny encoders: what a run leaves behind, cache, resume, weighted teachers, wrong input."""

import json
import shutil

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from cacse_trainer.cli import distill, export
from cacse_trainer.cli.common import run
from cacse_trainer.runs.distill import teacher_choices, unused_settings
from cacse_trainer.runs.methods import settle
from cacse_trainer.settings.arguments import CacseTrainingArguments, DataArguments
from cacse_trainer.settings.distillation import DistillationArguments
from cacse_trainer.settings.recipes import RecipeParser, parse_run
from cacse_trainer.settings.resources import find_recipe, recipe_names
from tests.tolerances import assert_near

KINDS = [DistillationArguments, DataArguments, CacseTrainingArguments]


@pytest.fixture
def command(tmp_path, tiny_towers, text_file, dev_file):
    """The arguments of a small run; its output folder is tmp_path/run."""
    a, b, student = tiny_towers("bert")
    return [
        *("--student", student, "--teachers", f"path={a}", f"path={b}", "--dropout", "0.1"),
        *("--train_file", str(text_file), "--dev_file", f"stsb={dev_file}", "--max_steps", "4"),
        *("--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps", "--save_steps", "2"),
        *("--save_total_limit", "9", "--load_best_model_at_end", "true", "--metric_for_best_model", "stsb_spearman"),
        *("--per_device_train_batch_size", "8", "--learning_rate", "1e-3", "--logging_steps", "1"),
        *("--bf16", "false", "--teacher_bf16", "false"),
        *("--report_to", "none", "--use_cpu", "true", "--disable_tqdm", "true", "--output_dir", str(tmp_path / "run")),
    ]


def test_a_run_leaves_the_student_and_its_report(command, tmp_path, capsys):
    library = pytest.importorskip("sentence_transformers")
    assert run(distill.main, command) == 0
    folder = tmp_path / "run"
    report = json.loads((folder / "training_report.json").read_text(), parse_constant=pytest.fail)
    assert [point["step"] for point in report["curve"]] == [0, 2, 4]
    assert len(report["teacher"]["encoders"]) == 2 and isinstance(report["teacher"]["scores"]["stsb"], float)
    assert {"loss_contrastive", "loss_distance"} <= {key for entry in report["log_history"] for key in entry}
    assert report["run"]["effective_negatives"] == 14
    assert report["exported"]["student"]["stsb"] == pytest.approx(report["best"], abs=1e-4)
    student = AutoModel.from_pretrained(folder).eval()
    plain = AutoModel.from_pretrained(folder / "export" / "student").eval()
    assert type(plain).__name__ == "BertModel" and plain.config.hidden_dropout_prob == 0.0
    assert student.encoder.config.hidden_dropout_prob == 0.1
    sentences = ["a man is playing the guitar", "the dog", ""]
    inputs = AutoTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="pt")
    expected = student.embed(**inputs).detach().numpy()
    loaded = library.SentenceTransformer(str(folder / "export" / "student"), device="cpu")
    assert_near(loaded.encode(sentences), expected)
    # a checkpoint exports the same way
    checkpoint = next(folder.glob("checkpoint-*"))
    assert run(export.main, ["--checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "again")]) == 0
    assert {path.name for path in (tmp_path / "again").iterdir()} == {"student"}


def test_cached_run_and_resumed_run_equal_the_plain_one(command, tmp_path):
    command = [*command, "--optim", "sgd"]  # Adam makes whole steps of a gradient that is rounding only
    assert run(distill.main, command) == 0
    whole = AutoModel.from_pretrained(tmp_path / "run").state_dict()
    cached = [*command, "--teacher_cache", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "cached")]
    assert run(distill.main, cached) == 0
    assert len(list((tmp_path / "cache").glob("teacher_*.npy"))) == 1
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    (tmp_path / "run" / "training_report.json").unlink()
    assert run(distill.main, [*command, "--resume_from_checkpoint", "last"]) == 0
    resumed = AutoModel.from_pretrained(tmp_path / "run").state_dict()
    assert all(torch.equal(whole[name], tensor) for name, tensor in resumed.items())
    of_cache = AutoModel.from_pretrained(tmp_path / "cached").state_dict()
    assert_near(*(torch.cat([tensor.flatten() for tensor in state.values()]) for state in (of_cache, whole)))


def test_a_ranking_of_wider_teachers(command, tmp_path, tiny_towers):
    """Cached vectors of both teachers, a head in training only, no projection."""
    a, wide = tiny_towers("bert")[0], tiny_towers("bert", layers=2, hidden_size=48)[0]
    taught = [*command, "--teachers", f"path={a},weight=0.3", f"path={wide},pooling=mean,weight=0.7"]
    taught += ["--objective", "listnet", "--pooling", "cls", "--mlp_only_train", "true", "--optim", "sgd"]
    assert run(distill.main, taught) == 0
    folder = tmp_path / "run"
    report = json.loads((folder / "training_report.json").read_text(), parse_constant=pytest.fail)
    assert {"loss_contrastive", "loss_consistency", "loss_ranking"} <= {k for e in report["log_history"] for k in e}
    assert report["run"]["effective_negatives"] == 7 and isinstance(report["teacher"]["scores"]["stsb"], float)
    assert report["exported"]["student"]["stsb"] == pytest.approx(report["best"], abs=1e-4)
    student = AutoModel.from_pretrained(folder)
    assert student.config.mlp_only_train and "projection_head.dense.weight" in student.state_dict()
    plain = AutoModel.from_pretrained(folder / "export" / "student")
    assert type(plain).__name__ == "BertModel"


def test_projection_to_another_width(command, tmp_path, tiny_towers):
    wide = tiny_towers("bert", hidden_size=48)[0]
    run_of = [*command, "--student", wide, "--output_dir", str(tmp_path / "wide")]
    assert run(distill.main, run_of) == 2
    assert run(distill.main, [*run_of, "--project_to_teacher", "true"]) == 0
    assert AutoModel.from_pretrained(tmp_path / "wide").teacher_projection.weight.shape == (32, 48)
    assert AutoModel.from_pretrained(tmp_path / "wide" / "export" / "student").config.hidden_size == 48


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--teacher", "x"], "either teacher (one) or teachers"),
        (["--teachers", "path=no/such-model"], "no/such-model"),
        (["--teachers", "weight=1"], "path=…"),
        (["--contrastive_weight", "2"], "within [0, 1], got 2.0"),
        (["--teacher_bf16", "maybe"], "bf16 must be"),
        (["--teacher_cache", "x", "--streaming", "true"], "no stream"),
        (["--teacher_cache", "x/cache", "--output_dir", "x"], "lies in output_dir"),
        (["--pooling", "avg_first_last"], "has no form that sentence-transformers loads"),
        (["--objective", "rank"], "rank"),
        (
            ["--ranking_weight", "2"],
            "ranking_weight has no effect with objective vectors; it belongs to listnet and li",
        ),
        (
            ["--objective", "listmle", "--teacher_temperature", "0.1"],
            "teacher_temperature has no effect with",
        ),
        (["--objective", "listnet", "--contrastive_weight", "0.1"], "contrastive_weight has no effect with objective"),
        (["--objective", "listnet", "--project_to_teacher", "true"], "project_to_teacher has no effect with objective"),
        (["--objective", "listnet", "--ranking_temperature", "0"], "ranking_temperature must be positive, got 0.0"),
        (
            ["--objective", "listnet", "--pooling", "mean", "--mlp_only_train", "true"],
            "mlp_only_train has no effect with pooling mean",
        ),
        (["--objective", "listnet", "--teachers", "path=A,weight=-1"], "weighed by numbers from 0 on"),
    ],
)
def test_wrong_input_is_one_line(command, capsys, tiny_towers, change, words):
    change = [flag.replace("path=A", f"path={tiny_towers('bert')[0]}") for flag in change]
    assert run(distill.main, [*command, *change]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and words in error[0]


@pytest.mark.parametrize(("recipe", "flag"), [("teachers: [A, B]", "--teacher"), ("teacher: A", "--teachers")])
def test_the_teacher_of_a_flag_replaces_the_recipe_s(tmp_path, recipe, flag):
    (tmp_path / "own.yaml").write_text(f"{recipe}\noutput_dir: {tmp_path}\n")
    parsed = parse_run(RecipeParser(KINDS, prog="distill"), ["--config", str(tmp_path / "own.yaml"), flag, "C"])
    assert [choice.path for choice in teacher_choices(parsed.groups[0], parsed)] == ["C"]
    assert not {"teacher", "teachers"} & set(parsed.from_recipe)


def test_recipes(tmp_path):
    """Published settings; a weighted list in YAML becomes choices."""
    published = {
        "cacse_bert": (0.01, 1e-5, 128, 0.1, None),
        "cacse_uc_bert": (0.1, 8.5e-6, 128, 0.015, [0.25, 0.75]),
        "cacse_roberta": (0.01, 1e-5, 256, 0.1, None),
        "cacse_uc_roberta": (0.1, 1.5e-5, 128, 0.015, [2.2 / 7, 4.8 / 7]),
        "tncse_bert": (0.01, 1e-5, 128, 0.1, None),
        "tncse_uc_bert": (0.1, 1.5e-5, 128, 0.015, [0.3, 0.7]),
        "tncse_roberta": (0.01, 1e-5, 256, 0.1, None),
        "tncse_uc_roberta": (0.1, 1.5e-5, 128, 0.015, [0.25, 0.75]),
    }
    assert {f"distill/{name}" for name in (*published, "quickstart", "rank_bert", "rank_minilm")} == {
        name for name in recipe_names() if name.startswith("distill/")
    }
    for name, (weight, rate, batch, dropout, weights) in published.items():
        settings, data, args = parse_run(RecipeParser(KINDS, prog="distill"), ["--config", f"distill/{name}"]).groups
        assert (settings.contrastive_weight, args.learning_rate) == (weight, rate), name
        assert (args.per_device_train_batch_size, settings.dropout, data.max_seq_length) == (batch, dropout, 64)
        assert str(args.lr_scheduler_type.value) == "constant" and args.eval_steps == 100 and args.num_train_epochs == 1
        assert [t.weight for t in settings.teachers or []] == pytest.approx(weights or [])
        assert f"--config distill/{name} " in find_recipe(f"distill/{name}").read_text()


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("distill/")])
def test_no_recipe_holds_what_nothing_reads(name):
    parsed = parse_run(RecipeParser(KINDS, prog="distill"), ["--config", name])
    before = list(parsed.from_recipe)
    settings = parsed.groups[0]
    settings.pooling = settings.pooling or "mean"  # of a start that states it
    settle(parsed, unused_settings(settings))
    assert parsed.from_recipe == before


def test_ranking_recipes():
    """The public reimplementation's settings; its mean over 128 places is our sum by 1/128."""
    settings, data, args = parse_run(RecipeParser(KINDS, prog="distill"), ["--config", "distill/rank_bert"]).groups
    assert (settings.objective, settings.ranking_weight * args.per_device_train_batch_size) == ("listmle", 1)
    assert (settings.consistency_weight, settings.mlp_only_train, settings.pooling) == (1, True, "cls")
    assert (args.learning_rate, data.max_seq_length, args.eval_steps, args.num_train_epochs) == (3e-5, 32, 125, 1)
    assert [teacher.weight for teacher in settings.teachers] == [0.33, 0.67]
    flags = ["--config", "distill/rank_bert", "--objective", "vectors"]
    parsed = parse_run(RecipeParser(KINDS, prog="distill"), flags)
    settle(parsed, unused_settings(parsed.groups[0]), ("objective", "pooling"))
    assert not {"ranking_weight", "mlp_only_train", "consistency_weight"} & set(parsed.from_recipe)
