"""sentence-transformers' own tests of loading, encoding and saving, on folders that this package exports."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from cacse_trainer import SentenceEmbeddingModel
from cacse_trainer.encoding.model_card import CardFacts
from cacse_trainer.export.encoders import export
from tests.peers.sources import checkout

EXPORTS = {
    "mean": {"pooling": "mean"},
    "head": {"pooling": "cls", "mlp_only_train": False},
    "prompts": {"pooling": "cls_before_pooler", "matryoshka_dims": [128, 64]},
}
PROMPTS = {"prompts": {"query": "query: ", "document": "passage: "}}
ALL = tuple(EXPORTS)
INAPPLICABLE = {
    "test_similarity_score": (ALL, "weights drawn at random, and sentences that are alike are to be near each other"),
    "test_safe_serialization": (("head",), "counts one file of weights, and the layer behind the pooling has its own"),
    "test_load_local_without_normalize_directory": (("head",), "names the folder after the pooling 2_Normalize"),
    "test_modules_and_path_combo_warns_and_loads_from_path": (("head",), "counts two modules"),
    "test_prompts": (("prompts",), "begins with a model that has none"),
    "test_save_load_prompts": (("prompts",), "begins with a model that has none"),
    "test_device_argument_warns_when_device_map_present": (ALL, "wants another version's words of a warning"),
}
"""Tests that may fail for a good reason: on which exports, and why."""
OFFLINE = ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "We couldn't connect", "in offline mode at")
"""What a test ends with that asks the hub for a model other than the one that is replaced."""


@pytest.fixture
def exported(minilm, tmp_path) -> dict[str, Path]:
    """A folder of each kind, of a BERT with two layers and the vocabulary that the tests' sentences need."""
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    for name, settings in EXPORTS.items():
        model = SentenceEmbeddingModel.from_encoder(str(tmp_path / "start"), **settings)
        export(model, tokenizer, tmp_path, CardFacts(title=name, what=""), name=name, prompts=PROMPTS.get(name))
    return {name: tmp_path / name for name in EXPORTS}


@pytest.mark.slow
def test_the_suite_of_sentence_transformers(exported, tmp_path):
    script = Path(__file__).with_name("run_sentence_transformers.py")
    command = [sys.executable, str(script), str(checkout("sentence-transformers")), str(tmp_path / "hub")]
    done = subprocess.run([*command, *map(str, exported.values())], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = json.loads(done.stdout.splitlines()[-1])
    for name, folder in exported.items():
        found = outcomes[str(folder)]
        passed = [test for test, told in found.items() if told == "passed"]
        elsewhere = [test for test, told in found.items() if any(word in told for word in OFFLINE)]
        wrong = {test: told for test, told in found.items() if told not in ("passed", "skipped")}
        wrong = {test: told for test, told in wrong.items() if test not in elsewhere}
        print(f"{name}: {len(passed)} passed, {len(elsewhere)} of other models, {len(wrong)} failed {wrong}")
        expected = {test for test, (exports, _) in INAPPLICABLE.items() if name in exports}
        assert len(passed) > 80
        assert {test.partition("[")[0] for test in wrong} <= expected, wrong
