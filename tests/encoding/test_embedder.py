"""`Embedder`: the only place where sentences become a model's inputs, on the device that it was given."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

import cacse_trainer
from cacse_trainer.encoding.embedder import Embedder
from cacse_trainer.errors import UserError

PACKAGE = Path(cacse_trainer.__file__).parent

MAKES_INPUTS = {"tokenise", "pad_rows", "batch_encode_plus", "encode_batch"}
MAKES_INPUTS_WITH = {"truncation", "padding", "return_tensors"}
WHAT_ELSE_TOKENISES = {
    "data/collator.py": "training batches",
    "data/tokens.py": "what makes them, here and everywhere else",
    "training/ranking.py": "training batches, of the teacher's inputs",
    "models/translation.py": "a translation model, which writes text",
    "models/generation.py": "a causal language model, likewise",
    "models/cross_encoder.py": "pairs of texts, which have a score and no vector",
    "data/deletion.py": "training batches, of damaged texts",
    "training/guide.py": "training batches, as the guide reads them",
    "training/keeping.py": "training batches, of general sentences",
    "instruct/merging.py": "a language model's next words",
    "models/tokenizer_bundle.py": "a tokenizer made of several",
    "export/graphs.py": "two sentences that a graph is traced with",
    "export/ensemble_module.py": "sentence-transformers' module, which runs without this package",
}


def makes_inputs(path: Path) -> bool:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            if name in MAKES_INPUTS or MAKES_INPUTS_WITH & {keyword.arg for keyword in node.keywords}:
                return True
    return False


def test_there_is_no_second_road():
    found = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if makes_inputs(path)}
    assert found == {"encoding/embedder.py", *WHAT_ELSE_TOKENISES}


def test_a_device_cannot_be_forgotten(tiny_tokenizer):
    with pytest.raises(TypeError, match="device"):
        Embedder(lambda **inputs: inputs["input_ids"], tiny_tokenizer, 8)


def test_vectors_that_are_not_finite(tiny_tokenizer):
    """A model in training may give them, its score is then undefined; of a model with a name they are refused."""

    def embed(input_ids, **rest):
        return torch.where(input_ids[:, :1] > 0, input_ids[:, 1:2] / 0.0, 0.0)

    assert not np.isfinite(Embedder(embed, tiny_tokenizer, 8, "cpu").vectors(["red"])).any()
    with pytest.raises(UserError, match=r"model mine: 2 of 2 vectors are NaN or infinite.*'red'"):
        Embedder(embed, tiny_tokenizer, 8, "cpu", name="mine").vectors(["red", "blue", "red"])
