"""What a checkpoint records of the settings it was trained with, and what differs from them when a run goes on.

A resumed run equals one that was never stopped only where all of it is the same. So every setting is recorded but
those of `HARMLESS`, and a changed one is refused by name, unless the user wants it. What ``auto`` chose by the machine
is kept (automatic.py). A checkpoint without the record, of an earlier version or another program, is compared by its
model's config alone.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, TrainingArguments
from transformers.utils import CONFIG_NAME

from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.files import plain, write_json
from cacse_trainer.settings.arguments import CommonTrainingArguments
from cacse_trainer.training.automatic import GAINS
from cacse_trainer.training.checkpoints import SETTINGS

logger = logging.getLogger(__name__)

HARMLESS = frozenset(
    [
        *("output_dir", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        *("report_to", "disable_tqdm", "log_level", "log_level_replica", "log_on_each_node", "logging_strategy"),
        *("logging_steps", "logging_first_step", "logging_nan_inf_filter", "include_num_input_tokens_seen"),
        *("skip_memory_metrics", "debug", "torch_empty_cache_steps", "do_train", "do_eval", "do_predict"),
        *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size"),
        *("prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps"),
        *("include_for_metrics", "batch_eval_metrics", "save_only_model", "save_strategy", "save_steps"),
        *("save_on_each_node", "save_total_limit", "enable_jit_checkpoint", "push_to_hub", "hub_token", "hub_model_id"),
        *("hub_private_repo", "hub_strategy", "hub_always_push", "hub_revision", "hub_license", "card_note"),
        "ignore_data_skip",
        *("restore_callback_states_from_checkpoint", "resume_from_checkpoint", "resume_with_changes", "local_rank"),
        *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_in_order"),
        *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "ddp_find_unused_parameters"),
        *("ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "ddp_timeout"),
        *("overwrite_output_dir", "check", "export", "trust_remote_code", "merged_dtype"),
        *(
            "train_file",
            "mix",
            "keep_file",
            "test_file",
            "senteval_data",
        ),  # a moved text is the same one: its size and checksum are recorded
    ]
)
"""Settings that change what is said and saved, when it is scored, or how fast, and no weight. The length of a run is
none of them, as the learning rate of each step hangs on it."""

_OF_THE_CONFIG = frozenset(["transformers_version", "_name_or_path", "name_or_path", "dtype", "torch_dtype"])


def settings_of(
    args: TrainingArguments, config: PretrainedConfig, more: Mapping[str, Any], processes: int
) -> dict[str, Any]:
    """What is recorded: arguments, the model's config, ``more`` settings of the run, and the processes at work."""
    own = {name: value for name, value in args.to_dict().items() if name not in HARMLESS}
    if args.max_steps > 0:
        del own["num_train_epochs"]  # then without effect
    own.update({name: value for name, value in more.items() if name not in HARMLESS})
    if isinstance(args, CommonTrainingArguments):
        own.update({GAINS[name]: gain for name, gain in args.gains.items()})
    return plain({**own, "config": values_of(config.to_dict()), "processes": processes})


def values_of(config: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The numbers, words and switches of a model's config, those of its parts under ``part.name``."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found.update(values_of(value, f"{where}{name}."))
        elif isinstance(value, (int, float, str)) and name not in _OF_THE_CONFIG:
            found[f"{where}{name}"] = value
    return found


def write_record(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings into a checkpoint."""
    write_json(folder / SETTINGS, settings)


def read_record(checkpoint: str | Path) -> dict[str, Any]:
    """The settings that a checkpoint was trained with; empty: it has no record.

    Raises:
        UserError: it is damaged.
    """
    return _read(Path(checkpoint), SETTINGS)


def _read(folder: Path, name: str) -> dict[str, Any]:
    if not (folder / name).is_file():
        return {}
    with user_errors(f"resume: {folder} is damaged, go on from another checkpoint"):
        return dict(json.loads((folder / name).read_text(encoding="utf-8")))


def check_changes(checkpoint: str | Path, settings: dict[str, Any], *, allowed: bool) -> None:
    """Compare a run that goes on with what its checkpoint was trained with.

    Args:
        checkpoint: its folder.
        settings: of this run, see `settings_of`.
        allowed: only warn of changes.

    Raises:
        UserError: settings differ, with all of them and the mend; or the checkpoint is damaged.
    """
    before, new = read_record(checkpoint), {name: own for name, own in settings.items() if name not in GAINS.values()}
    old = before.pop("config", None)
    if old is None:
        old = values_of(_read(Path(checkpoint), CONFIG_NAME))
    config, processes = new.pop("config"), new.pop("processes")
    before_processes = before.pop("processes", processes)
    if before_processes != processes:
        logger.warning(
            "resume: %d processes, the checkpoint was trained on %d; the run goes on from its step, in batches of %d "
            "rows and with other random masks",
            processes,
            before_processes,
            processes * new["per_device_train_batch_size"],
        )
        if before["per_device_train_batch_size"] * before_processes == new["per_device_train_batch_size"] * processes:
            del before["per_device_train_batch_size"]
    pairs = [(name, was, new[name]) for name, was in before.items() if name in new and was != new[name]]
    told = {name for name, _, _ in pairs}
    pairs += [
        (name, was, config[name])
        for name, was in old.items()
        if name in config and was != config[name] and name not in told
    ]
    if not pairs:
        return
    listed = "; ".join(f"{name} was {was}, is {now}" for name, was, now in pairs)
    if not allowed:
        raise UserError(
            f"resume: {checkpoint} was trained with other settings: {listed}; give the same ones, or "
            "--resume_with_changes to go on with these"
        )
    logger.warning("resume: going on from %s with changed settings: %s", checkpoint, listed)
