"""A plain `torch.nn.Module` with a loss and an ``embed`` is trained; peft's adapters become the model's own."""

import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.utils import ModelOutput

from cacse_trainer import CacseBertModel, SentenceEmbeddingModel, SentenceEncoder
from cacse_trainer.errors import UserError
from cacse_trainer.losses import info_nce
from cacse_trainer.models.adapters import merge_adapter
from cacse_trainer.settings.arguments import CacseTrainingArguments
from tests.conftest import WORDS
from tests.documents import blocks
from tests.tolerances import assert_near

UNWATCHED = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}


class Words(nn.Module):
    """The sum of a sentence's word vectors; its ``forward`` and ``embed`` know of no ``token_type_ids``."""

    def __init__(self, form=dict):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.dropout = nn.Embedding(len(WORDS) + 5, 16), nn.Dropout(0.1)
        self.form = form

    def forward(self, input_ids: Tensor, attention_mask: Tensor):
        loss = info_nce(*[self.dropout(self.embed(input_ids[:, v], attention_mask[:, v])) for v in range(2)])
        return (loss,) if self.form is tuple else self.form(loss=loss)

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return (self.words(input_ids) * attention_mask[..., None]).sum(dim=1)


@pytest.mark.parametrize(
    ("form", "kind"),
    [(dict, TrainingArguments), (tuple, CacseTrainingArguments), (ModelOutput, CacseTrainingArguments)],
)
def test_a_module_of_ones_own(make_trainer, tmp_path, form, kind):
    """Trained, scored, its best kept, gone on with to the very same weights; given away it is not."""
    module = Words(form)
    trainer = make_trainer(model=module, kind=kind, max_steps=6)
    trainer.train()
    assert trainer.model is module and trainer.describe()["effective_negatives"] == 7
    best = tmp_path / "run" / f"checkpoint-{trainer.state.best_global_step}"
    assert str(best) == trainer.state.best_model_checkpoint
    assert torch.equal(load_file(best / "model.safetensors")["words.weight"], module.words.weight)
    assert {"tokenizer.json", "training_args.bin"} <= set(os.listdir(best))
    assert not {"config.json", "modules.json"} & set(os.listdir(best))
    score = trainer.evaluate()["eval_stsb_spearman"]
    assert (
        trainer.state.best_metric
        == pytest.approx(score)
        == trainer.predict(trainer.eval_dataset["stsb"]).metrics["test_spearman"]
    )
    with pytest.raises(
        UserError, match=r"Words is a plain module.*trainer\.save_model\(folder\), or make it a Sentence"
    ):
        trainer.export()


def test_a_module_goes_on_where_it_was(make_trainer, tmp_path):
    ends = []
    for folder, start in (("whole", None), ("whole", "checkpoint-2")):
        trainer = make_trainer(folder, model=Words(), max_steps=4, save_total_limit=None, load_best_model_at_end=False)
        trainer.train(resume_from_checkpoint=start and str(tmp_path / folder / start))
        ends.append(trainer.model.words.weight)
    assert torch.equal(*ends)


def test_what_a_module_lacks_is_said(make_trainer):
    with pytest.raises(UserError, match=r"Linear: the trainer scores a model by its embed"):
        make_trainer(model=nn.Linear(2, 2))
    with pytest.raises(UserError, match="mini_batch_size: a Words encodes its batch by itself"):
        make_trainer(model=Words(), kind=CacseTrainingArguments, mini_batch_size=4)


def test_the_page_of_the_guide_runs(tmp_path, monkeypatch, text_file, dev_file, tiny_tokenizer):
    """As it is written, on small files in the place of those that it names."""
    page = (Path(__file__).parents[2] / "docs" / "guides" / "own_model.md").read_text(encoding="utf-8")
    tiny_tokenizer.save_pretrained(tmp_path / "bert-base-uncased")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in blocks(page, "python"):
        code = code.replace("my_sentences.txt", str(text_file)).replace("sts-dev.csv", str(dev_file))
        exec(re.sub(r"max_steps=\d+", "max_steps=2, use_cpu=True", code), names)
    assert names["vectors"].shape == (1, 128) and (tmp_path / "runs" / "mine").is_dir()


# ---- adapters ----


def wrap_model(model, config, peft):
    return peft.get_peft_model(model, config)


def wrap_encoder(model, config, peft):
    model.encoder = peft.get_peft_model(model.encoder, config)
    return model


def add_to_model(model, config, peft):
    model.add_adapter(config)
    return model


def add_to_encoder(model, config, peft):
    model.encoder.add_adapter(config)
    return model


