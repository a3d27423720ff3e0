"""A text in parts that share no document, the plan of a budget, the mean of weights, questions that a model writes."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch

from cacse_trainer import SentenceEncoder
from cacse_trainer.adaptation.averaging import Averaging, averaged
from cacse_trainer.adaptation.budget import FEWEST_STEPS, FIXED, Costs
from cacse_trainer.adaptation.parts import Size, halves, part, sizes, untitled, without
from cacse_trainer.adaptation.questions import query_in, read_prompt, write_questions
from cacse_trainer.adaptation.rows import WITH_TITLES, WITHOUT, Rows, default_shares, shares_of
from cacse_trainer.adaptation.run import limit_rate, neighbours_of
from cacse_trainer.adaptation.verdict import HELPED, UNCLEAR, WORSE, judge
from cacse_trainer.cli.adapt import parser
from cacse_trainer.data.documents import Document
from cacse_trainer.data.markup import Section
from cacse_trainer.data.retrieval import from_pairs, load_retrieval, save_retrieval
from cacse_trainer.data.structure import count_rows, passages_of
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.dev_sets import Answers
from cacse_trainer.settings.adaptation import AdaptArguments
from cacse_trainer.settings.arguments import CacseTrainingArguments
from cacse_trainer.settings.recipes import Parsed, parse_run


def documents(count: int, titled: bool = True) -> list[Document]:
    text = "The thing number {0} is red. It has {0} wheels on it. Nobody knows {0} more."
    sections = [(Section("", (text.format(number),)),) for number in range(count)]
    return [Document(f"thing {i}" if titled else "", found, str(i)) for i, found in enumerate(sections)]


@pytest.mark.parametrize(("titled", "kind"), [(True, "title"), (False, "cloze")])
def test_held_out_documents_are_in_no_other_part(titled, kind):
    most = Size(25, 40), Size(30, 50)
    found = part(documents(300, titled), most=most, words=100, seed=3)
    assert found.kind == kind and found.dev is not None and found.test is not None
    assert (len(found.dev.queries), len(found.test.queries)) == (25, 30)
    assert (len(found.dev.documents), len(found.test.documents)) == (65, 80)
    trained = {passage.text for passage in found.train}
    answers = [{one.documents[i] for graded in one.relevant for i in graded} for one in (found.dev, found.test)]
    assert len(found.train) == 245 and not answers[0] & answers[1]
    assert not trained & (answers[0] | answers[1])
    again = part(documents(300, titled), most=most, words=100, seed=3)
    assert again.dev is not None and again.dev.queries == found.dev.queries


def test_too_few_documents_and_none_with_structure():
    with pytest.raises(UserError, match="too few"):
        part(documents(90), most=sizes(1000, 10, None), words=100, seed=0)
    lines = [Document("", (Section("", (f"Single sentence {i}",)),), str(i)) for i in range(100)]
    assert part(lines, most=sizes(1000, 10, None), words=100, seed=0).kind is None
    assert part(documents(90), most=(Size(0, 0), Size(0, 0)), words=100, seed=0).dev is None


def test_small_budgets_have_small_parts():
    assert sizes(1000, 4000, None) == sizes(1000, 4000, 45) == (Size(500, 1000), Size(1000, 4000))
    assert sizes(1000, 4000, 4) == (Size(200, 200), Size(400, 400))
    assert sizes(1000, 4000, 0.1) == (Size(20, 5), Size(20, 10))


def test_a_users_queries_in_two_halves():
    given = from_pairs((f"query {i}", f"document {i % 30}") for i in range(60))
    first, second = halves(given, seed=0)
    assert sorted((*first.queries, *second.queries)) == sorted(given.queries)
    assert first.documents == second.documents == given.documents
    for one in (first, second):
        for query, graded in zip(one.queries, one.relevant, strict=True):
            assert graded == given.relevant[given.queries.index(query)]
    with pytest.raises(UserError, match="too few"):
        halves(from_pairs([("a", "b"), ("c", "d")]), seed=0)


def test_what_judges_is_in_neither_the_dev_queries_nor_the_anchors():
    judging = from_pairs((f"query {i}", f"document {i}") for i in range(30))
    choosing = from_pairs((f"query {i}", f"document {i}") for i in range(20, 60))
    kept = without(choosing, judging)
    assert kept.queries == [f"query {i}" for i in range(30, 60)] and kept.documents == choosing.documents
    assert [kept.documents[place] for graded in kept.relevant for place in graded] == kept.documents[10:]
    with pytest.raises(UserError, match="0 queries that are no test_queries"):
        without(judging, judging)
    with pytest.raises(UserError, match="test_queries: 2 queries"):
        without(judging, from_pairs([("a", "b"), ("c", "d")]))
    passages, told = untitled(passages_of(documents(30)), ["Thing  7", "other"])
    assert told == 1 and [one.document for one in passages if not one.title] == [7]


def test_no_negative_is_of_the_row_s_own_document(tmp_path):
    passages = passages_of(documents(6))
    rows = Rows(passages, {"title": 1, "cloze": 1}, batch=4, seed=0)

    def mine(pairs):
        """Always the first passage, which two thirds of the kinds' rows of the first document are of."""
        return {pair: [passages[0].text, passages[1].text] for pair in pairs[::2]}

    rows.write(tmp_path / "rows.jsonl", 200, negatives=2, miner=mine)
    for line in (tmp_path / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        own = next(one for one in passages if row["anchor"] in (one.title, *one.sentences))
        assert own.text not in (row["negative_1"], row["negative_2"])


def test_a_saved_set_is_read_again(tmp_path):
    given = from_pairs([("a", "one"), ("a", "two"), ("b", "three")], ["four"])
    save_retrieval(given, tmp_path / "set")
    found = load_retrieval(tmp_path / "set")
    assert (found.queries, found.documents, found.relevant) == (given.queries, given.documents, given.relevant)


def test_rows_and_their_default_shares(tmp_path):
    passages = passages_of(documents(50))
    untitled = passages_of(documents(50, titled=False))
    assert default_shares(count_rows(passages), len(passages)) == WITH_TITLES
    assert shares_of(passages, None, []) == {"title": 1.0, "cloze": 0.25}  # there are no headings
    assert shares_of(untitled, None, []) == WITHOUT
    asked = {"title": 1.0, "cloze": 0.5}
    assert shares_of(passages, asked, []) == asked and shares_of(untitled, asked, []) == {"cloze": 0.5}
    assert shares_of(untitled, {"title": 1.0}, []) == {"title": 1.0}  # for the error that says what there is
    assert shares_of(untitled, None, ["pairs"]) == {**WITHOUT, "pairs": 1.0}
    rows = Rows(passages, {"title": 1, "cloze": 1}, batch=8, seed=0)
    assert rows.counts == {"title": 50, "cloze": 150}
    assert rows.write(tmp_path / "rows.jsonl", 64) == {"title": 32, "cloze": 32}
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(lines) == 64 and set(lines[0]) == {"anchor", "positive", "kind"}
    assert [len(samples) for samples in rows.samples().values()] == [3, 3]


@pytest.mark.parametrize(
    ("words", "shares", "neighbours", "rate"),
    [
        ([], WITH_TITLES, 32, 1e-4),
        ([], WITHOUT, 1, 2e-5),
        ([], {"title": 0.0, "single": 1.0}, 1, 2e-5),
        ([], {"cloze": 1.0, "pairs": 1.0}, 32, 1e-4),
        (["--learning_rate", "3e-5"], WITHOUT, 1, 3e-5),
        (["--learning_rate", "3e-5", "--sentence_learning_rate", "1e-5"], WITHOUT, 1, 1e-5),
        (["--sentence_learning_rate", "1e-5"], WITH_TITLES, 32, 1e-4),
        (["--batch_neighbours", "8"], WITHOUT, 8, 2e-5),
    ],
)
def test_rows_of_sentences_alone_are_trained_gently(words, shares, neighbours, rate):
    parsed = parse_run(parser(), ["--config", "adapt/english_small", *words])
    settings, _, _, args = parsed.groups
    limit_rate(settings, args, parsed, shares)
    assert (neighbours_of(settings, shares), args.learning_rate) == (neighbours, rate)


def test_a_rate_below_the_most_of_sentences_stays():
    args = CacseTrainingArguments(output_dir="out", use_cpu=True, bf16=False, learning_rate=1e-5)
    for most, wanted in ((2e-5, 1e-5), (1e-6, 1e-6)):
        settings = AdaptArguments(text=["text"], sentence_learning_rate=most)
        limit_rate(settings, args, Parsed((settings, args)), WITHOUT)
        assert args.learning_rate == wanted


def test_costs_of_a_budget():
    costs = Costs(spent=20.0, step=2.0, dev=5.0, test=10.0, mining=0.0, shares=4)
    assert costs.around == 20 + FIXED + 11 * 5 + 10
    steps = costs.steps(10)
    assert steps == int((600 - costs.around) / 2) and costs.minutes(steps) <= 10
    with pytest.raises(UserError, match="budget 2"):
        costs.steps(2)
    assert costs.steps((costs.around + FEWEST_STEPS * 2) / 60) == FEWEST_STEPS


def test_the_mean_of_weights(tiny_towers):
    tiny_bert = tiny_towers("bert")[0]
    first = {"w": torch.tensor([0.0, 4.0]), "n": torch.tensor(3)}
    second = {"w": torch.tensor([1.0, 0.0]), "n": torch.tensor(5)}
    assert averaged(first, second, 0.25)["w"].tolist() == [0.25, 3.0] and averaged(first, second, 0.25)["n"] == 5
    with pytest.raises(ValueError, match="share"):
        averaged(first, second, 1.5)
    start, trained = SentenceEncoder(tiny_bert, pooling="mean"), SentenceEncoder(tiny_bert, pooling="mean")
    with torch.no_grad():
        for parameter in trained.model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    texts = ["a man is playing", "the dog is big"]
    before, after = start.encode(texts), trained.encode(texts)
    mixture = Averaging(start, trained)
    assert np.allclose(mixture.set(0.0).encode(texts), before, atol=1e-6)
    half = mixture.set(0.5).encode(texts)
    assert np.array_equal(mixture.set(1.0).encode(texts), after) and not np.allclose(half, after)
    with pytest.raises(UserError, match="cannot be averaged"):
        Averaging(start, SentenceEncoder(tiny_bert, pooling="cls"))


@pytest.mark.parametrize(("gain", "outcome"), [(0.2, HELPED), (0.0, WORSE), (-0.2, WORSE), (None, UNCLEAR)])
def test_the_verdict(gain, outcome):
    draws = np.random.default_rng(0)
    test = from_pairs((f"q{i}", f"d{i}") for i in range(200))
    before = draws.uniform(0, 0.7, 200)
    after = before + (gain if gain is not None else draws.normal(0.002, 0.3, 200))
    start, adapted = (Answers(values, {"ndcg@10": 100 * values.mean()}) for values in (before, after))
    found = judge(test, start, adapted)
    if gain is None:
        assert found.low is not None and found.high is not None and found.low < 0 < found.high
    assert found.outcome == (outcome if gain is not None or found.adapted > found.start else WORSE)
    assert ("Keep the start" in found.sentence) == (found.outcome != HELPED)
    if found.gained:
        assert found.gained[0][2] - found.gained[0][1] == max(100 * (after - before))


def test_queries_in_answers():
    assert query_in('Query: "how to pump water"\nBecause') == "how to pump water"
    assert query_in("\n- 水泵怎么用？\n") == "水泵怎么用？"
    assert query_in("  \n") == "" and query_in("x" * 301) == ""


@pytest.fixture
def server():
    """A stand-in for an OpenAI-compatible server: it fails once, then asks about the text's fourth word."""
    asked: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            code = 503 if len(asked) == 1 else 400 if asked[-1]["model"] == "wrong" else 200
            text = asked[-1]["messages"][0]["content"]
            answer = {"choices": [{"message": {"content": f'"what is {text.split("number ")[1].split()[0]}?"'}}]}
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *args):
            pass

    running = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}/v1", asked
    running.shutdown()


