"""`compute`: int8 beside float32, what `auto` takes, and that vectors of two kinds never mix."""

import json
import logging

import numpy as np
import pytest
import torch
from torch import nn
from transformers import DistilBertConfig, DistilBertModel, ModernBertConfig, ModernBertModel

from cacse_trainer import SentenceEncoder
from cacse_trainer.cli import encode, search
from cacse_trainer.cli.common import run
from cacse_trainer.compute.int8 import int8_runs
from cacse_trainer.data import load_pairs
from cacse_trainer.encoding import computing
from cacse_trainer.encoding.computing import Measured, fastest, set_int8
from cacse_trainer.encoding.saving import clean_tokenizer
from cacse_trainer.errors import UserError
from tests.conftest import write_sentences
from tests.tiny_decoders import make_tiny_decoder

pytestmark = pytest.mark.skipif(not int8_runs(), reason="torch has no int8 products on this processor")
SENTENCES = ["a man is playing guitar", "the dog", "", "a woman and a cat " * 12, "not", "the red house"]
LOST = 1e-2
"""The cosine that int8 may lose."""
SIZES = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def loss(first: np.ndarray, second: np.ndarray) -> float:
    return float(1 - (first.astype(np.float64) * second).sum(axis=1).min())


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_towers, tiny_tokenizer):
    """Kinds whose layers are run by this package, and kinds that run by themselves."""
    made = tmp_path_factory.mktemp("kinds")
    torch.manual_seed(0)
    others = {
        "distilbert": DistilBertModel(DistilBertConfig(vocab_size=32, dim=32, n_layers=2, n_heads=4, hidden_dim=64)),
        "modernbert": ModernBertModel(ModernBertConfig(**SIZES, intermediate_size=64, pad_token_id=0)),
    }
    for kind, model in others.items():
        model.save_pretrained(made / kind)
        clean_tokenizer(tiny_tokenizer).save_pretrained(made / kind)
    own = {kind: tiny_towers(kind)[0] for kind in ("bert", "roberta")}
    return {**own, **{kind: str(made / kind) for kind in others}, "llama": make_tiny_decoder(made)}


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "modernbert", "llama"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_alone_in_a_batch_and_packed(folders, kind, pooling):
    """Each way is as near to float32; loaded again the vectors are the same."""
    expected = SentenceEncoder(folders[kind], pooling, "cpu").encode(SENTENCES)
    encoder = SentenceEncoder(folders[kind], pooling, "cpu", compute="int8")
    found = encoder.encode(SENTENCES)
    alone = np.stack([encoder.encode(sentence) for sentence in SENTENCES])
    assert 0 < loss(expected, found) < LOST and loss(expected, alone) < LOST
    assert loss(expected, encoder.encode(SENTENCES, batch_size=4)) < LOST
    assert np.array_equal(SentenceEncoder(folders[kind], pooling, "cpu", compute="int8").encode(SENTENCES), found)
    if kind == "bert":
        encoder.model.set_attn_implementation("eager")  # the encoder's own forward, over padded rows
        assert loss(expected, encoder.encode(SENTENCES)) < LOST


def test_what_an_int8_encoder_says_of_itself(tiny_towers, tmp_path):
    folder = tiny_towers("bert")[0]
    plain, small = (SentenceEncoder(folder, "mean", "cpu", compute=kind) for kind in ("float32", "int8"))
    assert small.fingerprint() == plain.fingerprint()
    assert (plain.settings()["dtype"], small.settings()["dtype"]) == ("float32", "int8")
    assert plain.identity() != small.identity() and small.to("cpu") is small
    assert SentenceEncoder(folder, "mean", "cpu", compute="bf16").settings()["dtype"] == "bfloat16"
    assert np.array_equal(small.recipe()(device="cpu").encode("the dog"), small.encode("the dog"))
    for mistake, told in (
        (lambda: small.save_pretrained(tmp_path / "x"), "was loaded in int8; load it in float32"),
        (lambda: small.to("meta"), "computes in int8, on the CPU alone"),
        (lambda: SentenceEncoder(folder, compute="int4"), "'int4' is none of float32, bf16, int8, auto"),
        (lambda: SentenceEncoder(folder, compute="int8", dtype="bf16"), "two names of one thing"),
        (lambda: set_int8("m", nn.Linear(1, 1), torch.device("cuda")), "on the CPU, not on cuda"),
        (lambda: set_int8("m", nn.Embedding(2, 2), torch.device("cpu")), "has no linear layers"),
    ):
        with pytest.raises(UserError, match=told):
            mistake()


