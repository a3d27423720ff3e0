"""Several texts with shares: how many rows of each, which ones, and what is refused."""

import pytest
from datasets import Dataset

from cacse_trainer.errors import UserError
from cacse_trainer.runs.mixing import mixed, shares_of
from cacse_trainer.runs.preparation import load_training_text, text_facts
from cacse_trainer.settings.arguments import CacseTrainingArguments, DataArguments


def rows(letter: str, count: int, column: str = "text") -> Dataset:
    return Dataset.from_dict({column: [f"{letter}{i}" for i in range(count)]})


def test_each_text_has_its_share():
    """60 rows are 60 % of 100: 30 of one text, and of another, of 4 rows, two and a half passes."""
    texts = {"own": rows("a", 60), "wiki": rows("b", 500), "few": rows("c", 4)}
    dataset, told = mixed(texts, {"wiki": 0.3, "few": 0.1}, seed=3)
    found = dataset["text"]
    by = {letter: [text for text in found if text[0] == letter] for letter in "abc"}
    assert {letter: len(own) for letter, own in by.items()} == {"a": 60, "b": 30, "c": 10}
    assert by["a"] == texts["own"]["text"] and len(set(by["b"])) == 30
    assert sorted(by["c"].count(text) for text in set(by["c"])) == [2, 2, 3, 3]
    assert told == {"own": "60 rows, all", "wiki": "30 rows, 0.06 of it", "few": "10 rows, 2.50 of it"}
    again, other = mixed(texts, {"wiki": 0.3, "few": 0.1}, 3)[0], mixed(texts, {"wiki": 0.3, "few": 0.1}, 4)[0]
    assert again["text"][:] == found[:] != other["text"][:]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (["wiki.txt"], "mix 'wiki.txt': give path=share"),
        (["wiki.txt=1"], "a share between 0 and 1"),
        (["wiki.txt=nan"], "a share between 0 and 1"),
        (["wiki.txt=many"], "a share between 0 and 1"),
        (["a=0.5", "a=0.1"], "a is given twice"),
        (["a=0.5", "b=0.5"], "sum up to 1, and nothing is left for train_file"),
    ],
)
def test_wrong_shares(entries, words):
    with pytest.raises(UserError, match=words):
        shares_of(entries)


def test_texts_of_several_kinds_are_refused():
    with pytest.raises(UserError, match="mix pairs: its rows are anchor, those of own are text"):
        mixed({"own": rows("a", 4), "pairs": rows("b", 4, "anchor")}, {"pairs": 0.5}, 0)
    with pytest.raises(UserError, match="own is train_file itself"):
        mixed({"own": rows("a", 4)}, {"own": 0.5}, 0)


def test_what_a_run_reads_and_records(tmp_path):
    for name, count in (("own.txt", 20), ("more.txt", 90)):
        (tmp_path / name).write_text("".join(f"{name} {i}\n" for i in range(count)))
    data = DataArguments(train_file=str(tmp_path / "own.txt"), mix=[f"{tmp_path / 'more.txt'}=0.5"])
    args = CacseTrainingArguments(str(tmp_path / "run"), bf16="false", use_cpu=True, report_to="none")
    dataset, facts = load_training_text(data, args)
    assert len(dataset) == 40 == facts["kept"] and facts["rows"] == 20
    assert list(facts["mixed"].values()) == ["20 rows, all", "20 rows, 0.22 of it"]
    recorded = text_facts(data)["mixed_text"]
    assert recorded.startswith("0.5 of ") and "checksum" in recorded
    data.streaming = True
    with pytest.raises(UserError, match="leave out streaming, or mix"):
        load_training_text(data, args)
