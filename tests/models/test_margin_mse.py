"""MarginMSE as an objective of training: rows with scores from every kind of file, by hand, resuming, refusals."""

import json

import datasets
import pytest
import torch
from safetensors.torch import load_file

from cacse_trainer import SentenceEmbeddingModel
from cacse_trainer.cli import train
from cacse_trainer.cli.common import run
from cacse_trainer.data.sentences import load_sentences_with_stats
from cacse_trainer.data.writers import write_rows
from cacse_trainer.errors import UserError
from cacse_trainer.losses import margin_mse_loss
from cacse_trainer.models.computing import ComputeSettings
from tests.conftest import WORDS

ROWS = [
    {
        "anchor": f"a {WORDS[i]} man",
        "positive": f"the {WORDS[i + 1]} man is",
        "negative_1": f"a dog {WORDS[i]}",
        "negative_2": "red",
        "scores": [2.5 + i / 4, 1.0, -0.25 * i],
    }
    for i in range(8)
]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_scores_are_read_from_what_mine_writes(tmp_path, kind):
    path = tmp_path / f"rows.{kind}"
    write_rows(datasets.Dataset.from_list(ROWS), path)
    rows, facts = load_sentences_with_stats(path, scored=True)
    assert rows.to_list() == ROWS and facts["columns"] == ["anchor", "positive", "negative_1", "negative_2"]
    assert "scores" not in load_sentences_with_stats(path)[0].column_names


@pytest.mark.parametrize(
    "scores",
    [[1.0, 2.0], "high", [1.0, 2.0, "x"], [1.0, 2.0, None], [1, 2, float("inf")], [1, 2, 1e39], [1, 2, 10**400]],
)
def test_other_scores_are_refused_with_their_row(tmp_path, scores):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "\n".join(json.dumps({**row, "scores": scores if i == 3 else [3, 2, 1]}) for i, row in enumerate(ROWS))
    )
    with pytest.raises(UserError, match=r"rows.jsonl, line 4: scores are .*: needed are 3 numbers"):
        load_sentences_with_stats(path, scored=True)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_scores_of_columns_in_another_order_are_refused(tmp_path, kind):
    path = tmp_path / f"rows.{kind}"
    write_rows(datasets.Dataset.from_list(ROWS), path)
    with pytest.raises(UserError, match="give --text_columns anchor positive negative_1 negative_2"):
        load_sentences_with_stats(path, ["anchor", "positive", "negative_2", "negative_1"], scored=True)


def test_a_row_without_scores_is_dropped(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "\n".join(json.dumps({**row, "scores": row["scores"] if i else None}) for i, row in enumerate(ROWS))
    )
    rows, facts = load_sentences_with_stats(path, scored=True)
    assert len(rows) == 7 and facts["blank_dropped"] == 1


def test_the_step_is_the_plain_formula_and_that_of_gradient_caching(masked_lm, make_trainer):
    gradients = []
    for size in (None, 3):
        torch.manual_seed(3)
        model = SentenceEmbeddingModel.from_encoder(masked_lm, pooling="mean", objective="margin_mse", dropout=0.0)
        trainer = make_trainer(model=model.double(), text=datasets.Dataset.from_list(ROWS))
        model.use(ComputeSettings(None, size))
        batch = trainer.data_collator(ROWS)
        margins = torch.tensor([[row["scores"][0] - score for score in row["scores"][1:]] for row in ROWS])
        assert torch.equal(batch["labels"], margins)
        loss, outputs = trainer.compute_loss(model.train(), batch, return_outputs=True)
        loss.backward()
        x = outputs.embeddings
        assert loss.item() == pytest.approx(margin_mse_loss(x[:, 0], x[:, 1], x[:, 2:], margins).item(), rel=1e-12)
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, value in gradients[0].items():
        assert (gradients[1][name] - value).abs().max() <= 1e-10 * value.abs().max().clamp(min=1.0), name
    with pytest.raises(UserError, match="needed are 3 numbers"):
        trainer.data_collator([{name: text for name, text in row.items() if name != "scores"} for row in ROWS])
    with pytest.raises(ValueError, match="learns margins"):
        model(**{name: ids for name, ids in batch.items() if name not in ("labels", "text_ids")})


@pytest.fixture
def command(tmp_path, masked_lm):
    path = tmp_path / "rows.jsonl"
    write_rows(datasets.Dataset.from_list(ROWS * 4), path)
    return [
        *("--model", masked_lm, "--pooling", "mean", "--objective", "margin_mse", "--train_file", str(path)),
        *("--evaluation", "none", "--max_steps", "4", "--save_steps", "2", "--save_total_limit", "2"),
        *("--per_device_train_batch_size", "8", "--learning_rate", "1e-3", "--bf16", "false", "--use_cpu", "true"),
        *("--disable_tqdm", "true", "--logging_steps", "1", "--report_to", "none", "--warmup_steps", "0"),
    ]


def test_a_run_learns_and_resumes_bit_by_bit(command, tmp_path):
    whole, other = tmp_path / "whole", tmp_path / "other"
    assert run(train.main, [*command, "--output_dir", str(whole)]) == 0
    history = json.loads((whole / "training_report.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert "hofstaetter2020marginmse" in (whole / "export" / "encoder" / "README.md").read_text()
    (whole / "checkpoint-2").rename(tmp_path / "kept")
    flags = ["--output_dir", str(other), "--resume_from_checkpoint", str(tmp_path / "kept")]
    assert run(train.main, [*command, *flags]) == 0
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, other))
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--text_columns", "anchor", "positive"], "objective margin_mse compares triplets"),
        (["--train_file", "PLAIN"], "plain.jsonl: no column 'scores'"),
        (["--streaming", "true"], "streaming reads no scores"),
        (["--hard_negative_weight", "1"], "hard_negative_weight has no effect with objective margin_mse"),
        (["--guide", "start"], "guide has no effect with objective margin_mse"),
    ],
)
def test_wrong_settings(command, tmp_path, capsys, flags, words):
    plain = tmp_path / "plain.jsonl"
    write_rows(datasets.Dataset.from_list(ROWS).remove_columns("scores"), plain)
    flags = [str(plain) if flag == "PLAIN" else flag for flag in flags]
    assert run(train.main, [*command, "--output_dir", str(tmp_path / "run"), *flags]) == 2
    assert words in capsys.readouterr().err
