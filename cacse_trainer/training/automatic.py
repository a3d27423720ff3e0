"""What ``auto`` comes to on a CPU, of ``bf16`` and of ``fast_paths``: measured once, and kept by a run that goes on.

The fast paths draw other dropout masks than the plain way, and bfloat16 rounds otherwise: only with the choice of its
beginning is a resumed run the one that was never stopped. So the checkpoint's record comes first, and nothing is
measured where it says the choice.
"""

import copy
import functools
import logging
from collections.abc import Mapping
from typing import Any

import torch
from transformers import BertConfig, BertModel, TrainingArguments

from cacse_trainer.compute.fast_paths import LARGE_TABLE, use_fast_paths
from cacse_trainer.compute.memory import keep_freed_memory
from cacse_trainer.compute.reading import pool_packed, pool_padded
from cacse_trainer.settings import precision
from cacse_trainer.settings.arguments import CacseTrainingArguments, CommonTrainingArguments

logger = logging.getLogger(__name__)

LEAST_GAINED = 0.85
"""Times as fast as the plain way that ``auto`` asks of the fast paths in the narrow layer, where they weigh three times
what they do in a real one. Far from a tie, so that two runs on one machine choose alike."""
ROWS, LENGTH, WIDTH = 64, 32, 64
"""Of the batch that is measured, and of its layer: narrow, as the products are the same both ways."""
GAINS = {name: f"{name}_gain" for name in ("bf16", "fast_paths")}
"""In a checkpoint's record, and never compared: what ``auto`` was chosen by."""


@functools.cache
def fast_paths_gain(bf16: bool, padded: bool) -> float:
    """How many times as fast as the plain way a layer's step is by the fast paths, on this process's threads.

    The embeddings of a batch and one layer, forward and backward, with dropout. 0.5 s on one core; torch's random state
    stays as it is.

    Args:
        bf16: under bfloat16's autocast.
        padded: in one padded pass, else without padding, see `packing`.
    """
    sizes: dict[str, Any] = {"hidden_size": WIDTH, "num_attention_heads": 4, "intermediate_size": WIDTH}
    sizes |= {"num_hidden_layers": 1, "vocab_size": 2 * LARGE_TABLE, "max_position_embeddings": LENGTH}
    config = BertConfig(**sizes)
    with torch.random.fork_rng(devices=[]), keep_freed_memory():
        torch.manual_seed(0)
        plain = BertModel(config, add_pooling_layer=False).train()
        fast = copy.deepcopy(plain)
        use_fast_paths(fast)
        ids, gradient = torch.randint(config.vocab_size, (ROWS, LENGTH)), torch.randn(ROWS, WIDTH)
        lengths = torch.randint(LENGTH // 4, LENGTH + 1, (ROWS, 1))
        inputs = {"input_ids": ids, "attention_mask": (torch.arange(LENGTH) < lengths).long()}

        def step(encoder: BertModel) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                pooled = pool_padded(encoder, "mean", inputs)[1] if padded else pool_packed(encoder, "mean", **inputs)
            pooled.backward(gradient.to(pooled.dtype))
            encoder.zero_grad()

        return precision.times_as_fast(lambda: step(plain), lambda: step(fast))


def choose(args: TrainingArguments, before: Mapping[str, Any] | None = None) -> bool:
    """Settle what ``auto`` comes to, where a CPU computes: as it was where a run began that goes on, else as measured.

    Args:
        args: changed in place.
        before: the record of the checkpoint; None: the run begins.

    Returns:
        Whether anything differs from what the arguments held; a trainer that is made has to be told.
    """
    if not isinstance(args, CommonTrainingArguments) or args.device.type != "cpu":
        return False
    recorded, held = dict(before or {}), (args.bf16, *_fast(args))
    if "bf16" in args.automatic and "bf16" in recorded:
        args.take_bf16(bool(recorded["bf16"]), recorded.get(GAINS["bf16"]))
    elif "bf16" in args.undecided:
        gain = precision.bf16_gain(use_cpu=True)
        args.take_bf16(gain is not None and gain >= precision.LEAST_GAINED, gain)
    if isinstance(args, CacseTrainingArguments):
        if "fast_paths" in args.automatic and "fast_paths" in recorded:
            args.take_fast_paths(bool(recorded["fast_paths"]), recorded.get(GAINS["fast_paths"]))
        elif "fast_paths" in args.undecided:
            gain = precision.agreed(fast_paths_gain(bool(args.bf16), padded=args.num_length_buckets is not None))
            args.take_fast_paths(gain is not None and gain >= LEAST_GAINED, gain)
    return held != (args.bf16, *_fast(args))


def _fast(args: CommonTrainingArguments) -> tuple[bool, ...]:
    return (args.use_fast_paths,) if isinstance(args, CacseTrainingArguments) else ()


def tell_choice(args: TrainingArguments) -> None:
    """Say what ``auto`` came to where it was measured, in this run or before the checkpoint that it goes on from."""
    gains = args.gains if isinstance(args, CommonTrainingArguments) and args.process_index == 0 else {}
    if "bf16" in gains:
        kind = "bfloat16" if args.bf16 else "float32"
        logger.info("bf16 auto: %s (products in bfloat16 were %.2f times as fast)", kind, gains["bf16"])
        if args.bf16 and args.device.type == "cpu" and not precision.cpu_has_bf16():
            logger.warning("resume: bf16 auto goes on in bfloat16, as the run began; this processor is slow in it")
    if isinstance(args, CacseTrainingArguments) and "fast_paths" in gains:
        ways = "taken" if args.use_fast_paths else "left"
        logger.info("fast_paths auto: %s (a narrow layer's step was %.2f times as fast)", ways, gains["fast_paths"])
