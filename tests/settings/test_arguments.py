"""Defaults of a training, which the recipes need not say, and bf16's one resolver."""

import pytest
import torch
from transformers import TrainingArguments

from cacse_trainer.adaptation.plan import key_of
from cacse_trainer.errors import UserError
from cacse_trainer.settings import precision
from cacse_trainer.settings.arguments import CacseTrainingArguments, DataArguments, ModelArguments
from cacse_trainer.settings.precision import bf16_is_fast, resolve_bf16
from cacse_trainer.settings.recipes import Parsed
from cacse_trainer.training import automatic
from cacse_trainer.training.automatic import choose

INF = float("inf")


def made(**settings) -> CacseTrainingArguments:
    return CacseTrainingArguments("out", **settings)


def chosen(**settings) -> CacseTrainingArguments:
    args = made(**settings)
    choose(args)
    return args


def test_evaluated_saved_and_the_best_kept():
    args = made(eval_steps=7)
    assert (args.eval_strategy.value, args.save_strategy.value, args.save_steps) == ("steps", "steps", 7)
    assert (args.save_total_limit, args.load_best_model_at_end, args.metric_for_best_model) == (1, True, None)
    assert args.eval_on_start and chosen().bf16 == bf16_is_fast()


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
    for name in precision.ISA:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(precision, "accelerator", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert resolve_bf16("auto") and not resolve_bf16("auto", use_cpu=True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(precision, "measured_gain", lambda: 2.0)
    assert not resolve_bf16("auto") and resolve_bf16("auto", use_cpu=True)


@pytest.fixture
def cpu(monkeypatch):
    """``cpu(gain)``: a machine without an accelerator, whose CPU has bfloat16, and how much faster it is said to be."""
    for name in precision.ISA:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(precision, "accelerator", lambda: None)
    monkeypatch.setattr("cacse_trainer.settings.arguments.accelerator", lambda: None)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(automatic, "fast_paths_gain", lambda bf16, padded: 1.5)
    return lambda gain: monkeypatch.setattr(precision, "measured_gain", lambda: gain)


@pytest.mark.parametrize("gain", [0.4, 1.0, 1.19, 1.2, 3.0])
def test_auto_on_a_cpu_is_what_was_measured(gain, cpu):
    cpu(gain)
    assert not made().bf16 and made().undecided == {"bf16", "fast_paths"}
    args = chosen()
    assert (args.bf16, args.use_cpu, args.mixed_precision == "bf16", args.gains["bf16"]) == (*[gain >= 1.2] * 3, gain)
    for given in (True, False):
        args = chosen(bf16=given)
        assert args.bf16 == given and "bf16" not in {*args.gains, *args.automatic}


@pytest.mark.parametrize(
    ("limits", "measures"),
    [
        (("SSE41", "AVX2", "avx2_vnni_2", "AVX512_CORE", "AVX512_CORE_VNNI"), False),
        (("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX", "DEFAULT", ""), True),
    ],
)
@pytest.mark.parametrize("name", precision.ISA)
def test_auto_respects_onednns_limit(name, limits, measures, cpu, monkeypatch):
    """Without instructions nothing is measured."""
    calls = []
    monkeypatch.setattr(precision, "measured_gain", lambda: calls.append(1) or 2.0)
    for limit in limits:
        monkeypatch.setenv(name, limit)
        assert bf16_is_fast() == bf16_is_fast(use_cpu=True) == measures, limit
        assert precision.bf16_gain() == (2.0 if measures else None)
    assert bool(calls) == measures


def test_nothing_is_measured_where_a_gpu_computes(cpu, monkeypatch):
    monkeypatch.setattr(precision, "measured_gain", lambda: pytest.fail("measured"))
    monkeypatch.setattr(precision, "accelerator", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert bf16_is_fast() and precision.bf16_gain() is None


def test_the_measurement_leaves_the_random_state(monkeypatch):
    monkeypatch.setattr(precision, "ROWS", 8)
    before = torch.get_rng_state()
    assert precision.measured_gain.__wrapped__() > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_processes_take_the_first_ones_figure(cpu, monkeypatch):
    """A processor without the instructions is no exception."""
    cpu(0.5)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    args = made()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", lambda figures: figures.__setitem__(0, 2.0))
    choose(args)
    assert args.bf16 and args.use_cpu and args.mixed_precision == "bf16" and args.gains["bf16"] == 2.0
    assert args.use_fast_paths and args.gains["fast_paths"] == 2.0


def test_an_adaptation_is_the_same_one_whatever_auto_has_measured(cpu):
    """A second call goes on in its folder, and measures a little otherwise."""
    keys = set()
    for gain in (0.5, 2.0):
        cpu(gain)
        keys.add(key_of(Parsed((ModelArguments(), DataArguments(), made())), [], {}))
    assert len(keys) == 1


def test_workers_tokenise_ahead_of_a_gpu(cpu, monkeypatch):
    """Two that stay, unless a number is given."""

    def workers(**given) -> tuple:
        args = made(bf16=False, **given)
        return args.dataloader_num_workers, args.dataloader_persistent_workers

    assert workers() == (0, False) and workers(dataloader_num_workers=3) == (3, False)
    monkeypatch.setattr("cacse_trainer.settings.arguments.accelerator", lambda: "cuda")
    assert workers() == (2, True) and workers(use_cpu=True) == (0, False)
    assert workers(dataloader_num_workers=0) == (0, False)
