import json

import pytest

from cacse_trainer.data.retrieval import has_pair_columns, is_folder_or_files, load_retrieval
from cacse_trainer.errors import UserError

CORPUS = [("a", "", "a red fox"), ("b", "Dogs", "a dog"), ("c", "", "the sea"), ("d", "", "a red fox")]


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_beir(folder, **qrels):
    write_lines(folder / "corpus.jsonl", [{"_id": key, "title": title, "text": text} for key, title, text in CORPUS])
    write_lines(folder / "queries.jsonl", [{"_id": f"q{i}", "text": f"question {i}"} for i in range(3)])
    (folder / "qrels").mkdir()
    for split, lines in qrels.items():
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)
    return folder


def facts(found):
    return found.queries, found.documents, found.relevant


@pytest.mark.parametrize("names", ["query,document", "question,answer", "anchor,positive", "query,passage"])
def test_pairs(tmp_path, names):
    path = tmp_path / "pairs.csv"
    path.write_text(f'{names}\nfox,"a fox, red"\ndog,a dog\nfox,another fox\nred one,"a fox, red"\n')
    assert has_pair_columns(path) and not is_folder_or_files(path)
    assert facts(load_retrieval(path)) == (
        ["fox", "dog", "red one"],
        ["a fox, red", "a dog", "another fox"],
        [{0: 1.0, 2: 1.0}, {1: 1.0}, {0: 1.0}],
    )


def test_two_files(tmp_path):
    write_lines(tmp_path / "corpus.jsonl", [{"id": i, "body": f"body {i}"} for i in range(3)])
    write_lines(tmp_path / "dev_queries.jsonl", [{"query": "x", "id": 2}, {"query": "y", "id": 0}])
    expected = (["x", "y"], ["body 0", "body 1", "body 2"], [{2: 1.0}, {0: 1.0}])
    for second in ("dev_queries.jsonl", tmp_path / "dev_queries.jsonl"):
        assert is_folder_or_files(f"{tmp_path}/corpus.jsonl+{second}")
        assert facts(load_retrieval(f"{tmp_path}/corpus.jsonl+{second}")) == expected


def test_beir_folder(tmp_path):
    test = "q0\ta\t2\nq0\tb\t1\nq0\td\t1\nq2\tc\t1\nq2\ta\t0\nq1\ta\t0\n"
    folder = make_beir(tmp_path / "beir", test=test, dev="q1\tb\t1\n")
    documents = ["a red fox", "Dogs a dog", "the sea"]  # d is a once more
    assert is_folder_or_files(folder)
    assert is_folder_or_files(f"{folder}@dev")
    assert facts(load_retrieval(folder)) == (["question 0", "question 2"], documents, [{0: 2.0, 1: 1.0}, {2: 1.0}])
    assert facts(load_retrieval(f"{folder}@dev")) == (["question 1"], documents, [{1: 1.0}])


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        ("q0\ta\n", "test.tsv, line 2: 2 fields"),
        ("q0\ta\tx\n", "test.tsv, line 2: the score is 'x'"),
        ("q9\ta\t1\n", "line 2: queries.jsonl has no query 'q9'"),
        ("q0\tz\t1\n", "line 2: corpus.jsonl has no document 'z'"),
        ("q0\ta\t0\n", "no query has a document that answers it"),
    ],
)
def test_bad_qrels(tmp_path, lines, wrong):
    with pytest.raises(UserError, match=wrong):
        load_retrieval(make_beir(tmp_path / "beir", test=lines))


def test_bad_folders(tmp_path):
    folder = make_beir(tmp_path / "beir", train="q0\ta\t1\n")
    with pytest.raises(UserError, match="there are train: name one as FOLDER@SPLIT"):
        load_retrieval(folder)
    with pytest.raises(UserError, match=r"a folder without corpus\.jsonl"):
        load_retrieval(tmp_path)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("query,document\nfox,\n", "line 2: the document is ''; give a text"),
        ("query,document\nfox,a fox\ndog,a fox\n", "has one document, which every query finds"),
        ("query,document\n", "no query has a document"),
        ("query,other\nfox,a fox\n", "no columns of queries and documents"),
    ],
)
def test_bad_pairs(tmp_path, text, wrong):
    path = tmp_path / "pairs.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=wrong):
        load_retrieval(path)


@pytest.mark.parametrize(
    ("documents", "queries", "wrong"),
    [
        (
            [{"id": 0, "body": "a"}, {"id": 0, "body": "b"}],
            [{"query": "x", "id": 0}],
            "line 2: the id '0' is there",
        ),
        ([{"id": 0, "body": "a"}], [{"query": "x", "id": 3}], "line 1: no document of .* has the id '3'"),
        ([{"id": 0, "name": "a"}], [{"query": "x", "id": 0}], "no column text or body"),
        ([{"id": None, "body": "a"}], [{"query": "x", "id": 0}], "line 1: the id is None"),
    ],
)
def test_bad_files(tmp_path, documents, queries, wrong):
    write_lines(tmp_path / "c.jsonl", documents)
    write_lines(tmp_path / "q.jsonl", queries)
    with pytest.raises(UserError, match=wrong):
        load_retrieval(f"{tmp_path}/c.jsonl+q.jsonl")


def test_a_row_labelled_0_is_no_answer(tmp_path):
    file = tmp_path / "labelled.csv"
    file.write_text("query,document,label\nrain,it rains,1\nrain,the dog,0\na cat,the dog,0\na dog,the dog,1\n")
    found = load_retrieval(file)
    assert found.queries == ["rain", "a dog"] and found.documents == ["it rains", "the dog"]
    assert found.relevant == [{0: 1.0}, {1: 1.0}]