def test_questions_from_a_server(server, tmp_path, monkeypatch):
    monkeypatch.setattr("cacse_trainer.models.generation.PAUSE", 0.01)
    url, asked = server
    passages = passages_of(documents(30))
    given = {"writer": url, "prompt": None, "count": 10, "seed": 0, "device": "cpu", "shown": False}
    rows = write_questions(passages, tmp_path / "q.csv", model="m", **given)
    assert len(rows) == 10 and all(row.anchor == f"what is {row.document}?" for row in rows)
    assert all(str(row.document) in row.positive for row in rows) and asked[-1]["model"] == "m"
    calls = len(asked)
    assert write_questions(passages, tmp_path / "q.csv", model="m", **given) == rows and len(asked) == calls
    with pytest.raises(UserError, match="answers 400"):
        write_questions(passages, tmp_path / "other.csv", model="wrong", **given)
    with pytest.raises(UserError, match="question_model"):
        write_questions(passages, tmp_path / "none.csv", model=None, **given)
    with pytest.raises(UserError, match="cannot be reached"):
        write_questions(passages, tmp_path / "down.csv", model="m", **{**given, "writer": "http://127.0.0.1:9/v1"})


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\n<html>hello</html>", "no chat completion"),
        (b"HTTP/1.0 200 OK\r\n\r\n" + b"[" * 100_000, "no chat completion"),
        (b"HTTP/1.0 200 OK\r\n\r\n\xff\xfe\0", "no chat completion"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\n{}", "cannot be reached"),
        (b"hello\r\n\r\n", "cannot be reached"),
        (b"", "cannot be reached"),
        (b'HTTP/1.0 200 OK\r\n\r\n{"choices": [{"message": {"content": null}}]}', "wrote 0 queries"),
        (b'HTTP/1.0 200 OK\r\n\r\n{"choices": [{"message": {"content": "half \\ud800 \\u0000 of it"}}]}', None),
    ],
)
def test_whatever_a_server_answers(answer, said, tmp_path, monkeypatch):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.wfile.write(answer)

        def log_message(self, *args):
            pass

    monkeypatch.setattr("cacse_trainer.models.generation.PAUSE", 0.001)
    running = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    given = {"writer": f"http://127.0.0.1:{running.server_port}/v1", "prompt": None, "count": 3, "seed": 0}
    given |= {"device": "cpu", "shown": False, "model": "m"}
    try:
        if said is None:
            rows = write_questions(passages_of(documents(3)), tmp_path / "q.csv", **given)
            assert {row.anchor for row in rows} == {"half ?   of it"}
        else:
            with pytest.raises(UserError, match=said):
                write_questions(passages_of(documents(3)), tmp_path / "q.csv", **given)
            assert not (tmp_path / "q.csv").exists()
    finally:
        running.shutdown()
    with pytest.raises(UserError, match="no URL"):
        write_questions(passages_of(documents(3)), tmp_path / "r.csv", **{**given, "writer": "http://[bad/v1"})


def test_prompts(tmp_path):
    (tmp_path / "p.txt").write_text("no place")
    with pytest.raises(UserError, match="0 times"):
        read_prompt(str(tmp_path / "p.txt"))
    with pytest.raises(UserError, match=r"gone\.txt"):
        read_prompt(str(tmp_path / "gone.txt"))
