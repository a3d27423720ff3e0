"""`SentenceEncoder`: what it loads, how it pools, and what it says when something is missing."""

import json
import logging

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertModel

from cacse_trainer import CacseBertModel, EnsembleModel, SentenceEmbeddingModel, SentenceEncoder
from cacse_trainer.compute.pooling import pool
from cacse_trainer.encoding.saving import clean_tokenizer
from cacse_trainer.encoding.sentence_transformers import write_modules
from cacse_trainer.encoding.vectors.index import SearchIndex
from cacse_trainer.encoding.vectors.precision import directions, normalized, to_precision
from cacse_trainer.encoding.weighted import WeightedEncoders
from cacse_trainer.errors import RunError, UserError
from cacse_trainer.models.tokenizer_bundle import TokenizerBundle
from tests.conftest import WORDS
from tests.tolerances import assert_near, noise

SENTENCES = ["a man is playing guitar", "the dog", "", "a woman and a cat are running in the big house"]


def plain(folder: str, pooling: str, sentences=tuple(SENTENCES)) -> np.ndarray:
    """The definition: one sentence at a time, no padding."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows = []
    for sentence in sentences:
        with torch.inference_mode():
            output = model(**tokenizer(sentence, return_tensors="pt"), output_hidden_states=True)
        rows.append(pool(pooling, output.last_hidden_state, output.hidden_states)[0].numpy())
    return np.stack(rows)


@pytest.mark.parametrize("pooling", ["cls", "mean", "last_token", "avg_top2", "avg_first_last", "max"])
def test_poolings_of_a_plain_encoder(tiny_towers, pooling):
    folder = tiny_towers("bert")[0]
    encoder = SentenceEncoder(folder, pooling)
    assert_near(encoder.vectors(SENTENCES), plain(folder, pooling))
    assert encoder.pooling == pooling


def test_cls_with_mlp_is_the_pooler(tiny_towers):
    folder = tiny_towers("bert")[0]
    model = BertModel.from_pretrained(folder).eval()
    expected = torch.tanh(model.pooler.dense(torch.from_numpy(plain(folder, "cls")))).detach().numpy()
    assert_near(SentenceEncoder(folder, "cls_with_mlp").vectors(SENTENCES), expected)


def test_a_pooler_that_was_not_saved_is_refused(tiny_towers, tmp_path, tiny_tokenizer):
    BertModel.from_pretrained(tiny_towers("bert")[0], add_pooling_layer=False).save_pretrained(tmp_path)
    clean_tokenizer(tiny_tokenizer).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="needs a trained pooler"):
        SentenceEncoder(tmp_path, "cls_with_mlp")


def test_a_guess_is_never_silent(tiny_towers, caplog):
    folder = tiny_towers("bert")[0]
    with caplog.at_level(logging.WARNING):
        encoder = SentenceEncoder(folder)
    assert encoder.pooling == "mean" and "GUESSED mean" in caplog.text and "--pooling" in caplog.text
    assert encoder.pooling_guessed and not SentenceEncoder(folder, "mean").pooling_guessed


@pytest.mark.parametrize("stated", ["cls", "max"])
def test_pooling_is_read_from_the_folder(tiny_towers, tmp_path, stated, caplog):
    AutoModel.from_pretrained(tiny_towers("bert")[0]).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_towers("bert")[0]).save_pretrained(tmp_path)
    write_modules(tmp_path, pooling=stated, hidden_size=32, max_seq_length=9)
    encoder = SentenceEncoder(tmp_path)
    assert (encoder.pooling, encoder.max_seq_length, caplog.text) == (stated, 9, "")
    assert_near(encoder.vectors(SENTENCES[:3]), plain(str(tmp_path), stated, SENTENCES[:3]))


def test_agrees_with_sentence_transformers(tiny_towers, tmp_path):
    """Dense, Normalize, lower-casing and a default prompt, as the library itself runs them."""
    library = pytest.importorskip("sentence_transformers")
    folder = tiny_towers("bert")[0]
    modules = [
        library.sentence_transformer.modules.Transformer(folder),
        library.sentence_transformer.modules.Pooling(32, "mean"),
        library.base.modules.Dense(32, 16, activation_function=torch.nn.Tanh()),
        library.sentence_transformer.modules.Normalize(),
    ]
    model = library.SentenceTransformer(
        modules=modules, prompts={"q": "the big "}, default_prompt_name="q", device="cpu"
    )
    model.save(str(tmp_path))
    encoder = SentenceEncoder(tmp_path)
    assert encoder.pooling == "mean + dense" and encoder.normalizes
    assert_near(encoder.encode(SENTENCES), model.encode(SENTENCES))


def test_an_unknown_module_is_named(tiny_towers, tmp_path):
    AutoModel.from_pretrained(tiny_towers("bert")[0]).save_pretrained(tmp_path)
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    modules.append({"idx": 1, "name": "1", "path": "1_LSTM", "type": "sentence_transformers.models.LSTM"})
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match="LSTM module"):
        SentenceEncoder(tmp_path)


def test_our_own_checkpoints(tiny_towers, tiny_tokenizer, tmp_path):
    """CACSE sums the towers' CLS states; a single tower keeps its head where it has one; an ensemble weighs."""
    a, b, constraint = tiny_towers("bert")
    tokenizer = clean_tokenizer(tiny_tokenizer)
    cacse = CacseBertModel.from_towers(a, b, constraint, cascade_start_layer=2, constraint_layers=1)
    single = SentenceEmbeddingModel.from_encoder(a, pooling="cls")
    ensemble = EnsembleModel.from_encoders([AutoModel.from_pretrained(x) for x in (a, b)], [0.25, 0.75])
    for name, model in (("cacse", cacse), ("single", single), ("ensemble", ensemble)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    first, second = plain(a, "cls"), plain(b, "cls")
    found = {name: SentenceEncoder(tmp_path / name) for name in ("cacse", "single", "ensemble")}
    assert_near(found["cacse"].vectors(SENTENCES), first + second)
    assert_near(found["ensemble"].vectors(SENTENCES), 0.25 * first + 0.75 * second)
    with torch.inference_mode():
        headed = single.eval().projection_head(torch.from_numpy(first)).numpy()
    assert_near(found["single"].vectors(SENTENCES), headed)
    assert [encoder.pooling for encoder in found.values()] == ["cls", "cls_with_mlp", "cls"]
    assert_near(SentenceEncoder(tmp_path / "single", "cls").vectors(SENTENCES), first)
    mean = plain(a, "mean") + plain(b, "mean")
    assert_near(SentenceEncoder(tmp_path / "cacse", "mean").vectors(SENTENCES), mean)
    with pytest.raises(UserError, match="averages layers"):
        SentenceEncoder(tmp_path / "cacse", "avg_top2")


def test_an_ensemble_with_two_tokenizers(tiny_towers, tmp_path):
    a, b = tiny_towers("bert")[0], tiny_towers("roberta")[0]
    models = [AutoModel.from_pretrained(x) for x in (a, b)]
    EnsembleModel.from_encoders(models, own_tokenizers=True).save_pretrained(tmp_path)
    TokenizerBundle([AutoTokenizer.from_pretrained(x) for x in (a, b)]).save_pretrained(tmp_path)
    expected = plain(a, "cls") + plain(b, "cls")
    assert_near(SentenceEncoder(tmp_path).vectors(SENTENCES), expected)


def test_weighted_encoders(tiny_towers):
    a, b = (SentenceEncoder(folder, "cls") for folder in tiny_towers("bert")[:2])
    total = WeightedEncoders([a, b], [0.25, 0.75])
    expected = 0.25 * a.vectors(SENTENCES) + 0.75 * b.vectors(SENTENCES)
    assert_near(total.vectors(SENTENCES), expected)
    assert total.encode("the dog").shape == (32,) and total.fingerprint() != a.fingerprint()
    with pytest.raises(UserError, match="1 for 2 models"):
        WeightedEncoders([a, b], [1.0])
    small = SentenceEncoder(tiny_towers("bert", hidden_size=16)[0], "cls")
    with pytest.raises(UserError, match="differ in width"):
        WeightedEncoders([a, small])


def test_shapes_and_similarity(tiny_towers):
    encoder = SentenceEncoder(tiny_towers("bert")[0], "mean")
    one, many = encoder.encode("the dog"), encoder.encode(SENTENCES)
    assert one.shape == (32,) and many.shape == (4, 32) and many.dtype == np.float32
    assert_near(np.linalg.norm(many, axis=1), np.ones(4), terms=32)
    assert_near(encoder.encode(SENTENCES, batch_size=1), many)
    assert_near(encoder.encode("the dog", normalize=False), plain(encoder.name, "mean")[1])
    assert encoder.encode([]).shape[0] == 0
    assert isinstance(encoder.similarity("the dog", "the cat"), float)
    assert encoder.similarity("the dog", SENTENCES).shape == (4,)
    assert encoder.similarity(SENTENCES, "the dog").shape == (4,)
    table = encoder.similarity(SENTENCES[:2], SENTENCES)
    assert table.shape == (2, 4)
    assert_near(table, many[:2] @ many.T)


def test_search(tiny_towers, tmp_path):
    encoder = SentenceEncoder(tiny_towers("bert")[0], "mean")
    with pytest.raises(UserError, match="build_index"):
        encoder.search("the dog")
    encoder.build_index(["the dog", "a man is playing guitar", "red"])
    best = encoder.search("the dog", top_k=2, threshold=-1)
    assert best[0][0] == "the dog" and len(best) == 2 and best[0][1] == pytest.approx(1, abs=noise(1.0))
    assert best[0][1] >= best[1][1]
    assert encoder.search("the dog", threshold=1.1) == []
    several = encoder.search(["the dog", "red"], top_k=1)
    assert [hits[0][0] for hits in several] == ["the dog", "red"]
    (tmp_path / "lines.txt").write_text("red\n\nblue\n")
    encoder.build_index(tmp_path / "lines.txt")
    assert {hit[0] for hit in encoder.search("red", threshold=-1)} == {"red", "blue"}
    with pytest.raises(UserError, match="no such file"):
        encoder.build_index(tmp_path / "absent.txt")


def test_a_program_written_for_the_simcse_tool(tiny_towers, tmp_path):
    """Its calls, with all their arguments, unchanged; only the class differs."""
    pytest.importorskip("faiss")
    (tmp_path / "lines.txt").write_text("the dog\na man is playing guitar\nred\n")
    SimCSE = lambda path, device: SentenceEncoder(path, device=device)  # noqa: E731

    model = SimCSE(tiny_towers("bert")[0], device="cpu")
    embeddings = model.encode(
        ["the dog", "red"],
        device="cpu",
        return_numpy=False,
        normalize_to_unit=True,
        keepdim=False,
        batch_size=64,
        max_length=128 // 2,
    )
    assert isinstance(embeddings, torch.Tensor) and embeddings.shape == (2, 32)
    assert model.encode("red", return_numpy=True, keepdim=True).shape == (1, 32)
    assert np.linalg.norm(model.encode("red", normalize_to_unit=False)) != pytest.approx(1, abs=1e-3)
    similarities = model.similarity(["the dog", "red"], ["the dog", "a cat", "blue"], device="cpu")
    assert similarities.shape == (2, 3) and similarities[0][0] == pytest.approx(1, abs=noise(1.0))
    given_keys = model.similarity("red", model.encode(["the dog", "red"], return_numpy=True))
    assert given_keys.shape == (2,) and given_keys[1] == pytest.approx(1, abs=noise(1.0))
    for use_faiss, faiss_fast in ((None, False), (True, False), (False, False), (True, True)):
        model.build_index(
            str(tmp_path / "lines.txt"), use_faiss=use_faiss, faiss_fast=faiss_fast, device="cpu", batch_size=64
        )
        model.add_to_index(["a small cat"], device="cpu", batch_size=64)
        results = model.search(["the dog", "a small cat"], device="cpu", threshold=0.6, top_k=2)
        assert [hits[0][0] for hits in results] == ["the dog", "a small cat"]
        sentence, score = model.search("red", threshold=0.99)[0]
        assert sentence == "red" and score == pytest.approx(1, abs=noise(1.0))


def test_truncated_int8_and_binary_vectors(tiny_towers):
    encoder = SentenceEncoder(tiny_towers("bert")[0], "mean")
    full = encoder.encode(SENTENCES, normalize=False)
    short = encoder.encode(SENTENCES, truncate_dim=10)
    assert_near(short, normalized(full[:, :10]))
    np.testing.assert_array_equal(SentenceEncoder(encoder.name, "mean", truncate_dim=10).encode(SENTENCES), short)
    (small,) = encoder.encode_stream(SENTENCES, precision="int8")
    assert small.dtype == np.int8 and np.abs(small).max(axis=1).tolist() == [127] * 4
    assert (directions(small, "int8", 32) * normalized(full)).sum(axis=1).min() > 0.999
    (bits,) = encoder.encode_stream(SENTENCES, precision="binary", truncate_dim=10)
    assert bits.dtype == np.uint8 and bits.shape == (4, 2)
    np.testing.assert_array_equal(directions(bits, "binary", 10) > 0, short > 0)
    with pytest.raises(UserError, match="int4"):
        encoder.encode("red", precision="int4")
    with pytest.raises(UserError, match="between 1 and the vectors' 32"):
        encoder.encode("red", truncate_dim=33)
    with pytest.raises(UserError, match="none of float32"):
        SentenceEncoder(encoder.name, "mean", dtype="double")


@pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("normalize", [True, False])
def test_quantized_as_sentence_transformers_does(tiny_towers, precision, normalize):
    quantize = pytest.importorskip("sentence_transformers").quantize_embeddings
    encoder = SentenceEncoder(tiny_towers("bert")[0], "mean", truncate_dim=27)
    expected = quantize(encoder.encode(SENTENCES, normalize=normalize), precision)
    found = encoder.encode(SENTENCES, normalize=normalize, precision=precision)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    assert encoder.encode(SENTENCES, precision=precision, convert_to_tensor=True).dtype == torch.from_numpy(found).dtype
    assert encoder.encode([], precision=precision).shape[0] == 0
    if precision.endswith("int8"):
        with pytest.raises(UserError, match="range of several sentences"):
            encoder.encode("red", precision=precision)


def test_streams_hold_a_block_at_a_time(tiny_towers):
    """Of a generator without end only what is needed is read: the block that is given out, and those ahead of it."""
    encoder = SentenceEncoder(tiny_towers("bert")[0], "mean")
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield WORDS[len(taken) % len(WORDS)]

    stream = encoder.encode_stream(endless(), block_size=8)
    blocks = [next(stream) for _ in range(3)]
    assert [block.shape for block in blocks] == [(8, 32)] * 3 and len(taken) <= 8 * 5
    expected = encoder.encode([WORDS[(i + 1) % len(WORDS)] for i in range(24)])
    assert_near(np.concatenate(blocks), expected)
    assert_near(encoder.encode(text for text in SENTENCES), encoder.encode(SENTENCES))
    assert encoder.encode(iter([])).shape == (0, 0)


@pytest.mark.parametrize("precision", ["float32", "int8", "binary"])
def test_exact_search_in_blocks_is_a_plain_sort(precision, monkeypatch):
    monkeypatch.setattr("cacse_trainer.encoding.vectors.exact.ROWS_AT_ONCE", 7)
    monkeypatch.setattr("cacse_trainer.encoding.vectors.exact.QUERIES_AT_ONCE", 3)
    draw = np.random.default_rng(0)
    table, queries = (normalized(draw.normal(size=(n, 24)).astype(np.float32)) for n in (40, 8))
    index = SearchIndex.build([str(i) for i in range(40)], table, precision=precision)
    stored, asked = (directions(to_precision(x, precision), precision, 24) for x in (table, queries))
    cosines = asked @ stored.T
    found = index.search(queries, top_k=5, threshold=-2)
    for row, hits in zip(cosines, found, strict=True):
        assert_near([score for _, score in hits], np.sort(row)[::-1][:5])
        assert_near([row[int(name)] for name, _ in hits], [score for _, score in hits])
    assert all(len(hits) == 40 for hits in index.search(queries, top_k=100, threshold=-2))


@pytest.mark.parametrize("kind", ["exact", "flat", "ivf", "hnsw", "IVF2,Flat"])
def test_indexes_are_saved_with_their_sentences(tiny_towers, tmp_path, kind):
    if kind != "exact":
        pytest.importorskip("faiss")
    encoder = SentenceEncoder(tiny_towers("bert")[0], "mean")
    sentences = [f"the {first} {second}" for first in WORDS[2:12] for second in WORDS[10:]] + ["two\nlines"]
    encoder.build_index(sentences, kind=kind)
    encoder.add_to_index(["the red house"])
    before = encoder.search(["the red house", "a dog"], top_k=3)
    encoder.save_index(tmp_path / "index")
    encoder.save_index(tmp_path / "index")  # replaced as a whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index"]
    again = SentenceEncoder(encoder.name, "mean")
    again.load_index(tmp_path / "index")
    after = again.search(["the red house", "a dog"], top_k=3)
    assert after[0][0][0] == "the red house" and len(again.index) == len(sentences) + 1
    assert [[text for text, _ in hits] for hits in after] == [[text for text, _ in hits] for hits in before]
    again.add_to_index(["a big flute"])  # rows mapped from a file are extended in memory
    assert again.search("a big flute")[0][0] == "a big flute"


def test_an_index_of_another_model_is_refused(tiny_towers, tmp_path):
    a, b = tiny_towers("bert")[:2]
    encoder = SentenceEncoder(a, "mean")
    with pytest.raises(UserError, match="no index yet"):
        encoder.save_index(tmp_path / "index")
    encoder.build_index(["the dog", "red"])
    encoder.save_index(tmp_path / "index")
    with pytest.raises(UserError, match="differs in fingerprint"):
        SentenceEncoder(b, "mean").load_index(tmp_path / "index")
    with pytest.raises(UserError, match="differs in pooling"):
        SentenceEncoder(a, "cls").load_index(tmp_path / "index")
    with pytest.raises(UserError, match="did not write"):
        encoder.save_index(tmp_path)
    (tmp_path / "index" / "vectors.npy").write_bytes(b"cut")
    with pytest.raises(UserError, match="is damaged"):
        encoder.load_index(tmp_path / "index")
    for arguments, words in (
        (dict(kind="nonsense"), "index kind 'nonsense'"),
        (dict(kind="flat", precision="int8"), "exact index"),
        (dict(kind="flat", search_effort=3), "no such setting"),
        (dict(search_effort=3), "compares everything"),
    ):
        if arguments.get("kind"):
            pytest.importorskip("faiss")
        with pytest.raises(UserError, match=words):
            encoder.build_index(["the dog", "red"], **arguments)


@pytest.mark.slow
def test_several_processes_give_the_same_vectors(tiny_towers):
    """Two processes, blocks in order; another encoder than the saved one is refused."""
    encoder = SentenceEncoder(tiny_towers("bert")[0], "mean")
    sentences = [f"the {first} {second}" for first in WORDS for second in WORDS] * 10
    found = encoder.encode(sentences, device=["cpu", "cpu"])
    assert_near(found, encoder.encode(sentences))
    encoder.close()
    encoder.model.embeddings.word_embeddings.weight.data += 1e-3
    with pytest.raises(RunError, match="process ended"):
        encoder.encode(SENTENCES, device=["cpu"])
    encoder.close()


def test_a_model_without_a_tokenizer(tiny_towers, tmp_path):
    AutoModel.from_pretrained(tiny_towers("bert")[0]).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no tokenizer") as told:
        SentenceEncoder(tmp_path)
    assert "\n" not in str(told.value)


def test_wrong_models_are_told_in_one_line(tiny_towers, tmp_path):
    folder = tiny_towers("bert")[0]
    (tmp_path / "export" / "encoder").mkdir(parents=True)
    (tmp_path / "export" / "encoder" / "config.json").write_text("{}")
    (tmp_path / "weights.bin").write_text("")
    cases = {
        "is a file; give the folder": dict(path=tmp_path / "weights.bin"),
        "no such folder": dict(path=tmp_path / "absent" / "model"),
        "did you mean .*encoder": dict(path=tmp_path),
        "did you mean mean": dict(path=folder, pooling="meen"),
        "cannot be read|connect|offline": dict(path="owner/no-such-model"),
        "beyond the 64 tokens": dict(path=folder, pooling="cls", max_seq_length=65),
    }
    for words, arguments in cases.items():
        with pytest.raises(UserError, match=f"(?i){words}") as told:
            SentenceEncoder(**arguments)
        assert "\n" not in str(told.value)


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch):
    """Each file that is asked for waits for the network anew."""
    asked = []
    monkeypatch.setattr("cacse_trainer.models.pretrained.cached_file", lambda *given, **more: asked.append(given))
    with pytest.raises(UserError, match="model owner/no-such-model"):
        SentenceEncoder("owner/no-such-model")
    assert not asked


