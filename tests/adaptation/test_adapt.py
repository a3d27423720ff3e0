"""`adapt` from raw text to a verdict, on a tiny model."""

import json
import random

import numpy as np
import pytest
import torch
from transformers import AutoConfig, BertForSequenceClassification, BertModel

from cacse_trainer import SentenceEncoder
from cacse_trainer.adaptation import run as adaptation
from cacse_trainer.cli.main import main
from cacse_trainer.models.configuration_sentence_embedding import SentenceEmbeddingConfig
from cacse_trainer.models.cross_encoder import CrossEncoder
from tests.conftest import WORDS, tiny_config


@pytest.fixture
def text(tmp_path):
    """Documents of a tiny vocabulary: the title has three words of the body."""
    draws = random.Random(0)
    records = []
    for _ in range(160):
        words = draws.sample(WORDS, 8)
        parts = (words[:4], words[4:], draws.sample(WORDS, 4))
        body = " ".join(f"{' '.join(part).capitalize()}." for part in parts)
        records.append({"title": " ".join(draws.sample(words, 3)), "body": body})
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    return path


@pytest.fixture
def model(tiny_towers, tmp_path):
    """A tiny encoder that states mean pooling."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    word = Transformer(str(tiny_towers("bert")[0]))
    folder = tmp_path / "start"
    SentenceTransformer(modules=[word, Pooling(word.get_word_embedding_dimension(), "mean")]).save(str(folder))
    return folder


def flags(place, model, folder, **more) -> list[str]:
    given = {"text": place, "model": model, "output_dir": folder, "max_steps": 12, "per_device_train_batch_size": 16}
    given |= {"learning_rate": 1e-3, "use_cpu": True, "bf16": False, "logging_steps": 4, "disable_tqdm": True, **more}
    return ["adapt", *(f"--{name}={value}" for name, value in given.items()), "--json"]


def told(capsys, words: list[str]) -> dict:
    capsys.readouterr()
    code = main(words)
    out = capsys.readouterr()
    assert code == 0, out.err
    return json.loads(out.out)


def test_the_whole_road(text, model, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "out"
    found = told(capsys, flags(text, model, folder))
    verdict = found["verdict"]
    names = {path.name for path in folder.iterdir()}
    better = verdict["outcome"] == "helped"
    assert {"plan.json", "rows.jsonl", "dev", "test", "training", "adaptation.json", "report.html"} <= names
    assert found["encoder"] in names and ("encoder" in names) == better
    assert found["recommended"] == (str(folder / "encoder") if better else "start")
    assert found["plan"]["rows"] == {"title": 154, "cloze": 38} and found["plan"]["steps"] == 12
    assert found["forms"][0]["name"].startswith("the start") and len(found["shares"]) == 3
    assert verdict["start"] == pytest.approx(found["forms"][0]["scores"]["ndcg@10"])
    assert found["watched"]["general"][0] == pytest.approx(100, abs=0.5)

    page = (folder / "report.html").read_text()
    assert f"BM25, by words alone: {found['dev']['bm25']['ndcg@10']:.2f}" in page
    assert verdict["sentence"] in page.replace("&#39;", "'")
    for way in ("gained", "lost"):
        assert (f"Queries that {way} most" in page) == bool(verdict[way])
    card = (folder / found["encoder"] / "README.md").read_text()
    assert verdict["sentence"] in card and "## Scores" not in card and "## Training" in card
    weights = BertModel.from_pretrained(folder / found["encoder"]).state_dict()
    share = found["share"]
    parts = [BertModel.from_pretrained(one).state_dict() for one in (model, folder / "training" / "export" / "encoder")]
    for name, tensor in weights.items():
        assert np.allclose(tensor, (1 - share) * parts[0][name] + share * parts[1][name], atol=1e-6), name

    assert main(flags(text, model, folder)) == 2
    assert "finished adaptation" in capsys.readouterr().err
    # a kill after the training: the second call only judges, and to the same verdict
    (folder / "adaptation.json").unlink()
    monkeypatch.setattr(adaptation, "train", None)
    assert told(capsys, flags(text, model, folder, resume_with_changes=True))["verdict"] == verdict
    monkeypatch.undo()
    assert main(flags(text, model, folder, learning_rate=1e-4)) == 2
    assert "other settings" in capsys.readouterr().err
    assert told(capsys, flags(text, model, folder, overwrite_output_dir=True))["verdict"] == verdict


def test_a_training_that_does_not_rise_ends_early_where_that_is_asked_for_and_is_told(text, model, tmp_path, capsys):
    folder = tmp_path / "out"
    given = flags(text, model, folder, learning_rate=0.0, max_steps=20, shares=1, early_stopping_patience=3)
    assert main(given[:-1]) == 0
    said = "The training ended at step 16 of 20: the dev part had not risen since step 4."
    assert said in capsys.readouterr().out and said in (folder / "report.html").read_text()
    found = json.loads((folder / "adaptation.json").read_text())
    assert found["training"] == {"steps": 16, "best_step": 4} and found["plan"]["steps"] == 20


@pytest.mark.parametrize(("rows", "gently"), [("cloze=1", True), ("title=1", False)])
def test_rows_of_sentences_alone_have_their_own_rate_and_random_batches(text, model, tmp_path, caplog, rows, gently):
    folder = tmp_path / "out"
    caplog.set_level("INFO")
    assert main(flags(text, model, folder, rows=rows, sentence_learning_rate=1e-4, max_steps=4)) == 0
    report = json.loads((folder / "training" / "training_report.json").read_text())
    assert report["settings"]["learning_rate"] == (1e-4 if gently else 1e-3)
    assert ("seeks the neighbours" in caplog.text) != gently


@pytest.mark.parametrize(
    ("more", "steps", "best"),
    [({"early_stopping_patience": 1}, 8, True), ({}, 20, False), ({"load_best_model_at_end": "true"}, 20, True)],
)
def test_the_last_state_is_the_result_unless_a_user_wants_the_best(text, model, tmp_path, capsys, more, steps, best):
    folder = tmp_path / "out"
    given = flags(text, model, folder, learning_rate=0.0, max_steps=20, shares=1, **more)
    assert told(capsys, given)["training"]["steps"] == steps
    report = json.loads((folder / "training" / "training_report.json").read_text())
    assert report["settings"]["load_best_model_at_end"] == best


def test_patience_and_a_budget(text, model, tmp_path, capsys):
    given = flags(text, model, tmp_path / "out", max_steps=-1, budget=20, early_stopping_patience=2)
    assert told(capsys, [*given, "--check"])["plan"]["seconds_a_step"] > 0


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "place", [pytest.param("save_retrieval", marks=SLOW), "general_pairs", pytest.param("run_training", marks=SLOW)]
)
def test_an_end_anywhere_costs_nothing(text, model, tmp_path, capsys, monkeypatch, place):
    def killed(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(adaptation, place, killed)
    folder = tmp_path / "out"
    assert main(flags(text, model, folder, max_steps=2)) == 130
    rows = (folder / "rows.jsonl").read_bytes()
    monkeypatch.undo()
    told(capsys, flags(text, model, folder, max_steps=2))
    assert (folder / "rows.jsonl").read_bytes() == rows


def test_check_trains_nothing(text, model, tmp_path, capsys):
    folder = tmp_path / "out"
    assert main([*flags(text, model, folder, max_steps=-1, budget=20)[:-1], "--check"]) == 0
    out = capsys.readouterr().out
    assert "title: 92 rows, such as" in out and "→" in out and "minutes in all" in out and "nothing was trained" in out
    assert not list(folder.iterdir())


def test_own_queries_choose_and_judge(text, model, tmp_path, capsys):
    records = [json.loads(line) for line in text.read_text().splitlines()]
    queries = tmp_path / "queries.jsonl"
    queries.write_text("\n".join(json.dumps({"query": r["title"], "document": r["body"]}) for r in records[:60]))
    found = told(capsys, flags(text, model, tmp_path / "out", dev_queries=queries, max_steps=2, shares=1))
    assert (found["dev"]["queries"], found["test"]["queries"]) == (30, 30) and found["shares"].keys() == {"1"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"text": "gone.txt"}, "no such file"),
        ({"train_file": "x.txt"}, "train_file has no effect here"),
        ({"rows": "titel=1"}, "titel"),
        ({"rows": "title"}, "KIND=NUMBER"),
        ({"budget": 0}, "budget must be above 0"),
        ({"sentence_learning_rate": 0}, "sentence_learning_rate must be above 0"),
        ({"test_queries": "q.csv"}, "dev_queries"),
        ({"budget": 5}, "give one of them"),
        ({"num_train_epochs": 2}, "num_train_epochs has no effect"),
        ({"evaluation": "none"}, "dev part"),
        ({"shares": 2}, "shares must be"),
        ({"max_steps": -1, "budget": 0.01}, "give at least"),
        ({"export": False}, "exports and saves"),
        ({"save_strategy": "no"}, "exports and saves"),
        ({"metric_for_best_model": "spearman"}, "nDCG@10 on the dev part chooses"),
        ({"resume_from_checkpoint": "checkpoint-1"}, "goes on by itself"),
        ({"push_to_hub": True}, "the verdict stands at the end"),
        ({"there": "en-de"}, "give both"),
        ({"cross_encoder": "gone"}, "give mined_negatives, too"),
        ({"cross_encoder": "gone", "mined_negatives": 1}, "cross-encoder gone"),
        ({"objective": "margin_mse", "mined_negatives": 1}, "give --cross_encoder, too"),
        ({"teachers": "path=x"}, "teachers has no effect here"),
        ({"question_prompt": "gone.txt"}, "name that, too"),
        ({"questions": 0}, "questions must be at least 1"),
        ({"general_text": "gone.txt"}, "no such file"),
        ({"model": "/nowhere/at/all"}, "no such folder"),
        ({"rows": "heading=1", "check": True}, "gives no rows of the kinds asked for"),
        ({"rows": "questions=1", "check": True}, "no share of a kind"),
        ({"output_dir": "."}, "holds what"),
    ],
)
def test_bad_settings_are_one_line(text, model, tmp_path, capsys, monkeypatch, more, said):
    monkeypatch.chdir(tmp_path)
    assert main(flags(**{"place": text, "model": model, "folder": tmp_path / "out", **more})) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and said in error


def test_a_cross_encoder_judges_the_negatives_and_its_scores_are_learned(
    text, model, tmp_path, capsys, tiny_tokenizer, caplog
):
    """Every row has its scores, also of a negative that was drawn; none of them was mined above the positive."""
    judge = tmp_path / "judge"
    torch.manual_seed(0)
    BertForSequenceClassification(tiny_config("bert", layers=2, num_labels=1)).save_pretrained(judge)
    tiny_tokenizer.save_pretrained(judge)
    given = flags(text, model, tmp_path / "out", cross_encoder=judge, mined_negatives=2, max_steps=2, shares=1)
    found = told(capsys, [*given, "--objective=margin_mse"])
    assert found["plan"]["steps"] == 2
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    score = CrossEncoder(str(judge))
    for row in rows[:4]:
        texts = [row[name] for name in ("positive", "negative_1", "negative_2")]
        assert np.allclose(score([(row["anchor"], text) for text in texts]), row["scores"], atol=1e-5)
    history = json.loads((tmp_path / "out" / "training" / "training_report.json").read_text())["log_history"]
    assert history and "mined: " in caplog.text
    given = flags(text, model, tmp_path / "timed", cross_encoder=judge, mined_negatives=1, max_steps=-1, budget=60)
    assert told(capsys, [*given, "--objective=margin_mse", "--check"])["plan"]["seconds_a_step"] > 0


def test_single_sentences_are_refused_with_what_to_give(model, tmp_path, capsys):
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(f"a man is playing {i}" for i in range(300)))
    assert main(flags(lines, model, tmp_path / "out")) == 2
    assert "--dev_queries" in capsys.readouterr().err


def test_the_output_among_the_text_is_not_read(text, model, tmp_path, capsys, monkeypatch):
    """A second call in the same folder has the same text, and goes on."""

    def killed(*_args):
        raise KeyboardInterrupt

    place = tmp_path / "documents"
    place.mkdir()
    text.rename(place / "text.jsonl")
    monkeypatch.chdir(place)
    monkeypatch.setattr(adaptation, "run_training", killed)
    for _ in range(2):
        assert main(flags(".", model, "out", max_steps=2)) == 130


def test_check_says_what_would_be_done_whatever_the_folder_holds(text, model, tmp_path, capsys, monkeypatch):
    def killed(*_args):
        raise KeyboardInterrupt

    folder = tmp_path / "out"
    monkeypatch.setattr(adaptation, "run_training", killed)
    assert main(flags(text, model, folder, max_steps=2)) == 130
    plan = (folder / "plan.json").read_bytes()
    for more in ({}, {"learning_rate": 1e-4, "overwrite_output_dir": True}):
        assert main([*flags(text, model, folder, max_steps=2, **more), "--check"]) == 0
    assert (folder / "plan.json").read_bytes() == plan


def test_check_of_rows_that_a_model_will_write(text, model, tmp_path, capsys):
    given = flags(text, model, tmp_path / "out", question_writer="gone", rows="questions=1")
    assert main([*given[:-1], "--check"]) == 0
    assert "questions: a model will write them" in capsys.readouterr().out


def test_queries_of_a_users_own_are_no_anchors(text, model, tmp_path, capsys, caplog):
    records = [json.loads(line) for line in text.read_text().splitlines()]
    queries = tmp_path / "queries.jsonl"
    queries.write_text(
        "\n".join(json.dumps({"query": r["title"].upper(), "document": r["body"]}) for r in records[:60])
    )
    found = told(capsys, [*flags(text, model, tmp_path / "out", dev_queries=queries, rows="title=1"), "--check"])
    assert 92 <= found["plan"]["counts"]["title"] <= 100 and "would give the answers away" in caplog.text


def test_a_training_s_own_checkpoint_is_no_start(text, model, tmp_path, capsys):
    """It loads, and would be trained, and only its export would be found to be another model."""
    folder = tmp_path / "run"
    SentenceEmbeddingConfig(encoder_config=AutoConfig.from_pretrained(model)).save_pretrained(folder)
    assert main(flags(text, folder, tmp_path / "out")) == 2
    assert "give the encoder that it exported" in capsys.readouterr().err


def test_a_folder_of_someone_else_is_left_alone(text, model, tmp_path, capsys):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("mine")
    assert main(flags(text, model, folder, overwrite_output_dir=True)) == 2
    assert (folder / "rows.jsonl").read_text() == "mine" and "no adaptation's" in capsys.readouterr().err


def test_the_result_loads_where_the_start_did(text, model, tmp_path, capsys):
    found = told(capsys, flags(text, model, tmp_path / "out", max_steps=2))
    encoder = SentenceEncoder(tmp_path / "out" / found["encoder"])
    from sentence_transformers import SentenceTransformer

    sentences = ["a man is playing", "the dog is big"]
    other = SentenceTransformer(str(tmp_path / "out" / found["encoder"])).encode(sentences)
    assert encoder.pooling == "mean"
    assert np.allclose(encoder.encode(sentences, normalize=False), other, atol=1e-5)


@pytest.mark.slow
def test_shuffled_titles_recommend_the_start(text, model, tmp_path, capsys):
    """Nothing can be learned: of 20 seeds at most one may be told that it was, as the interval is one of 95 %."""
    records = [json.loads(line) for line in text.read_text().splitlines()]
    kept = 0
    for seed in range(20):
        titles = [record["title"] for record in records]
        random.Random(seed).shuffle(titles)
        shuffled = [{"title": title, "body": record["body"]} for title, record in zip(titles, records, strict=True)]
        path = tmp_path / f"shuffled-{seed}.jsonl"
        path.write_text("\n".join(map(json.dumps, shuffled)))
        given = flags(path, model, tmp_path / f"out-{seed}", seed=seed, rows="title=1", shares=1)
        kept += told(capsys, given)["verdict"]["outcome"] != "helped"
    assert kept >= 19
