"""Defaults of a training, which the recipes need not say, and bf16's one resolver."""

import pytest
import torch
from transformers import TrainingArguments

from cacse_trainer.errors import UserError
from cacse_trainer.settings import precision
from cacse_trainer.settings.arguments import CacseTrainingArguments
from cacse_trainer.settings.precision import bf16_is_fast, resolve_bf16

INF = float("inf")


def made(**settings) -> CacseTrainingArguments:
    return CacseTrainingArguments("out", **settings)


def test_evaluated_saved_and_the_best_kept():
    args = made(eval_steps=7)
    assert (args.eval_strategy.value, args.save_strategy.value, args.save_steps) == ("steps", "steps", 7)
    assert (args.save_total_limit, args.load_best_model_at_end, args.metric_for_best_model) == (1, True, None)
    assert args.eval_on_start and args.bf16 == bf16_is_fast()


def test_evaluations_and_checkpoints_follow_each_other():
    assert made(save_steps=3).eval_steps == 3
    assert made(logging_steps=5).save_steps == 5
    assert made(eval_strategy="no", logging_steps=5).save_steps == TrainingArguments("out").save_steps == 500
    assert made(eval_steps=2, save_steps=4).save_steps == 4


def test_a_chosen_metric_stays():
    args = made(metric_for_best_model="mine_spearman")
    assert (args.metric_for_best_model, args.greater_is_better) == ("mine_spearman", True)


@pytest.mark.parametrize(
    "wrong",
    [{"seed": -1}, {"seed": 2**32}, {"data_seed": -1}, {"adam_beta1": 1.0}, {"adam_beta2": -0.1}, {"adam_epsilon": -1}]
    + [{name: value} for name in ("weight_decay", "max_grad_norm", "label_smoothing_factor") for value in (INF, -INF)],
    ids=str,
)
def test_what_training_would_refuse_is_refused_before_it(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        made(**wrong)


def test_bf16_has_one_spelling():
    assert resolve_bf16("true") and resolve_bf16(True) and not resolve_bf16(False)
    for value in ("maybe", "1", "yes"):
        with pytest.raises(UserError, match=r"teacher_bf16 must be auto, true or false"):
            resolve_bf16(value, "teacher_bf16")


def test_auto_looks_at_what_computes(monkeypatch):
    """A GPU with bfloat16 in a machine whose CPU has none, and the CPU is meant; and the other way round."""
    monkeypatch.setattr(precision, "accelerator", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert resolve_bf16("auto") and not resolve_bf16("auto", use_cpu=True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert not resolve_bf16("auto") and resolve_bf16("auto", use_cpu=True)
