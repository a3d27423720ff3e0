"""What a training chooses by a look at its text, what it keeps of a user's flags, and rows held out to judge by."""

import json
import logging
import shlex
from itertools import permutations

import pytest

from cacse_trainer.cli import train
from cacse_trainer.cli.common import run
from cacse_trainer.data import load_pairs, load_sentences
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.dev_sets import GradedPairs, Retrieval
from cacse_trainer.runs import choosing
from cacse_trainer.runs.held_out import hold_out
from tests.conftest import WORDS

FIRST = [f"the man number {number} is playing the guitar in the park" for number in range(240)]
SECOND = [f"a man plays music, says witness {number} of the house" for number in range(240)]


@pytest.fixture
def chosen(tmp_path, monkeypatch):
    """Writes columns to a file, and gives the settings chosen for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(choosing, "load_config", lambda name: None)

    def choose(flags=(), name="mine.csv", **columns):
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        if name.endswith(".txt"):
            text = "\n".join(columns["text"]) + "\n"
        else:
            name, text = "mine.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / name).write_text(text, encoding="utf-8")
        words = choosing.choose(train.parser(), ["--train_file", name, *flags])
        settings: dict[str, list[str]] = {}
        for word in words:
            if word.startswith("--"):
                settings[word] = []
            else:
                settings[list(settings)[-1]].append(word)
        return {flag.removeprefix("--"): " ".join(values) for flag, values in settings.items()}

    return choose


def labels(*values):
    return [values[number % len(values)] for number in range(240)]


def test_raw_text(chosen, monkeypatch):
    found = chosen(name="mine.txt", text=FIRST)
    assert found["objective"] == "info_nce" and found["evaluation"] == "none" and int(found["max_steps"]) <= 300
    assert "held_out_rows" not in found and found["output_dir"] == "runs/mine"
    monkeypatch.setattr(choosing, "_has_stsb", lambda folder: True)
    found = chosen(name="mine.txt", text=FIRST)
    assert found["eval_sets"] == "stsb" and "max_steps" not in found


@pytest.mark.parametrize("names", [("query", "document"), ("anchor", "positive"), ("left", "right")])
def test_pairs(chosen, names):
    first, second = names
    found = chosen(**{first: FIRST, second: SECOND, "id": list(range(240))})
    assert found["objective"] == "info_nce" and found["held_out_rows"] == "100" and "label_column" not in found
    assert found.get("text_columns", " ".join(names)) == " ".join(names) and "mask_duplicates" not in found


def test_the_query_comes_first_and_repeated_texts_are_masked(chosen):
    found = chosen(passage=SECOND[:120] * 2, query=FIRST)
    assert found["text_columns"] == "query passage" and found["mask_duplicates"] == "true"


def test_numbers_that_name_a_row_grade_nothing(chosen):
    found = chosen(qid=labels(*range(240)), query=FIRST, docid=labels(*range(100, 340)), positive=SECOND)
    assert found["objective"] == "info_nce" and "text_columns" not in found


def test_blank_rows_are_not_counted(chosen):
    found = chosen(anchor=FIRST, positive=[*SECOND[:40], *[""] * 200])
    assert "held_out_rows" not in found and found["per_device_train_batch_size"] == "8"


def test_negatives_of_any_known_name_are_taken(chosen):
    found = chosen(anchor=FIRST, positive=SECOND, neg_1=SECOND[::-1], neg_2=FIRST[::-1])
    assert found["text_columns"] == "anchor positive neg_1 neg_2"


def test_triplets(chosen):
    found = chosen(sent0=FIRST, sent1=SECOND, hard_neg=SECOND[::-1])
    assert found["objective"] == "info_nce" and "text_columns" not in found and found["held_out_rows"] == "100"


@pytest.mark.parametrize("names", ["sentence1 sentence2 label", "anchor positive label", "a b same"])
@pytest.mark.parametrize("values", [(0, 1), ("1", "0", "0")])
def test_labels_of_0_and_1_are_used(chosen, names, values):
    names = names.split()
    found = chosen(**dict(zip(names, (FIRST, SECOND, labels(*values)), strict=True)))
    assert found["objective"] == "cosent" and found["held_out_rows"] == "100"
    if names[2] == "same":
        assert found["text_columns"] == "a b" and found["label_column"] == "same"


def test_scores(chosen):
    found = chosen(sentence1=FIRST, sentence2=SECOND, score=labels(0.0, 1.5, 5.0))
    assert (
        found["objective"] == "cosent"
        and found["per_device_train_batch_size"] == "32"
        and found["held_out_rows"] == "100"
    )


def test_labels_that_are_all_1_are_pairs(chosen):
    found = chosen(anchor=FIRST, positive=SECOND, label=labels(1))
    assert found["objective"] == "info_nce" and found["text_columns"] == "anchor positive"
    with pytest.raises(UserError, match="every row's label is 0"):
        chosen(anchor=FIRST, positive=SECOND, label=labels(0))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"a": FIRST, "b": SECOND, "stars": labels(1, 2, 3)}, "does column stars grade the pair"),
        ({"a": FIRST, "b": SECOND, "price": labels(10, 25, 3)}, "does column price grade the pair"),
        ({"a": FIRST, "b": SECOND, "label": labels("entailment", "neutral")}, "label_column label, as a number"),
        ({"a": FIRST, "b": SECOND, "same": labels(True, False)}, "label_column same, as a number"),
        ({"a": FIRST, "b": SECOND, "same": labels("yes", "no")}, "label_column same, as a number"),
        ({"a": FIRST, "b": SECOND, "c": SECOND}, "which of its columns .* anchor, positive and hard negatives in this"),
        (
            {FIRST[0]: FIRST, SECOND[0]: SECOND, "1.2": labels(0, 1)},
            "names before it, such as sentence1, sentence2",
        ),
        ({"什么时候？": FIRST, "明天": SECOND}, "its first line seems to be a row"),
        ({"a": FIRST, "b": SECOND, "same": labels(0, 1, None)}, "the score is None"),
        ({"a": FIRST, "b": SECOND, "same": labels("0", "1", "NaN")}, "the score is 'NaN'"),
    ],
)
def test_what_is_doubtful_is_asked(chosen, columns, words):
    with pytest.raises(UserError, match=words):
        chosen(**columns)


def test_the_start_is_the_languages(chosen, monkeypatch, caplog):
    chinese = [f"今天天气很好，我们去公园散步{number}。" for number in range(240)]
    assert chosen(name="mine.txt", text=chinese)["model"] == choosing.CHINESE
    found = chosen(
        query=[f"что это {number}" for number in range(240)], document=[f"дом номер {n}" for n in range(240)]
    )
    assert found["model"] == choosing.ANY and found["query_prompt"] == "query: "
    monkeypatch.setattr(choosing.importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.INFO, logger="cacse_trainer"):
        assert chosen(name="mine.txt", text=FIRST)["model"] == choosing.ENGLISH
    assert (
        "cacse-trainer train --train_file mine.txt --model " in caplog.text and "by its commonest words" in caplog.text
    )

    def unreachable(name):
        raise OSError("no network")

    monkeypatch.setattr(choosing, "load_config", unreachable)
    with pytest.raises(UserError, match=r"cannot be read here \(no network\); give --model FOLDER"):
        chosen(name="mine.txt", text=chinese)


def test_what_the_user_gave_stays(chosen):
    given = (
        "--model m --objective nt_xent --max_steps 7 --per_device_train_batch_size 8 --dev_file d.csv --output_dir o"
    )
    found = chosen(shlex.split(given), anchor=FIRST, positive=SECOND)
    flags = {word.removeprefix("--") for word in given.split() if word.startswith("--")}
    assert not flags & set(found) and "num_train_epochs" not in found and "held_out_rows" not in found
    assert chosen(["--tower_a", "a", "--tower_b", "b"], anchor=FIRST, positive=SECOND) == {}


def test_few_different_first_texts_cannot_be_held_out(chosen):
    kinds = [f"kind {number % 5}" for number in range(240)]
    found = chosen(anchor=kinds, positive=SECOND)
    assert "held_out_rows" not in found and found["mask_duplicates"] == "true"
    assert chosen(anchor=[f"kind {number % 60}" for number in range(240)], positive=SECOND)["held_out_rows"] == "100"


@pytest.mark.parametrize("flag", ["--per_device_train_batch_size", "--gradient_accumulation_steps"])
def test_a_batch_of_none_is_left_to_the_settings(chosen, flag):
    assert chosen([flag, "0"], anchor=FIRST, positive=SECOND)["objective"] == "info_nce"


def test_max_steps_below_zero_means_epochs(chosen):
    found = chosen(["--max_steps", "-1"], anchor=FIRST, positive=SECOND)
    assert found["num_train_epochs"] == "3" and "max_steps" not in found


def test_the_reasons_are_true(chosen, caplog, tmp_path):
    """Looks, lengths and what is missing are told as they are; a finished run of the same text is left alone."""
    with caplog.at_level(logging.INFO, logger="cacse_trainer"):
        chosen(["--max_steps", "3"], anchor=[f"{text} " * 40 for text in FIRST], positive=SECOND)
        assert "3 looks at the dev set" in caplog.text and "50% of the texts fit, the others are cut" in caplog.text
        caplog.clear()
        found = chosen(["--senteval_data", "nowhere"], name="mine.txt", text=FIRST)
        assert "no pairs to hold out, STS-B neither here nor on the hub: nothing judges; give" in caplog.text
        chosen(name="mine.txt", text=[f"今天天气很好，我们去公园散步{number}。" for number in range(240)])
        assert "STS-B is English: nothing judges; give --dev_file (such as mteb/STSB@validation)" in caplog.text
        assert found["output_dir"] == "runs/mine"
        (tmp_path / "runs" / "mine").mkdir(parents=True)
        (tmp_path / "runs" / "mine" / "training_report.json").touch()
        assert chosen(name="mine.txt", text=FIRST)["output_dir"] == "runs/mine_2"
        assert "runs/mine holds a finished run" in caplog.text
    resumed = chosen(["--resume_from_checkpoint", "last"], name="mine.txt", text=FIRST)
    assert resumed["output_dir"] == "runs/mine"
    (tmp_path / "runs" / "mine_2").mkdir()  # a killed run: what its error advises goes on with it, not with the first
    resumed = chosen(["--resume_from_checkpoint", "last"], name="mine.txt", text=FIRST)
    assert resumed["output_dir"] == "runs/mine_2"


def test_labels_are_never_dropped(tmp_path):
    """Nor by the loaders: pairs with a label of any name are labelled pairs, or refused."""
    (tmp_path / "named.csv").write_text("anchor,positive,label\na man,a woman,0\nrain,it rains,1\n")
    assert load_pairs(tmp_path / "named.csv")["score"] == [0.0, 1.0]
    for name, no, yes, gap in (("label", 0, 1, ""), ("same", 0, 1, "NaN"), ("same", "No", "Yes", "")):
        rows = f"a man,a woman,{no}\nrain,it rains,{yes}\na,b,{gap}\n"
        (tmp_path / "other.csv").write_text(f"anchor,positive,{name}\n{rows}")
        with pytest.raises(UserError, match=f"column '{name}' says 0 or 1 of each pair"):
            load_sentences(tmp_path / "other.csv")
        assert len(load_sentences(tmp_path / "other.csv", ["anchor", "positive"])) == 3


def test_rows_held_out(tmp_path):
    """None of a first text on both sides, and each kind of rows judged as what it is."""
    pairs = load_sentences_of(tmp_path, "anchor,positive", zip(FIRST[:60] * 4, SECOND, strict=True))
    parts = hold_out(pairs, 100, seed=1)
    assert isinstance(parts.dev, Retrieval) and isinstance(parts.test, Retrieval)
    queries = [set(one.retrieval_set.queries) for one in (parts.dev, parts.test)]
    assert not queries[0] & queries[1] and not (queries[0] | queries[1]) & set(parts.train["anchor"])
    assert len(parts.train) == 140 and len(parts.dev.retrieval_set.documents) > 140
    assert hold_out(pairs, 100, seed=1).train["anchor"] == parts.train["anchor"]
    graded = (
        f"{a},{b},{c}" for a, b, c in zip(FIRST, [text.replace(",", "") for text in SECOND], labels(0, 1), strict=True)
    )
    (tmp_path / "g.csv").write_text("sentence1,sentence2,score\n" + "\n".join(graded) + "\n")
    parts = hold_out(load_pairs(tmp_path / "g.csv"), 80, seed=1)
    assert isinstance(parts.dev, GradedPairs) and len(parts.dev.pairs) == len(parts.test.pairs) == 40
    with pytest.raises(UserError, match="held_out_rows 230 of 240 rows leaves 10 to train on"):
        hold_out(load_pairs(tmp_path / "g.csv"), 230, seed=1)
    (tmp_path / "t.txt").write_text("\n".join(FIRST) + "\n")
    with pytest.raises(UserError, match="the text has one column"):
        hold_out(load_sentences(tmp_path / "t.txt"), 100, seed=1)


def load_sentences_of(folder, header, rows):
    (folder / "p.tsv").write_text("\n".join(["\t".join(header.split(",")), *("\t".join(row) for row in rows)]) + "\n")
    return load_sentences(folder / "p.tsv")


def test_a_run_of_a_file_alone(tmp_path, masked_lm, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [f"the {one} {two} is {three}" for one, two, three in permutations(WORDS[:8], 3)][:240]
    rows = ["\t".join(map(str, row)) for row in zip(words, words[::-1], labels(0, 1), strict=True)]
    (tmp_path / "mine.tsv").write_text("\n".join(["anchor\tpositive\tlabel", *rows]) + "\n")
    flags = ["--train_file", "mine.tsv", "--model", masked_lm, "--max_steps", "2", "--eval_steps", "1", "--use_cpu"]
    assert run(train.main, flags) == 0
    report = json.loads((tmp_path / "runs" / "mine" / "training_report.json").read_text())
    assert report["settings"]["objective"] == "cosent" and report["data"]["kept"] == 140
    assert report["metric"] == "mine_dev_spearman" and report["verdict"]["set"] == "mine_test"
    assert "--held_out_rows 100" in report["command"]
