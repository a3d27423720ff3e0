"""A step of training asks the device for nothing: what would make the host wait for a GPU is found on the CPU too."""

import runpy
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cacse_trainer.compute import bucketing, packing
from cacse_trainer.compute.varlen import LENGTHS, known_tokens
from cacse_trainer.data.collator import ContrastiveCollator
from cacse_trainer.training import resumable, trainer
from cacse_trainer.training.guards import NonFiniteLossError
from tests.conftest import ROOT

matrix = runpy.run_path(str(ROOT / "scripts" / "resume_matrix.py"))
aten = torch.ops.aten
ASKING = {
    *(aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default),
    *(aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default, aten.repeat_interleave.Tensor),
}
BY_INDEX = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}

MASKED_TOKENS = {"score": 1}
"""Of masked tokens, or those of a decoder, only the device knows the number."""
EXPECTED: dict[str, dict[str, int]] = {
    "simcse_mlm": MASKED_TOKENS,
    "tsdae": MASKED_TOKENS,
    "decoder": {"_ignore_causal_mask_sdpa": 2},  # transformers' own, twice of a padded batch
}


class Asked(TorchDispatchMode):
    """Counts, by the function of this package that asked, what has to wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.by: Counter[str] = Counter()

    def note(self) -> None:
        frames = [one for one in traceback.extract_stack() if "/torch/" not in one.filename]
        self.by[next(one.name for one in reversed(frames) if "/tests/" not in one.filename)] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        chosen = args[1] if func in BY_INDEX else []
        sized = (kwargs or {}).get("output_size") is not None  # `repeat_interleave` need not ask for its length
        if (func in ASKING and not sized) or any(
            one is not None and one.dtype in (torch.bool, torch.uint8) for one in chosen
        ):
            self.note()
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("matrix")
    matrix["write_inputs"](folder)
    return folder


@pytest.fixture
def asked(monkeypatch) -> Asked:
    """What the steps of any trainer ask for, from their beginning to the optimizer, watched as on a GPU."""
    asked = Asked()

    class Watching(resumable.BestAndLast):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            asked.__enter__()

        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            asked.__exit__(None, None, None)

    def counted(name: str) -> Any:
        plain = getattr(torch.Tensor, name)

        def call(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if torch.utils._python_dispatch._get_current_dispatch_mode() is asked:
                asked.note()
            return plain(self, *args, **kwargs)

        return call

    for name in ("tolist", "cpu", "numpy"):  # they pass no dispatcher on a CPU
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    monkeypatch.setattr(resumable, "BestAndLast", Watching)
    monkeypatch.setattr(trainer, "runs_ahead", lambda device: True)
    for module in (packing, bucketing):
        monkeypatch.setattr(module, "on_host", lambda tensor: False)
    return asked


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=[] if name in ("cacse", "simcse") else pytest.mark.slow)
        for name in matrix["FAMILIES"]
        if name != "instruct"
    ],
)
def test_a_step_asks_the_device_for_nothing(family, inputs, asked, tmp_path):
    """As on a GPU: padded, by the plain ways."""
    data = "pairs" if family == "contrastive" else "txt"
    cell = matrix["Cell"](family, data, 0, 1, "float32")
    ways = {"max_steps": 2, "length_buckets": "1", "fast_paths": "false", "save_steps": 5, "logging_steps": 5}
    with matrix["without_reports"]():
        matrix["train_cell"](cell, inputs, tmp_path / "run", resume=False, **ways)
    assert asked.by == {name: 2 * count for name, count in EXPECTED.get(family, {}).items()}


@pytest.mark.parametrize(
    ("family", "mini_batch_size"),
    [("simcse", None), ("simcse", 3), pytest.param("cacse", None, marks=pytest.mark.slow)],
)
def test_nor_does_one_without_padding(family, mini_batch_size, inputs, asked, tmp_path):
    """The lengths come with the batch; with gradient caching, too, where padded parts would be sorted by them."""
    cell = matrix["Cell"](family, "txt", 0, 1, "float32")
    ways = {"max_steps": 2, "fast_paths": "false", "save_steps": 5, "logging_steps": 5}
    with matrix["without_reports"](), patch.object(packing, "FlatRows", wraps=packing.FlatRows) as flat:
        caching = {} if mini_batch_size is None else {"mini_batch_size": mini_batch_size}
        matrix["train_cell"](cell, inputs, tmp_path / "run", resume=False, **ways, **caching)
    assert not asked.by and flat.called


@pytest.mark.parametrize("buckets", [1, None])
def test_lengths_come_with_the_loader_s_batches_alone(buckets, make_trainer, monkeypatch):
    """The trainer's collator stays what it was; where the batches of all processes are put together, there are none."""
    monkeypatch.setattr(trainer, "runs_ahead", lambda device: True)
    made = make_trainer()
    made.model.use(replace(made.model.compute, length_buckets=buckets))
    assert type(made.data_collator) is ContrastiveCollator
    batch = next(iter(made.get_train_dataloader()))
    count = int(batch["attention_mask"].sum())
    inputs = made._prepare_inputs(batch)
    assert LENGTHS in batch and LENGTHS not in inputs and type(made.data_collator) is ContrastiveCollator
    assert known_tokens(inputs["attention_mask"].flatten(0, 1)) == (count if buckets is None else None)
    made.accelerator.dataloader_config.dispatch_batches = True
    assert LENGTHS not in made.get_train_dataloader().collate_fn(made.train_dataset.select(range(4)).to_list())


def test_a_loss_looked_at_later_is_told_with_its_own_step_and_rows(make_trainer, tmp_path, monkeypatch):
    """Step 3 goes wrong between two log lines: nothing of it is scored or saved."""
    monkeypatch.setattr(trainer, "runs_ahead", lambda device: True)
    unscored = {"eval_strategy": "no", "load_best_model_at_end": False, "metric_for_best_model": None}
    made = make_trainer(pairs={}, logging_steps=4, save_steps=4, **unscored)
    record = made.record_loss

    def spoiled(loss: Any, *given: Any) -> None:
        record(loss * float("nan") if made.state.global_step == 2 else loss, *given)

    made.record_loss = spoiled
    batches = []
    made.data_collator, collate = lambda rows: batches.append(rows) or collate(rows), made.data_collator
    with pytest.raises(NonFiniteLossError, match=r"nan at step 3 .*batch of 8 rows: row \d+ '") as error:
        made.train()
    assert made.state.global_step == 4 and not list((tmp_path / "run").glob("checkpoint-*"))
    first = next(rows for rows in batches if rows[0]["text"][:60] in str(error.value))
    assert all(repr(row["text"][:60]) in str(error.value) for row in first[:3])
