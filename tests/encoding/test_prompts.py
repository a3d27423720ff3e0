"""Prompts per column: in rows, dev sets, checkpoints and exports, and in what encodes and searches with them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cacse_trainer import SentenceEncoder
from cacse_trainer.cli.main import main
from cacse_trainer.data import ContrastiveCollator
from cacse_trainer.data.tokens import check_limit
from cacse_trainer.encoding.sentence_transformers import write_modules
from cacse_trainer.encoding.weighted import WeightedEncoders
from cacse_trainer.errors import UserError
from cacse_trainer.models.tokenizer_bundle import TokenizerBundle
from tests.conftest import WORDS

QUERY, DOCUMENT = "the dog ", "a man "
SENTENCES = ["a woman is playing", "the cat", "dog"]


@pytest.fixture
def folder(tiny_towers, tmp_path):
    """``folder(prompts, name)`` → an encoder's folder that states them."""
    from transformers import AutoModel, AutoTokenizer

    def make(prompts=None, name="prompted"):
        path = tmp_path / name
        source = tiny_towers("bert")[0]
        AutoModel.from_pretrained(source).save_pretrained(path)
        AutoTokenizer.from_pretrained(source).save_pretrained(path)
        write_modules(path, pooling="mean", hidden_size=32, max_seq_length=32, prompts=prompts)
        return str(path)

    return make


@pytest.fixture
def rows(tmp_path):
    """A file of 32 anchors and positives, which is a retrieval set, too."""
    random = np.random.default_rng(2)
    lines = ["anchor,positive"]
    for _ in range(32):
        words = random.choice(WORDS, size=6, replace=False).tolist()
        lines.append(f"{' '.join(words[:4])},{' '.join(words[2:])}")
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_rows(tiny_tokenizer):
    prompted = ContrastiveCollator(tiny_tokenizer, 32, query_prompt=QUERY, document_prompt=DOCUMENT)
    plain = ContrastiveCollator(tiny_tokenizer, 32)
    row = {"anchor": "cat", "positive": "woman", "hard_negative": "dog"}
    by_hand = {"anchor": QUERY + "cat", "positive": DOCUMENT + "woman", "hard_negative": DOCUMENT + "dog"}
    assert torch.equal(prompted([row])["input_ids"], plain([by_hand])["input_ids"])
    for sides in ({"text": "cat"}, {"sentence1": "cat", "sentence2": "dog", "score": 1.0}):
        assert torch.equal(prompted([sides])["input_ids"], plain([sides])["input_ids"])
    with pytest.raises(UserError, match="no room for text beside 4 special tokens; give at least 5"):
        ContrastiveCollator(tiny_tokenizer, 4, query_prompt=QUERY)
    with pytest.raises(UserError, match="give at least 5"):
        check_limit(TokenizerBundle([tiny_tokenizer, tiny_tokenizer]), 4, QUERY)


def test_encode_equals_sentence_transformers(folder):
    library = pytest.importorskip("sentence_transformers")
    path = folder({"query": QUERY, "document": DOCUMENT})
    ours, theirs = SentenceEncoder(path, device="cpu"), library.SentenceTransformer(path, device="cpu")
    for name, text in (("query", QUERY), ("document", DOCUMENT)):
        expected = theirs.encode(SENTENCES, prompt_name=name, normalize_embeddings=True)
        np.testing.assert_allclose(ours.encode(SENTENCES, prompt_name=name), expected, atol=1e-5)
        np.testing.assert_allclose(ours.encode(SENTENCES, prompt=text), expected, atol=1e-5)
    np.testing.assert_allclose(ours.encode(SENTENCES), theirs.encode(SENTENCES, normalize_embeddings=True), atol=1e-5)
    assert np.abs(ours.encode(SENTENCES) - ours.encode(SENTENCES, prompt_name="query")).max() > 1e-3
    with pytest.raises(UserError, match="has no prompt 'other'; it has query, document"):
        ours.encode(SENTENCES, prompt_name="other")
    with pytest.raises(UserError, match="not both"):
        ours.encode(SENTENCES, prompt_name="query", prompt="x")


def test_a_given_prompt_takes_the_place_of_the_default_one(folder):
    path = folder({"query": QUERY, "passage": DOCUMENT})
    plain = SentenceEncoder(folder(name="plain"), device="cpu")
    settings = {"prompts": {"query": QUERY, "passage": DOCUMENT}, "default_prompt_name": "query"}
    (Path(path) / "config_sentence_transformers.json").write_text(json.dumps(settings))
    encoder = SentenceEncoder(path, device="cpu")
    assert (encoder.query_prompt, encoder.document_prompt) == (QUERY, DOCUMENT)
    for given, before in (({}, QUERY), ({"prompt_name": "document"}, DOCUMENT), ({"prompt": ""}, "")):
        expected = plain.encode([before + sentence for sentence in SENTENCES])
        np.testing.assert_allclose(encoder.encode(SENTENCES, **given), expected, atol=1e-6)


