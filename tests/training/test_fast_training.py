"""Gradient caching and the fast paths in whole training runs."""

import logging

import pytest
import torch
from transformers import Trainer

from cacse_trainer import CacseBertModel
from cacse_trainer.compute.half import HalfLinear
from cacse_trainer.models.computing import ComputeSettings
from cacse_trainer.settings import arguments
from cacse_trainer.settings.arguments import CacseTrainingArguments
from cacse_trainer.training.automatic import LEAST_GAINED, choose
from tests.conftest import StopAt
from tests.tolerances import GRADIENT, noise


@pytest.fixture
def make_fast(make_trainer, tiny_towers):
    """``make_fast(output, dropout, …)`` → a trainer over tiny towers with frozen embeddings, on the fast paths."""

    def make(output, dropout=0.1, **arguments):
        folders = tiny_towers("bert")  # made with seeds of their own, where this is the first test that asks
        torch.manual_seed(3)
        model = CacseBertModel.from_towers(
            *folders,
            cascade_start_layer=2,
            constraint_layers=1,
            tower_dropout=[dropout] * 2,
            cascade_dropout=dropout,
            constraint_dropout=dropout,
            freeze_embeddings=True,
        )
        settings = {"fast_paths": "true", "bf16": False, "load_best_model_at_end": False, "save_total_limit": None}
        settings.update(arguments)
        return make_trainer(output, model=model, kind=CacseTrainingArguments, **settings)

    return make


def history(trainer, metric="loss"):
    return {entry["step"]: entry[metric] for entry in trainer.state.log_history if metric in entry}


def test_caching_and_fast_paths_train_as_the_plain_way(make_fast):
    """Without dropout: losses and dev scores step by step, with gradient accumulation.

    Plain gradient descent: Adam's first step is the gradient's sign, where rounding decides about gradients near 0.
    """
    accumulation = {"gradient_accumulation_steps": 2, "max_steps": 3, "dropout": 0.0, "optim": "sgd"}
    plain = make_fast("plain", fast_paths="false", length_buckets="1", **accumulation)
    fast = make_fast("fast", mini_batch_size=5, **accumulation)
    assert type(fast.model.tower_a.encoder.layer[0].output.dense) is HalfLinear
    assert type(plain.model.tower_a.encoder.layer[0].output.dense) is torch.nn.Linear
    for trainer in (plain, fast):
        trainer.train()
    assert history(fast) == pytest.approx(history(plain), rel=GRADIENT * noise(1.0))
    assert len(set(history(plain).values())) == 3
    for metric in ("loss_cascade", "eval_stsb_average_cosine"):
        assert history(fast, metric) == pytest.approx(history(plain, metric), rel=GRADIENT * noise(1.0))


@pytest.mark.parametrize("engine", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_sharded_weights_are_trained_in_the_plain_way(make_fast, monkeypatch, caplog, engine):
    original = Trainer.create_accelerator_and_postprocess
    monkeypatch.setattr(
        Trainer, "create_accelerator_and_postprocess", lambda own: (original(own), setattr(own, engine, True))
    )
    with caplog.at_level(logging.INFO, logger="cacse_trainer"):
        found = [make_fast(f"{buckets}", length_buckets=buckets) for buckets in ("auto", "3")]
    assert [trainer.model.compute for trainer in found] == [ComputeSettings(1), ComputeSettings(3)]
    assert type(found[0].model.tower_a.encoder.layer[0].output.dense) is torch.nn.Linear
    assert found[0].args.to_dict()["length_buckets"] == 1 and not found[0].args.to_dict()["fast_paths"]
    assert caplog.text.count("train in the plain way: fast_paths false") == 2


@pytest.mark.parametrize("bf16", ["false", "true"])
def test_resume_is_exact(make_fast, tmp_path, bf16):
    settings = {"bf16": bf16, "mini_batch_size": 6, "length_buckets": "auto"}
    whole = make_fast("whole", **settings)
    whole.train()
    make_fast("cut", callbacks=[StopAt(4)], **settings).train()
    resumed = make_fast("cut", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-4"))
    assert history(resumed) == history(whole)
    assert history(resumed, "eval_stsb_spearman") == history(whole, "eval_stsb_spearman")
    for (name, ours), theirs in zip(resumed.model.state_dict().items(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert type(resumed.model.tower_b.encoder.layer[0].output.dense) is HalfLinear


@pytest.mark.parametrize(
    ("name", "value"), [("mini_batch_size", 0), ("fast_paths", "perhaps"), ("length_buckets", "0")]
)
def test_settings_out_of_range(tmp_path, name, value):
    with pytest.raises(ValueError, match=name):
        CacseTrainingArguments(str(tmp_path), **{name: value})


def test_what_auto_became_is_recorded(tmp_path):
    args = CacseTrainingArguments(str(tmp_path), use_cpu=True)
    choose(args)
    assert args.to_dict()["fast_paths"] is (args.gains["fast_paths"] >= LEAST_GAINED)
    assert args.to_dict()["length_buckets"] == "auto" and args.num_length_buckets is None


def test_auto_pads_where_packing_is_not_proven_or_compiled(tmp_path, monkeypatch):
    for kind, buckets in (("cuda", None), ("mps", 1)):
        monkeypatch.setattr(arguments, "accelerator", lambda kind=kind: kind)
        assert CacseTrainingArguments(str(tmp_path), bf16="false").num_length_buckets == buckets
    monkeypatch.setattr(arguments, "accelerator", lambda: "cuda")
    assert CacseTrainingArguments(str(tmp_path), bf16="false", torch_compile=True).num_length_buckets == 1
