"""The adapter's weights into the base model's: a plain folder that `AutoModelForCausalLM` loads.

Written under a temporary name, loaded again, its predictions compared with those of base and adapter, then renamed.
"""

import gc
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from cacse_trainer.encoding.loading import default_device
from cacse_trainer.encoding.saving import PROBES
from cacse_trainer.errors import RunError, UserError, one_line
from cacse_trainer.files import write_json, writing_folder
from cacse_trainer.instruct.arguments import InstructModelArguments
from cacse_trainer.instruct.training import base_path, load_causal_lm, load_tokenizer
from cacse_trainer.models.adapters import peft_library

logger = logging.getLogger(__name__)

REPORT = "merge_report.json"

TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference of a logit between base with adapter and merged model, as a share of the largest logit.

A merged weight is rounded once more than base and adapter apart.
"""

CARD = """---
library_name: transformers
pipeline_tag: text-generation
{base_model}---

# {title}

{base}, LoRA fine-tuned by cacse-trainer to give similarity scores of sentence pairs; the adapter is merged.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

Prompt format of the training: {prompt_format}.
"""


class MergeError(RunError):
    """The merged model does not predict what base and adapter predict."""


def merge_adapter_folder(args: InstructModelArguments, adapter: Path, final: Path) -> dict[str, Any]:
    """Merge an adapter and write the model, or nothing.

    Args:
        args: base model, ``merged_dtype`` and prompt format.
        adapter: folder of a PEFT adapter.
        final: the folder to write; an older one is replaced when the new one is there.

    Returns:
        ``dtype``, ``parameters``, and the largest differences of a logit: ``merge_difference`` (base with adapter
        against merged), ``reload_difference`` (merged against the written folder) with ``largest_logit``.

    Raises:
        UserError: there is no adapter, or it is none of this model.
        MergeError: the merged model predicts something else than base and adapter.
    """
    peft = peft_library()
    if not (adapter / "adapter_config.json").is_file():
        raise UserError(f"no adapter in {adapter}; run the stage train first (--stages train)")
    tokenizer = load_tokenizer(args)
    base = load_causal_lm(base_path(args), args.merged_dtype, args, default_device())
    try:
        model = peft.PeftModel.from_pretrained(base, str(adapter)).eval()
    except (ValueError, OSError, RuntimeError) as error:
        raise UserError(f"adapter {adapter}: {one_line(error)[:300]}") from error
    expected = probe_logits(model, tokenizer)
    merged = model.merge_and_unload(safe_merge=True)
    found = probe_logits(merged, tokenizer)
    largest = max(float(logits.abs().max()) for logits in expected)
    merge_difference = _difference(expected, found)
    dtype = merged.dtype
    if not merge_difference <= TOLERANCE[dtype] * largest:
        raise MergeError(
            f"the merged model's logits differ by {merge_difference:.2e} from those of base and adapter (the largest "
            f"is {largest:.1f}); nothing is written; try merged_dtype float32"
        )
    with writing_folder(final) as staged:
        merged.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
        parameters = merged.num_parameters()
        del base, model, merged
        gc.collect()
        reloaded = load_causal_lm(str(staged), "auto", args, default_device())
        reload_difference = _difference(found, probe_logits(reloaded, tokenizer))
        if not reload_difference <= TOLERANCE[dtype] * largest:
            raise MergeError(
                f"{final}: the reloaded model's logits differ by {reload_difference:.2e} from the merged ones"
            )
        report = {
            "dtype": str(dtype).removeprefix("torch."),
            "parameters": parameters,
            "largest_logit": largest,
            "merge_difference": merge_difference,
            "reload_difference": reload_difference,
        }
        is_local = Path(base_path(args)).exists()  # then only its folder's name is told
        name = Path(str(args.model)).name if is_local else str(args.model)
        card = CARD.format(
            base=name,
            base_model="" if is_local else f"base_model: {name}\n",
            title=final.resolve().parent.name,
            prompt_format=args.prompt_format,
        )
        (staged / "README.md").write_text(card, encoding="utf-8")
        write_json(staged / REPORT, report)
    logger.info("merged into %s (largest difference of a logit %.1e)", final, merge_difference)
    return report


@torch.no_grad()
def probe_logits(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[torch.Tensor]:
    """The model's logits on a few sentences, (tokens, vocabulary) each, float32."""
    ids = [tokenizer(text, return_tensors="pt")["input_ids"].to(model.device) for text in PROBES if text]
    return [model(input_ids=row).logits[0].float().cpu() for row in ids]


def _difference(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))