def test_search(folder, tmp_path):
    encoder, plain = SentenceEncoder(folder({"query": QUERY, "document": DOCUMENT}), device="cpu"), folder(name="plain")
    encoder.build_index(SENTENCES)
    by_hand = SentenceEncoder(plain, device="cpu")
    scores = by_hand.similarity([QUERY + "cat"], [DOCUMENT + sentence for sentence in SENTENCES])[0]
    assert [score for _, score in encoder.search("cat", threshold=-1)] == pytest.approx(sorted(scores)[::-1], abs=1e-5)
    encoder.save_index(tmp_path / "index")
    encoder.load_index(tmp_path / "index")
    encoder.index.made_by.pop("prompt")
    encoder.save_index(tmp_path / "without")  # as one that was made before the folder stated prompts
    with pytest.raises(UserError, match="differs in prompt"):
        encoder.load_index(tmp_path / "without")
    assert WeightedEncoders([by_hand, by_hand]).query_prompt is None
    with pytest.raises(UserError, match="prompts differ"):
        _ = WeightedEncoders([encoder, by_hand]).query_prompt


def test_command_encodes_with_a_prompt(folder, tmp_path, capsys):
    model, corpus = folder({"query": QUERY, "document": DOCUMENT}), tmp_path / "corpus.txt"
    corpus.write_text("\n".join(SENTENCES) + "\n")
    common = ["--model", model, "--device", "cpu", "--disable_tqdm"]

    def encode(name, *flags):
        return main(["encode", *common, "--input", str(corpus), "--output", str(tmp_path / name), *flags])

    assert encode("d.npy", "--prompt_name", "document") == 0 and encode("plain.npy") == 0
    expected = SentenceEncoder(model, device="cpu").encode(SENTENCES, prompt_name="document")
    np.testing.assert_allclose(np.load(tmp_path / "d.npy"), expected, atol=1e-6)
    assert json.loads((tmp_path / "d.npy.json").read_text())["prompt"] == DOCUMENT
    search = ["search", *common, "--corpus", str(corpus), "--query", "cat", "--vectors"]
    assert main([*search, str(tmp_path / "d.npy")]) == 0
    assert main([*search, str(tmp_path / "plain.npy")]) == 2
    assert "differs in prompt" in capsys.readouterr().err
    assert encode("no.npy", "--prompt_name", "other") == 2


def test_a_run_takes_and_hands_on_prompts(folder, rows, tmp_path):
    def run(name, model, *flags):
        given = ["--model", model, "--train_file", rows, "--dev_file", f"docs={rows}", "--output_dir"]
        given += [str(tmp_path / name), "--max_steps", "2", "--eval_steps", "2", "--per_device_train_batch_size", "8"]
        assert main(["train", *given, "--bf16", "false", "--use_cpu", "true", *flags]) == 0
        return json.loads((tmp_path / name / "training_report.json").read_text())

    stated = folder({"query": QUERY, "passage": DOCUMENT})
    report = run("stated", stated)
    assert (report["settings"]["query_prompt"], report["settings"]["document_prompt"]) == (QUERY, DOCUMENT)
    given = run("given", folder(name="plain"), "--query_prompt", QUERY, "--document_prompt", DOCUMENT)
    assert given["train_loss"] == report["train_loss"] and given["best"] == report["best"]
    assert run("none", stated, "--query_prompt", "", "--document_prompt", "")["train_loss"] != report["train_loss"]
    exported = SentenceEncoder(str(tmp_path / "given/export/encoder"), device="cpu")
    assert dict(exported.prompts) == {"query": QUERY, "document": DOCUMENT}
    assert report["exported"]["encoder"]["docs"] == pytest.approx(report["best"], abs=1e-6)
    assert f"`{QUERY}` before what is a query" in (tmp_path / "given/export/encoder/README.md").read_text()
    assert SentenceEncoder(str(tmp_path / "none/export/encoder"), device="cpu").prompts == {}
    saved = SentenceEncoder(str(tmp_path / "given"), device="cpu")
    np.testing.assert_allclose(
        saved.encode(SENTENCES, prompt_name="query"), exported.encode(SENTENCES, prompt_name="query"), atol=1e-5
    )
    again = ["export", "--checkpoint", str(tmp_path / "given"), "--output_dir", str(tmp_path / "again")]
    assert main(again) == 0
    assert dict(SentenceEncoder(str(tmp_path / "again/encoder"), device="cpu").prompts) == dict(exported.prompts)
