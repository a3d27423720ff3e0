"""Hard negatives: the definition in a few lines of NumPy, and that the blocked way gives the same."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification

import cacse_trainer
from cacse_trainer import SentenceEncoder, load_sentences, mine_hard_negatives
from cacse_trainer.adaptation import candidates, miner, mining
from cacse_trainer.cli import encode, mine
from cacse_trainer.cli.common import run
from cacse_trainer.data.writers import write_rows
from cacse_trainer.encoding.saving import clean_tokenizer
from cacse_trainer.encoding.vectors import exact
from cacse_trainer.encoding.vectors.exact import ExactVectors
from cacse_trainer.errors import UserError
from cacse_trainer.models.cross_encoder import CrossEncoder
from tests.conftest import WORDS, tiny_config


def lines(count: int, seed: int) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(WORDS[i] for i in draw.integers(len(WORDS), size=draw.integers(3, 9))) for _ in range(count)]


@pytest.fixture(scope="module")
def encoder(tiny_towers) -> SentenceEncoder:
    return SentenceEncoder(tiny_towers("bert")[0], "mean", "cpu")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    """Pairs; some anchors have several positives, written otherwise."""
    made = [{"anchor": a, "positive": p} for a, p in zip(lines(40, 1), lines(40, 2), strict=True)]
    more = [
        {"anchor": row["anchor"].upper() + " ", "positive": p} for row, p in zip(made[:9], lines(9, 3), strict=True)
    ]
    return [*made, *more]


def said(text: str) -> str:
    return " ".join(text.split()).casefold()


def by_definition(
    encoder, rows, corpus, negatives=1, rank_range=(1, 50), limit=lambda s: s - 0.05 * abs(s), prompts=("", "")
):
    """One row after the other, every text compared."""
    texts = list({said(text): text for text in reversed(corpus) if text.strip()}.items())[::-1]
    table = encoder.encode([prompts[1] + text for _, text in texts])
    queries = encoder.encode([prompts[0] + row["anchor"] for row in rows])
    positives = encoder.encode([prompts[1] + row["positive"] for row in rows])
    found = []
    for row, query, positive in zip(rows, queries, positives, strict=True):
        own = {said(other["positive"]) for other in rows if said(other["anchor"]) == said(row["anchor"])}
        own.add(said(row["anchor"]))
        scores = table @ query
        ranked = [i for i in np.argsort(-scores, kind="stable") if texts[i][0] not in own]
        kept = [i for i in ranked[rank_range[0] - 1 : rank_range[1]] if scores[i] <= limit(query @ positive)]
        if len(kept) >= negatives:
            found.append((row["anchor"], row["positive"], *(texts[i][1] for i in kept[:negatives])))
    return found


def as_tuples(data: Dataset) -> list[tuple[str, ...]]:
    return [tuple(row.values()) for row in data]


@pytest.mark.parametrize("block", [16_384, 29])
@pytest.mark.parametrize(
    ("settings", "definition"),
    [
        ({}, {}),
        ({"negatives": 3, "rank_range": (4, 20)}, {"negatives": 3, "rank_range": (4, 20)}),
        ({"ceiling": 0.8, "margin": 0.03, "relative_margin": None}, {"limit": lambda s: min(0.8, s - 0.03)}),
        ({"query_prompt": "the big ", "document_prompt": "a red "}, {"prompts": ("the big ", "a red ")}),
    ],
)
def test_the_same_as_the_definition(encoder, rows, monkeypatch, block, settings, definition):
    """In blocks too: of the corpus, of the rows, of the products."""
    monkeypatch.setattr(candidates, "BLOCK", block)
    monkeypatch.setattr(miner, "BLOCK", block)
    monkeypatch.setattr(exact, "ROWS_AT_ONCE", block)
    corpus = [*lines(150, 4), "", *(row["positive"] for row in rows), *(row["anchor"] for row in rows)]
    found = mine_hard_negatives(encoder, rows, iter(corpus), **settings)
    expected = by_definition(encoder, rows, corpus, **definition)
    assert as_tuples(found.rows) == expected and len(expected) > 0
    names = ["hard_negative"] if settings.get("negatives", 1) == 1 else ["negative_1", "negative_2", "negative_3"]
    assert found.rows.column_names == ["anchor", "positive", *names]
    counts = found.counts
    assert counts["rows"] == len(rows) == counts["mined"] + counts["dropped"] and counts["mined"] == len(expected)
    distinct = len({said(text) for text in corpus if text})
    assert (counts["corpus"], counts["corpus_blank"]) == (distinct, 1)
    assert counts["corpus_repeated"] == len(corpus) - 1 - distinct
    assert counts["above_limit"] > 0


def test_by_default_the_corpus_is_the_positives(encoder, rows):
    found = mine_hard_negatives(encoder, Dataset.from_list(rows))
    assert as_tuples(found.rows) == by_definition(encoder, rows, [row["positive"] for row in rows])


def test_what_says_the_same_is_never_a_negative(encoder):
    """Nor another positive of the anchor, nor the anchor: nothing else is there, so every row is dropped."""
    rows = [{"anchor": "The dog", "positive": "a cat"}, {"anchor": "the  dog", "positive": "a big cat"}]
    corpus = ["A  CAT", "the dog ", "a big Cat", "a cat"]
    found = mine_hard_negatives(encoder, rows, corpus, relative_margin=None)
    assert (len(found.rows), found.counts["dropped"], found.counts["corpus"]) == (0, 2, 3)
    found = mine_hard_negatives(encoder, rows, [*corpus, "a man"], relative_margin=None)
    assert found.rows["hard_negative"][:] == ["a man", "a man"]


def test_an_anchor_with_many_positives(encoder):
    """It is ranked deep enough that its own positives hide nothing."""
    many = list(dict.fromkeys(lines(90, 5)))
    rows = [
        *({"anchor": "the red house", "positive": text} for text in many[:70]),
        {"anchor": "a man", "positive": "a"},
    ]
    found = mine_hard_negatives(encoder, rows, many, rank_range=(1, 3), relative_margin=None)
    assert as_tuples(found.rows) == by_definition(encoder, rows, many, rank_range=(1, 3), limit=lambda s: 2)
    assert len(found.rows) == len(rows)


def test_equal_cosines_go_by_their_place():
    """Whatever the blocks are, and where the cut falls among equal ones."""
    draw = np.random.default_rng(0)
    table = draw.integers(-1, 2, size=(500, 4)).astype(np.float32)  # products are whole numbers: many are equal
    queries = draw.integers(-1, 2, size=(6, 4)).astype(np.float32)
    expected = np.argsort(-(queries @ table.T), axis=1, kind="stable")
    for block in (500, 37):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exact, "ROWS_AT_ONCE", block)
            for count in (1, 60, 500):
                scores, rows = ExactVectors([table], "float32", 4).search(queries, count)
                assert np.array_equal(rows, expected[:, :count])
                assert np.array_equal(scores, np.take_along_axis(queries @ table.T, rows, axis=1))


def test_random_negatives_by_their_seed(encoder, rows):
    corpus = lines(200, 6)
    first, again, other = (
        as_tuples(mine_hard_negatives(encoder, rows, corpus, sampling="random", seed=seed).rows) for seed in (1, 1, 2)
    )
    allowed = {row[:2]: set(row[2:]) for row in by_definition(encoder, rows, corpus, negatives=5)}
    assert first == again != other
    alone = mine_hard_negatives(encoder, rows[:20], corpus, sampling="random", seed=1)  # not by the rows beside it
    assert as_tuples(alone.rows) == first[: len(alone.rows)]
    assert sum(row[2] not in allowed.get(row[:2], ()) for row in first) > 0  # not only the best of them


@pytest.mark.parametrize("index", ["faiss", "flat", "hnsw"])
def test_faiss(encoder, rows, index):
    pytest.importorskip("faiss")
    corpus = lines(300, 7)
    found = as_tuples(mine_hard_negatives(encoder, rows, corpus, index=index).rows)
    expected = as_tuples(mine_hard_negatives(encoder, rows, corpus).rows)
    assert np.mean([row in expected for row in found]) > 0.9 and len(found) > 0.9 * len(expected)


def test_small_vectors_on_the_disk(encoder, rows, tmp_path):
    found = mine_hard_negatives(encoder, rows, lines(200, 8), precision="int8", folder=tmp_path)
    expected = mine_hard_negatives(encoder, rows, lines(200, 8))
    nearly = expected.counts["negative_score"]
    assert abs(found.counts["negative_score"] - nearly) < 0.01 and abs(len(found.rows) - len(expected.rows)) < 4
    assert not list(tmp_path.rglob("vectors.npy"))  # the space is given back at once


@pytest.fixture(scope="module")
def judge(tmp_path_factory, tiny_tokenizer) -> str:
    """Folder of a tiny random cross-encoder."""
    folder = tmp_path_factory.mktemp("judge")
    torch.manual_seed(5)
    config = BertConfig(**{**tiny_config("bert", layers=1).to_dict(), "num_labels": 1})
    BertForSequenceClassification(config).save_pretrained(folder)
    clean_tokenizer(tiny_tokenizer).save_pretrained(folder)
    return str(folder)


def test_a_cross_encoder_scores_pairs_one_by_one_as_in_batches(judge):
    pairs = list(zip(lines(20, 9), lines(20, 10), strict=True))
    one_by_one = np.concatenate([CrossEncoder(judge)([pair]) for pair in pairs])
    assert np.allclose(CrossEncoder(judge, batch_size=7)(pairs), one_by_one, atol=1e-5)


def test_a_cross_encoder_leaves_out_what_it_scores_above_the_positive(encoder, rows, judge):
    corpus = lines(60, 11)
    score = CrossEncoder(judge)
    found = mine_hard_negatives(
        encoder,
        rows,
        corpus,
        negatives=2,
        rank_range=(1, 10),
        relative_margin=None,
        cross_encoder=judge,
        cross_margin=0.01,
        scores=True,
    )
    assert found.counts["by_cross_encoder"] > 0 and len(found.rows) > 3
    ranked = by_definition(encoder, rows, corpus, negatives=10, rank_range=(1, 10), limit=lambda s: 2)
    candidates_of = {row[:2]: row[2:] for row in ranked}
    for row in found.rows:
        pair = row["anchor"], row["positive"]
        others = candidates_of[pair]
        logits = score([pair, *((row["anchor"], text) for text in others)])
        kept = [i for i in np.argsort(-logits[1:], kind="stable") if logits[1 + i] <= logits[0] - 0.01][:2]
        assert [row["negative_1"], row["negative_2"]] == [others[i] for i in kept]
        assert np.allclose(row["scores"], [logits[0], *logits[1:][kept]], atol=1e-5)


def test_scores_are_cosines(encoder, rows):
    found = mine_hard_negatives(encoder, rows, lines(60, 12), scores=True)
    row = found.rows[3]
    expected = encoder.similarity(row["anchor"], [row["positive"], row["hard_negative"]])
    assert np.allclose(row["scores"], expected, atol=1e-5)
    assert found.counts["positive_score"] > found.counts["negative_score"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"negatives": 0}, "negatives 0: at least 1"),
        ({"rank_range": (3, 2)}, "two ranks from 1"),
        ({"rank_range": (1, 2), "negatives": 3}, "fewer than 3 negatives; widen it"),
        ({"relative_margin": 1.5}, "from 0 to 1"),
        ({"sampling": "best"}, "none of top, random"),
        ({"precision": "float64"}, "none of float32"),
        ({"corpus": ["", " "]}, "corpus: holds no text"),
        ({"corpus": ["a", None]}, r"sentences\[1\] is None"),
        ({"rows": []}, "there are none"),
        ({"rows": [{"text": "a"}]}, "no column 'anchor'"),
        ({"folder": "no/such/folder"}, "no such folder"),
        ({"index": "exact", "search_effort": 3}, "search_effort: the exact index"),
    ],
)
def test_wrong_settings_are_told(encoder, wrong, message):
    settings = {"rows": [{"anchor": "a", "positive": "the"}], **wrong}
    with pytest.raises(UserError, match=message):
        mine_hard_negatives(encoder, settings.pop("rows"), settings.pop("corpus", ["a man"]), **settings)


def test_a_classifier_of_several_labels_is_no_cross_encoder(encoder, tiny_towers, tmp_path, tiny_tokenizer):
    BertForSequenceClassification(tiny_config("bert", layers=1)).save_pretrained(tmp_path)
    clean_tokenizer(tiny_tokenizer).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has 2 labels"):
        CrossEncoder(str(tmp_path))
    with pytest.raises(UserError, match="lacks"):  # a plain encoder, whose head would be drawn at random
        CrossEncoder(tiny_towers("bert", num_labels=1)[0])


def test_it_is_imported_when_it_is_asked_for():
    assert cacse_trainer.mine_hard_negatives is mining.mine_hard_negatives
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = cacse_trainer.no_such_name


@pytest.fixture
def files(tmp_path, rows):
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "corpus.txt").write_text("\n".join(lines(80, 13)) + "\n")
    return tmp_path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_the_command(encoder, rows, files, capsys, kind):
    output = files / f"triplets.{kind}"
    flags = ["--model", encoder.name, "--pooling", "mean", "--device", "cpu", "--input", str(files / "pairs.jsonl")]
    flags += ["--corpus", str(files / "corpus.txt"), "--output", str(output), "--scores", "--disable_tqdm"]
    assert run(mine.main, flags) == 0
    told = capsys.readouterr().out
    expected = mine_hard_negatives(encoder, load_sentences(files / "pairs.jsonl"), lines(80, 13), scores=True)
    assert f"{output}: {len(expected.rows)} of {len(rows)} rows" in told and told.count("hard_negative  ") == 3
    columns = ["anchor", "positive", "hard_negative"]
    assert load_sentences(output, columns)[:] == {
        name: [" ".join(text.split()) for text in expected.rows[name]] if kind == "tsv" else expected.rows[name][:]
        for name in columns
    }
    if kind == "jsonl":
        assert json.loads(output.read_text().split("\n")[0])["scores"] == expected.rows[0]["scores"]
    if kind == "parquet":
        assert pq.read_table(output).column("scores").to_pylist() == expected.rows["scores"][:]
    before = output.read_bytes()
    assert run(mine.main, flags) == 2 and "is there already" in capsys.readouterr().err
    assert output.read_bytes() == before
    assert run(mine.main, [*flags, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mined"] == len(expected.rows)
    assert not list(files.glob(".*"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "x.txt"], "ends in .jsonl"),
        (["--rank_range", "9", "3"], "two ranks"),
        (["--corpus", "no_such.txt"], "no such file"),
        (["--cross_encoder", "no/such/model"], "no/such/model"),
        (["--index", "exact", "--search_effort", "3"], "search_effort"),
    ],
)
def test_the_command_refuses(encoder, files, capsys, flags, message):
    given = ["--model", encoder.name, "--pooling", "mean", "--input", str(files / "pairs.jsonl"), "--disable_tqdm"]
    given += [] if "--output" in flags else ["--output", str(files / "out.jsonl")]
    assert run(mine.main, [*given, *flags]) == 2
    assert message in capsys.readouterr().err and not (files / "out.jsonl").exists()


def test_tabs_and_line_breaks_in_every_kind_of_file(tmp_path):
    texts = {"anchor": ['a "quoted"\tword', "two\nlines"], "positive": ["x, y", "é 漢"], "hard_negative": ["1", " 2"]}
    for kind in ("jsonl", "csv", "parquet"):
        write_rows(Dataset.from_dict(texts), tmp_path / f"rows.{kind}")
        assert load_sentences(tmp_path / f"rows.{kind}")[:] == texts
    write_rows(Dataset.from_dict(texts), tmp_path / "rows.tsv")
    assert load_sentences(tmp_path / "rows.tsv")[:]["anchor"] == ['a "quoted" word', "two lines"]


@pytest.fixture
def shared(encoder, files, monkeypatch):
    """The command's flags with the corpus's vectors by shards, and blocks of a few rows."""
    monkeypatch.setattr(mining, "PAIRS_A_BLOCK", 7)
    own = ["--model", encoder.name, "--pooling", "mean", "--device", "cpu", "--disable_tqdm"]
    text = files / "corpus.txt"
    text.write_text("\n  \n" + text.read_text() + "the dog\nThe  dog\n")  # blank and repeated rows have vectors, too
    for shard in ("1/2", "2/2"):
        output = ["--output", str(files / "corpus.npy"), "--shard", shard]
        assert run(encode.main, [*own, "--input", str(text), *output]) == 0
    assert run(encode.main, ["--output", str(files / "corpus.npy"), "--finish"]) == 0
    return [*own, "--input", str(files / "pairs.jsonl"), "--corpus", str(text), "--scores"], files


def test_shards_mine_what_one_process_mines(encoder, rows, shared, capsys, monkeypatch):
    """With the corpus's vectors and without, whatever n is; a broken shard goes on."""
    flags, files = shared
    monkeypatch.setattr(candidates, "BLOCK", 29)
    text = (files / "corpus.txt").read_text().split("\n")[:-1]
    expected = mine_hard_negatives(encoder, load_sentences(files / "pairs.jsonl"), text, scores=True)
    outputs = []
    for count, vectors in ((1, True), (3, True), (3, False)):
        output = files / f"by_{count}_{vectors}.jsonl"
        more = ["--vectors", str(files / "corpus.npy")] if vectors else []
        for number in range(count, 0, -1):
            assert run(mine.main, [*flags, *more, "--output", str(output), "--shard", f"{number}/{count}"]) == 0
        capsys.readouterr()
        if count == 3:  # what is there is not mined again
            assert run(mine.main, [*flags, *more, "--output", str(output), "--shard", "1/1"]) == 0
            assert "in 7 of 7 blocks, 0 of them mined now" in capsys.readouterr().out
        assert run(mine.main, ["--output", str(output), "--finish", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert [told[name] for name in ("rows", "mined")] == [len(rows), len(expected.rows)]
        assert told["negative_score"] == pytest.approx(expected.counts["negative_score"], abs=1e-5)
        assert not output.with_name(f"{output.name}.shards").exists()
        found = [json.loads(line) for line in output.read_text().splitlines()]
        assert [list(row.values())[:3] for row in found] == [list(row.values())[:3] for row in expected.rows]
        outputs.append(output.read_text())
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--shard", "1/2", "--overwrite"], "--overwrite: does nothing with --shard; delete t.jsonl.shards"),
        (["--vectors", "corpus.npy", "--precision", "int8"], "--precision: does nothing with --vectors"),
        (["--finish"], "does nothing with --finish, which needs the output alone"),
        (["--vectors", "corpus.npy", "--truncate_dim", "8"], "the encoder differs in truncate_dim"),
        (["--vectors", "corpus.npy", "--document_prompt", "a "], "the encoder differs in prompt"),
        (["--vectors", "corpus.npy", "--corpus", "other.txt"], "were made of another text than other.txt"),
    ],
)
def test_wrong_flags_of_shards_are_one_line(shared, monkeypatch, capsys, more, words):
    flags, files = shared
    monkeypatch.chdir(files)
    (files / "other.txt").write_text((files / "corpus.txt").read_text().replace("the dog", "the cat"))
    assert run(mine.main, [*flags, "--output", "t.jsonl", *more]) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]
    assert run(mine.main, ["--output", "t.jsonl", "--finish"]) == 2
    assert "holds no shards; start mine --shard 1/n to n/n" in capsys.readouterr().err
    assert run(mine.main, ["--model", "a", "--output", "t.jsonl"]) == 2
    assert "required: --input" in capsys.readouterr().err


def test_shards_of_other_rows_do_not_come_together(shared, capsys):
    flags, files = shared
    command = [*flags, "--output", str(files / "t.jsonl"), "--vectors", str(files / "corpus.npy")]
    assert run(mine.main, [*command, "--shard", "1/2"]) == 0
    assert run(mine.main, ["--output", str(files / "t.jsonl"), "--finish"]) == 2
    assert "blocks are missing or damaged (000001.arrow" in capsys.readouterr().err
    with (files / "pairs.jsonl").open("a") as file:
        file.write('{"anchor": "a man", "positive": "the man"}\n')
    assert run(mine.main, [*command, "--shard", "2/2"]) == 2
    assert "(pairs, blocks; by _shard_1_of_2.json)" in capsys.readouterr().err
