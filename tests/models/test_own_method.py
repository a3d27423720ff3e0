"""What CONTRIBUTING promises: an objective or a model from outside the package is trained, exported and reloaded."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, TrainingArguments
from transformers.utils import ModelOutput

from cacse_trainer import CacseTrainer, SentenceEmbeddingModel, SentenceEncoder, load_pairs, load_sentences
from cacse_trainer.encoding.model_card import CardFacts
from cacse_trainer.errors import UserError
from cacse_trainer.export.encoders import export
from cacse_trainer.losses import info_nce
from cacse_trainer.models.base import SentenceConfig, SentenceModel
from cacse_trainer.models.objectives import OBJECTIVES, PAIR, Objective

SENTENCES = ["a man is playing guitar", "the dog", "", "a woman with a blue flute in the park"]


class WordsConfig(SentenceConfig):
    """Configuration of `WordsModel`."""

    model_type = "bag_of_words"

    def __init__(self, vocab_size: int = 27, hidden_size: int = 16, **kwargs):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        super().__init__(**kwargs)


class WordsModel(SentenceModel):
    """The sum of a sentence's word vectors, trained by InfoNCE: a loss, an embedding, and nothing else."""

    config_class = WordsConfig

    def __init__(self, config: WordsConfig):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(0.1)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> ModelOutput:
        views = [self.dropout(self.embed(input_ids[:, v], attention_mask[:, v])) for v in range(2)]
        return ModelOutput(loss=info_nce(*views))

    def embed(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        return (self.words(input_ids) * attention_mask[..., None]).sum(dim=1)


AutoConfig.register("bag_of_words", WordsConfig)
AutoModel.register(WordsConfig, WordsModel)


def pull_together(vectors: Tensor, config) -> Tensor:
    """An objective without negatives: ``1 - cos(anchor, positive)``."""
    return 1 - torch.cosine_similarity(vectors[:, 0], vectors[:, 1]).mean()


@pytest.fixture
def trained_and_exported(text_file, dev_file, tiny_tokenizer, tmp_path):
    """``trained_and_exported(model)`` → its trainer and its exported folder, after a few steps."""

    def run(model):
        args = TrainingArguments(
            str(tmp_path / "run"),
            per_device_train_batch_size=8,
            max_steps=3,
            learning_rate=1e-2,
            eval_strategy="steps",
            eval_steps=2,
            save_strategy="steps",
            save_steps=2,
            load_best_model_at_end=True,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
        )
        before = {name: tensor.clone() for name, tensor in model.named_parameters()}
        data = load_sentences(text_file), {"dev": load_pairs(dev_file)}
        trainer = CacseTrainer(model, args, None, *data, processing_class=tiny_tokenizer)
        trainer.train()
        assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters() if p.requires_grad)
        (name,) = export(model, tiny_tokenizer, tmp_path, CardFacts(title="mine", what=""))
        return trainer, tmp_path / name

    return run


def assert_reloads(model, tokenizer, folder):
    """`SentenceEncoder` gives the trained model's vectors, of the exported folder."""
    with torch.no_grad():
        expected = model.eval().embed(**tokenizer(SENTENCES, padding=True, return_tensors="pt")).numpy()
    found = SentenceEncoder(folder, device="cpu").encode(SENTENCES, normalize=False)
    assert np.abs(found - expected).max() < 1e-5 and np.abs(found).max() > 0.01


def test_own_objective(monkeypatch, tiny_towers, tiny_tokenizer, trained_and_exported):
    monkeypatch.setitem(OBJECTIVES, "pull_together", Objective(pull_together, lambda batch: 0, (PAIR,)))
    model = SentenceEmbeddingModel.from_encoder(tiny_towers("bert")[0], objective="pull_together", pooling="mean")
    trainer, folder = trained_and_exported(model)
    assert trainer.describe()["effective_negatives"] == 0
    assert any("loss_contrastive" in entry for entry in trainer.state.log_history)
    assert_reloads(model, tiny_tokenizer, folder)
    assert type(AutoModel.from_pretrained(folder)).__name__ == "BertModel"


def test_own_model(tiny_tokenizer, trained_and_exported):
    torch.manual_seed(0)
    model = WordsModel(WordsConfig(len(tiny_tokenizer)))
    trainer, folder = trained_and_exported(model)
    assert {entry["step"] for entry in trainer.state.log_history if "eval_dev_spearman" in entry} == {0, 2, 3}
    assert trainer.describe()["effective_negatives"] == 7
    assert_reloads(model, tiny_tokenizer, folder)
    assert type(AutoModel.from_pretrained(folder)) is WordsModel
    assert f"import {__name__}" in (folder / "README.md").read_text()
    with pytest.raises(UserError, match="pooling mean: a WordsModel pools in its own way"):
        SentenceEncoder(folder, pooling="mean", device="cpu")