@pytest.mark.parametrize(
    ("bf16", "int8", "best"),
    [
        ((80.0, 1.0), (79.95, 0.5), "int8"),
        ((80.0, 1.0), (79.8, 0.5), "bf16"),
        ((80.0, 1.9), (79.8, 0.5), "float32"),
        ((float("nan"), 0.1), (81.0, 1.9), "float32"),
    ],
)
def test_auto_takes_the_fastest_that_loses_nothing(bf16, int8, best):
    assert fastest({"float32": Measured(80.0, 2.0), "bf16": Measured(*bf16), "int8": Measured(*int8)}) == best
    assert fastest({"float32": Measured(80.0, 2.0)}) == "float32"


def test_auto_measures_and_tells(tiny_towers, dev_file, monkeypatch, caplog):
    folder, seconds = tiny_towers("bert")[0], {"float32": 2.0, "bfloat16": 3.0, "int8": 1.0}
    asked = []

    def measure(encoder, pairs):
        asked.append(len(pairs))
        return Measured(80.0, seconds[encoder.compute])

    monkeypatch.setattr(computing, "_measure", measure)
    with caplog.at_level(logging.INFO):
        encoder = SentenceEncoder(folder, "mean", "cpu", compute="auto", compute_dev=dev_file)
    assert encoder.compute == "int8" and set(asked) == {len(load_pairs(dev_file))}
    assert f"compute auto takes int8 (Spearman x100 on {dev_file}: float32 80.00 in 2.00 s" in caplog.text
    assert encoder.recipe()(device="cpu").compute == "int8" and len(asked) <= 3  # a process of it measures nothing
    monkeypatch.undo()
    assert computing._measure(encoder, load_pairs(dev_file)).seconds > 0
    with pytest.raises(UserError):
        SentenceEncoder(folder, "mean", "cpu", compute="auto", compute_dev=folder + "/none.csv")


def test_vectors_of_two_kinds_never_mix(tiny_towers, tmp_path, capsys):
    text, output = write_sentences(tmp_path / "text.txt", 12), tmp_path / "v.npy"
    flags = ["--model", tiny_towers("bert")[0], "--pooling", "mean", "--device", "cpu", "--disable_tqdm"]
    made = [*flags, "--input", str(text), "--output", str(output)]
    assert run(encode.main, [*made, "--compute", "int8"]) == 0
    assert json.loads((tmp_path / "v.npy.json").read_text())["dtype"] == "int8"
    asked = ["--corpus", str(text), "--vectors", str(output), "--query", "the dog"]
    assert run(search.main, [*flags, *asked, "--compute", "int8"]) == 0
    assert run(search.main, [*flags, *asked]) == 2 and "differs in dtype" in capsys.readouterr().err
    assert run(encode.main, [*made, "--overwrite"]) == 0
    assert run(search.main, [*flags, *asked]) == 0
    assert run(search.main, [*flags, *asked, "--compute", "int8"]) == 2
    index = str(tmp_path / "index")
    built = [*flags, "--corpus", str(text), "--save_index", index]
    assert run(search.main, [*built, "--compute", "int8"]) == 0
    assert run(search.main, [*flags, "--index", index, "--query", "the dog"]) == 0  # as the index was made
    assert run(search.main, [*flags, "--index", index, "--query", "the dog", "--compute", "float32"]) == 2
    assert run(search.main, [*flags, *asked, "--compute", "int8", "--bf16"]) == 2
    assert run(search.main, [*flags, *asked, "--compute", "int8", "--compute_dev", str(text)]) == 2
    assert "--compute_dev: belongs to --compute auto" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_model_loses_under_a_tenth_of_a_point(minilm, shared_data):
    pairs = load_pairs(shared_data / "senteval/downstream/STS/STSBenchmark/sts-dev.csv")
    plain, small = (SentenceEncoder(minilm, device="cpu", compute=kind) for kind in ("float32", "int8"))
    lines = pairs["sentence1"][:300]
    assert loss(plain.encode(lines), small.encode(lines)) < LOST
    assert computing._measure(plain, pairs).score - computing._measure(small, pairs).score < computing.MOST_LOST
