"""LoRA fine-tuning of a causal language model on the data set, with the trainer whose runs go on exactly.

loss = mean cross-entropy over the answers' tokens and their end-of-sequence tokens; the prompts are masked out.
"""

import logging
import math
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from cacse_trainer.encoding.embedder import position_limit
from cacse_trainer.errors import RunError, UserError, user_errors
from cacse_trainer.evaluation.environment import environment, peak_memory_gb
from cacse_trainer.files import crc32_of, plain, refuse_foreign, write_json, write_text
from cacse_trainer.instruct.arguments import InstructModelArguments
from cacse_trainer.instruct.dataset import TRAIN, VALIDATION, read_records
from cacse_trainer.instruct.prompts import tokenize_records
from cacse_trainer.models import pretrained
from cacse_trainer.models.adapters import peft_library
from cacse_trainer.report import loss_page
from cacse_trainer.report.curves import curve, plot_run
from cacse_trainer.runs.folder import CURVES, PAGE, REPORT, in_the_way, mark_run, save_model
from cacse_trainer.settings.arguments import CommonTrainingArguments
from cacse_trainer.settings.resources import resolve_resource
from cacse_trainer.training.automatic import choose
from cacse_trainer.training.changes import read_record
from cacse_trainer.training.checkpoints import newest_whole
from cacse_trainer.training.resumable import ResumableTrainer

logger = logging.getLogger(__name__)


def base_path(args: InstructModelArguments) -> str:
    """The base model's folder or hub id.

    Raises:
        UserError: no model was given.
    """
    if args.model is None:
        raise UserError("no model: give the causal language model, in a recipe or as --model DIR")
    return resolve_resource(args.model)


def load_tokenizer(args: InstructModelArguments) -> PreTrainedTokenizerBase:
    """The base model's tokenizer, as it stands."""
    with user_errors(f"model {args.model}", KeyError, ImportError):
        return pretrained.load_tokenizer(base_path(args), trust_remote_code=args.trust_remote_code)


def load_causal_lm(
    path: str, dtype: str, args: InstructModelArguments, device: torch.device | str = "cpu"
) -> PreTrainedModel:
    """A causal language model in eval mode.

    Args:
        path: folder or hub id.
        dtype: ``auto`` (the checkpoint's), ``float32``, ``bfloat16`` or ``float16``.
        args: attention and remote code.
        device: where it is put.

    Raises:
        UserError: it cannot be loaded, or its predictions depend on later tokens (an encoder such as BERT).
    """
    loading: dict[str, Any] = {
        "attn_implementation": args.attn_implementation,
        "trust_remote_code": args.trust_remote_code,
    }
    with user_errors(f"model {path}", KeyError, ImportError):
        model, drawn = pretrained.load_weights(
            AutoModelForCausalLM, path, optional=pretrained.ANY, dtype=dtype, **loading
        )
    with torch.no_grad():
        model.eval().to(device)  # type: ignore[arg-type]  # nn.Module's, wrapped
        probes = torch.tensor([[5, 6, 7], [5, 8, 9]], device=device)
        first, second = model(input_ids=probes).logits[:, 0].float()
    if not torch.allclose(first, second, rtol=1e-2, atol=1e-2):
        raise UserError(f"model {path} is no causal language model: its predictions depend on later tokens")
    if drawn:
        raise UserError(
            f"model {path} lacks {len(drawn)} weights of a causal language model, {min(drawn)} among them; choose one "
            "that was saved with its head, or download it anew"
        )
    return model


def add_adapter(model: PreTrainedModel, args: InstructModelArguments) -> Any:
    """The model with fresh LoRA layers, which alone are trained.

    Raises:
        UserError: peft is not installed, or it finds none of the layers.
    """
    peft = peft_library()
    config = peft.LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=args.lora_target_modules,
        task_type="CAUSAL_LM",
    )
    with user_errors("lora_target_modules"):
        return peft.get_peft_model(model, config)


def load_rows(path: Path, tokenizer: PreTrainedTokenizerBase, args: InstructModelArguments) -> tuple[Dataset, int]:
    """The tokenised records of a file, and how many were left out for their length.

    Raises:
        UserError: the file is wrong, or every record is too long.
    """
    records = read_records(path)
    rows = tokenize_records(records, tokenizer, args.prompt_format, args.max_seq_length)
    left_out = len(records) - len(rows)
    if records and not rows:
        raise UserError(f"max_seq_length {args.max_seq_length}: all {len(records)} records of {path} are longer")
    if left_out:
        logger.warning("%s: %d of %d records are longer than %d", path, left_out, len(records), args.max_seq_length)
    return Dataset.from_list(rows), left_out


