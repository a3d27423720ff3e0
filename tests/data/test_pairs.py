"""Dev sets in each layout, and the one-line errors for wrong ones."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cacse_trainer.data import has_labels, load_pairs
from cacse_trainer.errors import UserError
from tests.conftest import SHARED

DATA = SHARED / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real data are not on this machine")

ROWS = [
    {"sentence1": "a", "sentence2": "b", "score": 0.0},
    {"sentence1": "c", "sentence2": 'd "e', "score": 4.25},
]


@pytest.fixture
def write(tmp_path):
    def _write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return _write


def sts(*rows: str) -> str:
    return "".join(f"main\tsource\t2012\t{number}\t{row}\n" for number, row in enumerate(rows))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", 'sentence1\tsentence2\tscore\na\tb\t0\nc\td "e\t4.25\n'),
        ("a.csv", 'sentence1,sentence2,score\na,b,0\n"c","d ""e",4.25\n'),
        ("a.csv", 'score,id,sentence2,sentence1\n0,7,b,a\n4.25,8,"d ""e",c\n'),
        ("a.csv", 'sentence1\tsentence2\tlabel\r\na\tb\t0\r\nc\td "e\t4.25\r\n'),
        ("a.txt", 'pair_ID\tsentence_A\tsentence_B\trelatedness_score\n1\ta\tb\t0\n\n2\tc\td "e\t4.25\n'),
        ("sts.csv", sts("0.000\ta\tb", '4.25\tc\td "e\tlicence\tlicence')),
        ("sts.tsv", b"\xef\xbb\xbf" + sts("0.000\ta\tb", '4.25\tc\td "e').encode()),
        ("a.jsonl", '{"sentence1": "a", "sentence2": "b", "score": 0}\n' + json.dumps(ROWS[1])),
        ("a.json", json.dumps([{**row, "similarity_score": 1, "score": str(row["score"])} for row in ROWS])),
    ],
)
def test_layouts(write, name, content):
    pairs = load_pairs(write(name, content))
    assert pairs.to_list() == ROWS
    assert pairs.features["score"] == datasets.Value("float64")


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    assert load_pairs(path).to_list() == ROWS


def test_hub(monkeypatch):
    calls = []

    def load_dataset(name, config, *, split, streaming):
        calls.append((name, config, split, streaming))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_pairs("sentence-transformers/stsb").to_list() == ROWS
    load_pairs("sentence-transformers/stsb@test")
    load_pairs("sentence-transformers/stsb", split="train")
    assert [split for _, _, split, _ in calls if split != "validation"] == ["test", "test", "train", "train"]


HEADER = "sentence1,sentence2,score\n"
ERRORS = [
    ("a.csv", "", ["is empty"]),
    ("a.jsonl", "", ["no columns sentence1", "found none"]),
    ("a.csv", HEADER, ["no pairs"]),
    ("a.csv", HEADER + "a,b,1\n", ["only one pair"]),
    ("a.csv", HEADER + "a,b,1\nc,d,1.0\n", ["all 2 scores are 1", "not defined"]),
    ("a.csv", HEADER + "a,b,1\nc,d,high\n", ["line 3", "the score is 'high'"]),
    ("a.csv", HEADER + "a,b,1\nc,d,\n", ["line 3", "the score is ''"]),
    ("a.csv", HEADER + "a,b,1\nc,d,NaN\n", ["line 3", "the score is 'NaN'"]),
    ("a.csv", HEADER + "a,b,1\nc,d,inf\n", ["line 3", "the score is 'inf'"]),
    ("a.csv", HEADER + "a,b,1\nc,d,-0.5\n", ["line 3", "score -0.5 is out of range", "0 to 5"]),
    ("a.csv", HEADER + "a,b,1\nc,d,72\n", ["line 3", "score 72 is out of range"]),
    ("a.csv", HEADER + "a,b,1\n ,d,2\n", ["line 3", "the sentence is ' '"]),
    ("a.csv", HEADER + "a,b,1\nc,NaN,2\n", ["line 3", "the sentence is 'NaN'"]),
    ("a.csv", HEADER + "a,b,1\nc,d\n", ["line 3", "2 fields"]),
    ("a.csv", HEADER + "a,b,1\nc,d,e,2\n", ["line 3", "4 fields"]),
    ("a.csv", HEADER + 'a,b,1\n"c,d,2\n', ["line 3", "unexpected end"]),
    ("a.csv", HEADER.encode() + b"a,b,1\nc\xe9,d,2\n", ["line 3", "0xe9"]),
    ("a.csv", "one,two,score\na,b,1\n", ["no columns sentence1, sentence2", "found one, two, score"]),
    ("a.csv", "sentence1,sentence2\na,b\n", ["and score", "found sentence1, sentence2"]),
    ("a.txt", "just\ntext\n", ["no columns sentence1"]),
    ("a.jsonl", json.dumps(ROWS[0]) + '\n{"sentence1": "a", "sentence2": null, "score": 1}\n', ["line 2", "is None"]),
    ("a.jsonl", json.dumps(ROWS[0]) + '\n{"sentence1": "a", "sentence2": "b"}\n', ["line 2", "score is None"]),
    ("a.jsonl", json.dumps(ROWS[0]) + '\n{"sentence1": "a", "sentence2": "b", "score": true}\n', ["score is True"]),
    ("a.jsonl", json.dumps(ROWS[0]) + '\n{"sentence1": "a", "sentence2": "b", "score": NaN}\n', ["score is nan"]),
    ("sts.csv", sts("1.0\ta\tb", "2.0\tc"), ["line 2", "6 fields", "7 or 9"]),
    ("sts.csv", sts("1.0\ta\tb", "x\tc\td"), ["line 2", "score is 'x'"]),
    ("sts.csv", sts("1.0\ta\tb", "2\t\td"), ["line 2", "sentence is ''"]),
    ("a.parquet", "x", ["not a readable parquet file"]),
    ("a.csv", "sentence1;sentence2;score\na;b;1\nc;d;2,5\n", ["seems to be ';'", "convert it"]),
    ("a.tsv", "sentence1\tsentence2\tscore\na\tb\t1\nc\td\t2,5\n", ["line 3", "'2,5'", "a decimal point"]),
    ("a.csv", HEADER + "a,a,1\nb,b,2\n", ["all 2 pairs", "not defined"]),
    ("a.csv", HEADER + "a,b,1\nb, a,2\n", ["all 2 pairs", "not defined"]),
    ("a.jsonl", json.dumps(ROWS[0]) + '\n{"sentence1": "\\ud800", "sentence2": "b", "score": 1}\n', ["no valid text"]),
]


@pytest.mark.parametrize(("name", "content", "words"), ERRORS, ids=range(len(ERRORS)))
def test_wrong_files(write, name, content, words):
    path = write(name, content)
    with pytest.raises(UserError) as error:
        load_pairs(path)
    message = str(error.value)
    assert message.startswith(path)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_another_range_of_scores(write):
    path = write("a.csv", HEADER + "a,b,-1\nc,d,100\n")
    assert load_pairs(path, score_range=(-1, 100))["score"][:] == [-1.0, 100.0]


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_pairs(tmp_path / "sts-dev.csv")
    with pytest.raises(UserError, match="is a folder"):
        load_pairs(tmp_path)


@needs_data
@pytest.mark.parametrize(("part", "count"), [("dev", 1500), ("test", 1379), ("train", 5749)])
def test_no_row_of_sts_benchmark_is_lost(part, count):
    path = DATA / "senteval" / "downstream" / "STS" / "STSBenchmark" / f"sts-{part}.csv"
    expected = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n") if line]
    pairs = load_pairs(path)
    assert len(pairs) == count
    assert pairs["sentence1"][:] == [fields[5] for fields in expected]
    assert pairs["sentence2"][:] == [fields[6] for fields in expected]
    assert pairs["score"][:] == [float(fields[4]) for fields in expected]


@needs_data
@pytest.mark.parametrize(("part", "count"), [("trial", 500), ("train", 4500)])
def test_sick(part, count):
    pairs = load_pairs(DATA / "senteval" / "downstream" / "SICK" / f"SICK_{part}.txt")
    assert len(pairs) == count
    assert 1 <= min(pairs["score"]) < max(pairs["score"]) <= 5


def test_named_columns_and_what_has_labels(tmp_path):
    """Labelled pairs are seen by their columns; other names are given."""
    file = tmp_path / "pairs.csv"
    file.write_text("first,second,grade\na man,a woman,0.5\nrain,sun,1\n")
    assert not has_labels(file)
    pairs = load_pairs(file, columns=("first", "second", "grade"))
    assert pairs["sentence1"] == ["a man", "rain"] and pairs["score"] == [0.5, 1.0]
    with pytest.raises(UserError, match="no column 'label', it has first, second, grade"):
        load_pairs(file, columns=("first", "second", "label"))
    for name, text, expected in (
        ("angle.jsonl", '{"text1": "a", "text2": "b", "label": 1}\n{"text1": "c", "text2": "d", "label": 0}\n', True),
        ("sts.csv", "g\tf\ty\t1\t2.5\tA plane\tAn air plane\ng\tf\ty\t1\t4.0\tRain\tIt rains\n", True),
        ("triplets.csv", "sent0,sent1,hard_neg\na,b,c\n", False),
        ("text.txt", "sentence1\tsentence2\tscore\n", False),
    ):
        (tmp_path / name).write_text(text)
        assert has_labels(tmp_path / name) is expected
        if expected:
            assert len(load_pairs(tmp_path / name, split="train")) == 2
