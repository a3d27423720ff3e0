"""Retrieval sets wherever graded pairs are taken: they choose a checkpoint, judge a run, are evaluated and compared."""

import json
import shutil

import numpy as np
import pytest
from datasets import Dataset

from cacse_trainer import SentenceEncoder
from cacse_trainer.cli.main import main
from cacse_trainer.data.retrieval import load_retrieval
from cacse_trainer.encoding.sentence_transformers import write_modules
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.dev_sets import GradedPairs, Retrieval, load_named
from tests.conftest import WORDS

CHOSEN = ("ndcg@10", "mrr@10", "recall@1", "recall@100")


@pytest.fixture
def docs(tmp_path):
    """A file of 40 queries and documents that share some words."""
    random = np.random.default_rng(5)
    lines = ["query,document"]
    for _ in range(40):
        words = random.choice(WORDS, size=8, replace=False).tolist()
        lines.append(f"{' '.join(words[:4])},{' '.join(words[2:])}")
    path = tmp_path / "docs.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def start(tiny_towers, tmp_path):
    """A tiny encoder's folder of mean pooling."""
    folder = tmp_path / "start"
    shutil.copytree(tiny_towers("bert")[0], folder)
    write_modules(folder, pooling="mean", hidden_size=32, max_seq_length=32)
    return str(folder)


@pytest.fixture
def train(text_file, start, tmp_path):
    """``train(*flags)`` → the report of four steps."""

    def call(*flags: str) -> dict:
        folder = tmp_path / "run"
        given = ["--model", start, "--train_file", str(text_file), "--output_dir", str(folder), "--bf16", "false"]
        given += ["--max_steps", "4", "--eval_steps", "2", "--per_device_train_batch_size", "8", "--use_cpu", "true"]
        assert main(["train", *given, "--overwrite_output_dir", *flags]) == 0
        return json.loads((folder / "training_report.json").read_text())

    return call


def test_a_run_is_chosen_and_judged_by_it(train, docs, start, dev_file, tmp_path, caplog, capsys):
    report = train("--dev_file", f"docs={docs}", f"mine={dev_file}", "--test_file", f"held={docs}")
    assert report["metric"] == "docs_ndcg@10"
    by_start = Retrieval(load_retrieval(docs)).read(SentenceEncoder(start, device="cpu").embedder).scores
    assert report["baseline"] == pytest.approx(by_start["ndcg@10"])
    assert report["best"] == max(point["value"] for point in report["curve"] if point["step"] > 0)
    assert report["exported"]["encoder"]["held"] == pytest.approx(report["verdict"]["trained"], abs=1e-6)
    assert report["verdict"]["metric"] == "ndcg@10" and report["verdict"]["low"] <= report["verdict"]["high"]
    logged = {key for entry in report["log_history"] for key in entry}
    assert {f"eval_docs_{name}" for name in CHOSEN} <= logged and "eval_mine_spearman" in logged
    assert f"docs {report['best']:.2f} (" in caplog.text
    card = (tmp_path / "run/export/encoder/README.md").read_text()
    assert "| docs (nDCG@10) |" in card and "cosine_ndcg@10" in card and "| mine (ρ) |" in card
    page = (tmp_path / "run/report.html").read_text()
    assert "docs: nDCG@10 ×100" in page and "mine: Spearman ×100" in page
    assert "held (nDCG@10, held out)" in capsys.readouterr().out


def test_another_metric_chooses(train, docs, start, text_file, tmp_path, capsys):
    report = train("--dev_file", f"docs={docs}", "--metric_for_best_model", "docs_mrr@10")
    by_start = Retrieval(load_retrieval(docs)).read(SentenceEncoder(start, device="cpu").embedder).scores
    assert report["metric"] == "docs_mrr@10" and report["baseline"] == pytest.approx(by_start["mrr@10"])
    wrong = ["--model", start, "--train_file", str(text_file), "--metric_for_best_model", "docs_spearman", "--check"]
    assert main(["train", *wrong, "--dev_file", f"docs={docs}", "--output_dir", str(tmp_path / "no")]) == 2
    assert "the dev sets give docs_ndcg@10, docs_mrr@10" in capsys.readouterr().err


def test_trainer_takes_a_retrieval_set(make_trainer, docs):
    trainer = make_trainer(pairs={"docs": load_retrieval(docs)}, metric_for_best_model=None, max_steps=2)
    assert trainer.args.metric_for_best_model == "docs_ndcg@10"
    trainer.train()
    trained = [entry for entry in trainer.state.log_history if "eval_docs_ndcg@10" in entry and entry["step"] > 0]
    assert trainer.state.best_metric == max(entry["eval_docs_ndcg@10"] for entry in trained)
    assert set(CHOSEN) <= {key.removeprefix("eval_") for key in trainer.evaluate(load_retrieval(docs))}


def test_kinds_are_known_by_their_columns(docs, dev_file, tmp_path):
    found = load_named([str(docs), f"mine={dev_file}"], "dev_file")
    assert [type(one) for one in found.values()] == [Retrieval, GradedPairs] and list(found) == ["docs", "mine"]
    path = tmp_path / "other.csv"
    path.write_text("left,right\na,b\n")
    with pytest.raises(UserError, match=r"no columns sentence1, sentence2 and score .*query and document"):
        load_named([str(path)], "dev_file")


def test_evaluated_and_compared(docs, start, tiny_towers, dev_file, tmp_path, capsys):
    second = tmp_path / "second"
    shutil.copytree(tiny_towers("bert")[1], second)
    write_modules(second, pooling="mean", hidden_size=32, max_seq_length=32)

    def evaluate(model, out, *flags, text=docs):
        sets = ["--dev_file", f"docs={text}", f"mine={dev_file}"]
        return main(["evaluate", "--model", str(model), *sets, "--output_dir", str(out), "--device", "cpu", *flags])

    for model, out in ((start, "a"), (second, "b")):
        assert evaluate(model, tmp_path / out) == 0
    assert "| ndcg@10 | mrr@10 | recall@1 | recall@100 |" in " ".join(capsys.readouterr().out.split())
    found = json.loads((tmp_path / "a/results.json").read_text())["tasks"]
    answers = Retrieval(load_retrieval(docs)).read(SentenceEncoder(start, device="cpu").embedder)
    assert {name: found["docs"][name] for name in CHOSEN} == pytest.approx(answers.scores)
    assert found["docs"]["n"] == 40 and found["docs"]["documents"] == 40 and "spearman" in found["mine"]
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path / "c.json")]) == 0
    compared = json.loads((tmp_path / "c.json").read_text())
    assert all(compared[name]["low"] <= compared[name]["difference"] <= compared[name]["high"] for name in compared)
    other = tmp_path / "other.csv"
    other.write_text("\n".join(docs.read_text().splitlines()[:21]) + "\n")
    assert evaluate(start, tmp_path / "b", "--overwrite", text=other) == 0
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "docs was scored on two different sets" in capsys.readouterr().err
    assert evaluate(start, tmp_path / "a", text=other) == 0  # another set by the name is scored anew
    assert json.loads((tmp_path / "a/results.json").read_text())["tasks"]["docs"]["n"] == 20


def test_public_dict_of_pairs_stays(make_trainer, dev_file):
    pairs = Dataset.from_dict({"sentence1": ["a dog", "a cat"], "sentence2": ["the dog", "man"], "score": [4.0, 0.0]})
    assert "eval_x_spearman" in make_trainer().evaluate({"x": pairs})