def train_adapter(
    model_args: InstructModelArguments, args: CommonTrainingArguments, data_folder: Path, folder: Path
) -> dict[str, Any]:
    """Train the adapter, or go on from the folder's last checkpoint; write it and ``training_report.json`` last.

    Args:
        model_args, args: the settings; their ``output_dir`` is set to ``folder``.
        data_folder: holds ``train.jsonl`` and ``validation.jsonl``.
        folder: for checkpoints, the adapter (``adapter_model.safetensors``) and the report.

    Returns:
        The report; its ``baseline`` and ``kept`` are validation losses.

    Raises:
        UserError: with what to mend.
        Interrupted: the run was sent a signal; its checkpoint is saved.
        RunError: the loss is not finite.
    """
    started = time.time()
    args.output_dir = str(folder)
    refuse_foreign(folder, in_the_way(folder))
    if args.ddp_find_unused_parameters is None:  # every LoRA weight has a gradient in every pass
        args.ddp_find_unused_parameters = False
    if args.metric_for_best_model not in (None, "loss", "eval_loss"):
        raise UserError(f"metric_for_best_model={args.metric_for_best_model}: there is only the validation loss, loss")
    checkpoint = newest_whole(folder)
    choose(args, None if checkpoint is None else read_record(checkpoint))
    set_seed(args.seed)
    tokenizer = load_tokenizer(model_args)
    base = load_causal_lm(base_path(model_args), model_args.dtype, model_args)
    if model_args.max_seq_length > position_limit(base.config):
        raise UserError(
            f"max_seq_length {model_args.max_seq_length} is beyond the {position_limit(base.config)} tokens that "
            f"{model_args.model} takes"
        )
    train, too_long = load_rows(data_folder / TRAIN, tokenizer, model_args)
    validation, _ = load_rows(data_folder / VALIDATION, tokenizer, model_args)
    if args.eval_strategy != "no" and len(validation) == 0:
        raise UserError("no validation records: raise validation_share, or set eval_strategy: no")
    if tokenizer.pad_token_id is None:  # masked out of attention and loss, so that any token does
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
        logger.info("the tokenizer has no padding token; batches are padded with %s", tokenizer.pad_token)
    tokenizer.padding_side = "right"
    model = add_adapter(base, model_args)
    model.config.use_cache = False
    model.enable_input_require_grads()  # else reentrant activation checkpointing would cut the gradient off
    trainer = ResumableTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=validation if args.eval_strategy != "no" else None,
        data_collator=DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8),
        processing_class=tokenizer,
    )
    # told at every save with lm_head among the layers: its base weights go into the adapter's file, which is wanted
    warnings.filterwarnings("ignore", message=".*save_embedding_layers.*")
    trainer.settings = {**vars(model_args), "records": crc32_of(data_folder / TRAIN)}
    if trainer.is_world_process_zero():
        folder.mkdir(parents=True, exist_ok=True)
        mark_run(folder)
    if checkpoint is not None:
        logger.info("going on from %s", checkpoint)
    result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    losses = curve(trainer.state.log_history, "eval_loss")
    if not all(map(math.isfinite, [result.training_loss, *(point["value"] for point in losses)])):
        raise RunError("the loss is not finite (NaN or infinite): no adapter is written; lower learning_rate")
    save_model(trainer, folder)
    report = {
        "model": model_args.model,
        "finished": time.strftime("%Y-%m-%d %H:%M"),
        "records": len(train),
        "records_too_long": too_long,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "parameters": sum(p.numel() for p in model.parameters()),
        "answer_tokens": sum(sum(label >= 0 for label in labels) for labels in train["labels"]),
        **_losses(trainer, losses),
        "steps": result.global_step,
        "train_loss": result.training_loss,
        "wall_seconds": time.time() - started,
        "peak_memory_gb": peak_memory_gb(),
        "environment": environment(),
        "settings": {**vars(model_args), **args.to_sanitized_dict()},
        "log_history": trainer.state.log_history,
    }
    if trainer.is_world_process_zero():
        plot_run(folder / CURVES, trainer.state.log_history, ["eval_loss"], "validation loss")
        write_text(folder / PAGE, loss_page(plain(report), f"{folder.parent.name}: fine-tuning"))
        write_json(folder / REPORT, report)
    return report


def _losses(trainer: ResumableTrainer, points: list[dict[str, Any]]) -> dict[str, Any]:
    """Validation loss before training, and of the adapter that is kept; warns when it is no lower."""
    state = trainer.state
    at_step = {point["step"]: point["value"] for point in points}
    is_best = trainer.args.load_best_model_at_end and state.best_global_step is not None
    step = state.best_global_step if is_best else state.global_step
    baseline, kept = at_step.get(0), at_step.get(step)
    if baseline is not None and kept is not None and kept >= baseline:
        logger.warning("TRAINING DID NOT HELP: validation loss %.4f, before %.4f", kept, baseline)
    return {"baseline": baseline, "kept": kept, "kept_step": step}