@pytest.mark.parametrize(
    ("way", "task_type"),
    [(wrap_model, None), (wrap_model, "FEATURE_EXTRACTION")]
    + [(way, None) for way in (wrap_encoder, add_to_model, add_to_encoder)],
)
def test_adapters_of_peft(make_trainer, tiny_towers, tmp_path, way, task_type):
    """Whichever way it came in: encoded in small batches, saved alone, read again, gone on with, merged in exports."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["query", "value"], task_type=task_type)

    def build():
        torch.manual_seed(3)
        return way(SentenceEmbeddingModel.from_encoder(tiny_towers("bert", layers=1)[0], pooling="mean"), config, peft)

    settings = {**UNWATCHED, "kind": CacseTrainingArguments, "mini_batch_size": 4, "length_buckets": "1"}
    saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
    trainer = make_trainer(model=build(), max_steps=2, **{**settings, **saving})
    rows = []
    trainer.model.encoder.register_forward_pre_hook(
        lambda module, args, given: rows.append(len(given["input_ids"])), with_kwargs=True
    )
    trainer.train()
    assert set(rows) == {4}
    inputs = dict(trainer.processing_class(["a man", "the red dog"], padding=True, return_tensors="pt"))
    trained = trainer.model.eval().embed(**inputs).detach()
    folder = tmp_path / "run" / "checkpoint-1"
    assert "adapter_model.safetensors" in os.listdir(folder) and "model.safetensors" not in os.listdir(folder)
    trainer.save_model(str(tmp_path / "saved"))
    assert torch.equal(SentenceEmbeddingModel.from_pretrained(tmp_path / "saved").embed(**inputs), trained)
    assert not torch.equal(SentenceEmbeddingModel.from_pretrained(folder).embed(**inputs), trained)
    again = make_trainer(model=build(), max_steps=2, **settings)
    again.train(resume_from_checkpoint=str(folder))
    assert torch.equal(again.model.eval().embed(**inputs), trained)
    trainer.export(tmp_path / "export")
    found = SentenceEncoder(tmp_path / "export" / "encoder", device="cpu").encode(["a man"], normalize=False)
    assert abs(found[0] - trained[0].numpy()).max() < 1e-5


@pytest.mark.parametrize(
    "beside", [{"modules_to_save": ["LayerNorm"]}, {"trainable_token_indices": {"word_embeddings": [3, 4]}}]
)
def test_what_peft_trains_beside_the_layers_is_merged_too(tiny_towers, beside):
    peft = pytest.importorskip("peft")
    model = SentenceEmbeddingModel.from_encoder(tiny_towers("bert", layers=1)[0], pooling="mean").eval()
    names = set(model.encoder.state_dict())
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["query"], **beside))
    with torch.no_grad():
        for parameter in filter(lambda one: one.requires_grad, model.parameters()):
            parameter.add_(torch.randn_like(parameter))
    inputs = {"input_ids": torch.tensor([[2, 3, 4, 5]])}
    expected = model.embed(**inputs).detach()
    merge_adapter(model.encoder)
    assert set(model.encoder.state_dict()) == names
    assert_near(model.embed(**inputs), expected)


def test_adapters_that_would_be_lost_are_refused(make_trainer, tiny_towers):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["query"])
    a, b, constraint = tiny_towers("bert")
    towers = CacseBertModel.from_towers(a, b, constraint, cascade_start_layer=2, constraint_layers=1)
    with pytest.raises(UserError, match="CacseBertModel trains no adapter"):
        towers.add_adapter(config)
    with pytest.raises(UserError, match="CacseBertModel trains no adapter"):
        make_trainer(model=peft.get_peft_model(towers, config))
    single = {kind: SentenceEmbeddingModel.from_encoder(a, pooling=kind) for kind in ("cls", "mean")}
    with pytest.raises(UserError, match=r"projection_head.* is none of it: choose a pooling without a head"):
        single["cls"].add_adapter(config)
    with pytest.raises(UserError, match="adapters other: a model trains one, named default"):
        single["mean"].add_adapter(config, adapter_name="other")
    with pytest.raises(UserError, match=r"add_adapter: .*not found"):
        single["mean"].add_adapter(peft.LoraConfig(target_modules=["nothing"]))
    tokens = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="FEATURE_EXTRACTION")
    with pytest.raises(UserError, match="puts tokens before the text"):
        single["mean"].add_adapter(tokens)
    trained = SentenceEmbeddingModel.from_encoder(a, pooling="mean")
    trained.add_adapter(config)
    with pytest.raises(UserError, match="there is one already, which the new one would replace"):
        trained.add_adapter(config)
    pattern = peft.LoraConfig(r=2, target_modules=".*query")
    with pytest.raises(UserError, match=r"finds its layers by the pattern '\.\*query'"):
        make_trainer(model=peft.get_peft_model(single["mean"], pattern))