def test_broken_weights_are_told(tiny_towers):
    encoder = SentenceEncoder(tiny_towers("bert")[0], "mean")
    encoder.model.embeddings.LayerNorm.weight.data[0] = float("nan")
    with pytest.raises(UserError, match=r"2 of 2 vectors are NaN.*'red'"):
        encoder.encode(["red", "blue"])


def test_weights_that_loading_draws_are_not_in_the_fingerprint(masked_lm):
    """A checkpoint without a pooler, such as roberta-base's: each load draws one, which no pooling reads."""
    first, second = SentenceEncoder(masked_lm, "cls"), SentenceEncoder(masked_lm, "cls")
    assert not torch.equal(first.model.pooler.dense.weight, second.model.pooler.dense.weight)
    assert first.fingerprint() == second.fingerprint()
    assert SentenceEncoder(masked_lm, "cls", dtype=torch.bfloat16).fingerprint() == first.fingerprint()


def test_the_fingerprint_follows_the_weights(tiny_towers):
    a, b = (SentenceEncoder(folder, "mean") for folder in tiny_towers("bert")[:2])
    assert a.fingerprint() == SentenceEncoder(tiny_towers("bert")[0], "cls").fingerprint() != b.fingerprint()
    before = a.fingerprint()
    a.model.embeddings.word_embeddings.weight.data += 1e-4
    assert a.fingerprint() != before


def test_bf16_is_close(tiny_towers):
    folder = tiny_towers("bert")[0]
    encoder, rounding = SentenceEncoder(folder, "mean"), SentenceEncoder(folder, "mean", dtype="bf16")
    exact, rounded = encoder.encode(SENTENCES), rounding.encode(SENTENCES)
    assert rounding.fingerprint() == encoder.fingerprint()  # what one has indexed, the other may search
    assert rounded.dtype == np.float32 and (exact * rounded).sum(1).min() > 0.999
