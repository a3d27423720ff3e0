"""Base and tuned model through lm-evaluation-harness: one table, one JSON file.

Besides the harness's tasks and the user's own there is ``instruct_scores``: the answers of the validation records,
with the prompts of the training. ``acc`` is the share of answers that the model would give greedily, ``perplexity`` the
exponential of an answer's mean negative log-likelihood, all its tokens together.
"""

import gc
import logging
import math
import os
from pathlib import Path
from typing import Any

import torch
import yaml

from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.evaluation.environment import environment
from cacse_trainer.evaluation.tables import markdown_table
from cacse_trainer.files import read_object, write_json, write_text
from cacse_trainer.instruct.arguments import InstructEvaluationArguments, InstructModelArguments
from cacse_trainer.instruct.dataset import VALIDATION, read_records, write_records
from cacse_trainer.instruct.prompts import render
from cacse_trainer.instruct.training import base_path, load_tokenizer
from cacse_trainer.settings.resources import nearest

logger = logging.getLogger(__name__)

RESULTS, TABLE = "results.json", "table.md"
HARNESS = "lm-evaluation-harness"
OWN_TASK = "instruct_scores"
BOOTSTRAP = 1000
"""Draws for the standard error of measures that are no means."""
HEADER = ["task", "metric", "base", "±", "tuned", "±", "difference"]


def require_lm_eval() -> Any:
    """The lm_eval library, without its routine chatter.

    Raises:
        UserError: it is not installed.
    """
    try:
        import lm_eval
    except ImportError as error:
        raise UserError("the stage evaluate needs lm-evaluation-harness: pip install 'lm-eval[hf]'") from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return lm_eval


def find_tasks(args: InstructEvaluationArguments, own_folder: Path | None = None) -> tuple[Any, list[str]]:
    """The harness's index of tasks, and the tasks' names, patterns such as ``mmlu_*`` resolved.

    The harness's thousands of own task files are only read where the user's do not do.

    Args:
        args: tasks and include_path.
        own_folder: where `OWN_TASK` has been written; None: before that, it is left out.

    Raises:
        UserError: no tasks, an unknown task, or no such folder.
    """
    require_lm_eval()
    from lm_eval.tasks import TaskManager

    if not args.tasks:
        raise UserError(f"no tasks: give --tasks NAME …, such as {OWN_TASK} or any task of lm-evaluation-harness")
    if args.include_path is not None and not Path(args.include_path).is_dir():
        raise UserError(f"include_path {args.include_path}: no such folder")
    folders = [str(path) for path in (args.include_path, own_folder) if path is not None]
    wanted = [name for name in args.tasks if own_folder is not None or name != OWN_TASK]
    for has_defaults in (False, True):
        manager = TaskManager(include_path=folders or None, include_defaults=has_defaults)
        found = {name: manager.match_tasks([name]) for name in wanted}
        if all(found.values()):
            return manager, list(dict.fromkeys(name for names in found.values() for name in names))
    unknown = next(name for name, names in found.items() if not names)
    known = [OWN_TASK, *manager.all_tasks]
    raise UserError(f"tasks: lm-evaluation-harness has no task {unknown!r}{nearest(unknown, known)}")


def check_tasks(args: InstructEvaluationArguments) -> None:
    """Fetch the data of all tasks, so that what is missing is told before anything is trained.

    Raises:
        UserError: see `find_tasks`; or a task's data cannot be fetched, or its file is wrong.
    """
    manager, names = find_tasks(args)
    if names:
        with user_errors(HARNESS, KeyError, TypeError):
            manager.load(names)


def write_own_task(folder: Path, records_file: Path, args: InstructModelArguments) -> None:
    """Write `OWN_TASK` into a folder, which is made: the validation records as its rows, and its task file."""
    tokenizer = load_tokenizer(args)
    rows = []
    for record in read_records(records_file):
        prompt, full = render(record, args.prompt_format, tokenizer)
        answer = full[len(prompt) :]
        # what a chat template writes after the answer is no part of it
        rows.append({"prompt": prompt, "answer": answer[: answer.index(record["output"]) + len(record["output"])]})
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{OWN_TASK}.jsonl"
    write_records(data, rows)
    task = {
        "task": OWN_TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
        ],
        "metadata": {"version": 1.0},
    }
    write_text(folder / f"{OWN_TASK}.yaml", yaml.safe_dump(task, sort_keys=False))


def evaluate_models(
    model_args: InstructModelArguments, args: InstructEvaluationArguments, merged: Path, data_folder: Path, folder: Path
) -> dict[str, Any]:
    """Measure both models and write ``table.md`` and ``results.json``; a model that is measured is not measured again.

    Args:
        model_args, args: the base model; tasks and how they are run.
        merged: the tuned model's folder.
        data_folder: holds the validation records, for `OWN_TASK`.
        folder: for the results; ``base.json`` and ``tuned.json`` hold what the harness gave.

    Raises:
        UserError: with what to mend.
    """
    if not (merged / "config.json").is_file():
        raise UserError(f"no merged model in {merged}; run the stage merge first (--stages merge)")
    folder.mkdir(parents=True, exist_ok=True)
    own_folder = folder / "tasks"
    if OWN_TASK in args.tasks:
        write_own_task(own_folder, data_folder / VALIDATION, model_args)
    tasks = find_tasks(args, own_folder if OWN_TASK in args.tasks else None)
    measured = {}
    for name, path, dtype in (("base", base_path(model_args), model_args.merged_dtype), ("tuned", str(merged), "auto")):
        file = folder / f"{name}.json"
        if not file.is_file():
            logger.info("evaluating the %s model", name)
            write_json(file, run_harness(path, dtype, model_args.trust_remote_code, tasks, args))
        measured[name] = read_object(file, "delete it, and it is measured again", results=dict)
    rows = compare(measured["base"], measured["tuned"])
    report: dict[str, Any] = {"base": model_args.model, "tuned": str(merged), "rows": rows}
    report |= {"settings": vars(args), "environment": environment()}
    table = markdown_table(HEADER, [cells(row) for row in rows], texts=2)
    write_text(folder / TABLE, table + "\n")
    write_json(folder / RESULTS, report)
    return report


def run_harness(
    path: str, dtype: str, trust_remote_code: bool, tasks: tuple[Any, list[str]], args: InstructEvaluationArguments
) -> dict[str, Any]:
    """The harness's results of one model: ``results`` and ``higher_is_better`` by task, ``n-shot``, ``versions``.

    Args:
        path: the model's folder or hub id.
        dtype, trust_remote_code: see `InstructModelArguments`.
        tasks: see `find_tasks`.
        args: how the tasks are run.

    Raises:
        UserError: a task's data cannot be fetched, or its file is wrong.
    """
    lm_eval = require_lm_eval()
    from lm_eval.models.huggingface import HFLM

    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # the harness would fork for its bootstrap, from beside a GPU
    manager, names = tasks
    merged: dict[str, dict[str, Any]] = {"results": {}, "higher_is_better": {}, "n-shot": {}, "versions": {}}
    with user_errors(HARNESS, KeyError, TypeError):
        model = HFLM(
            pretrained=path,
            dtype=dtype,
            device=args.lm_eval_device or ("cuda" if torch.cuda.is_available() else "cpu"),
            batch_size=args.lm_eval_batch_size,
            trust_remote_code=trust_remote_code,
        )
        # the prompts of our own task are whole: no template around them
        own, others = ([name for name in names if (name == OWN_TASK) is is_own] for is_own in (True, False))
        for group, has_template in ((others, args.eval_chat_template), (own, False)):
            if group:
                found = lm_eval.simple_evaluate(
                    model=model,
                    tasks=group,
                    num_fewshot=args.num_fewshot,
                    limit=args.eval_limit,
                    task_manager=manager,
                    bootstrap_iters=BOOTSTRAP,
                    apply_chat_template=has_template,
                    log_samples=False,
                )
                for name, values in merged.items():
                    values.update(found[name])
    del model
    gc.collect()
    torch.cuda.empty_cache()
    return merged


def compare(base: dict[str, Any], tuned: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a task and metric that `run_harness` gave: both models' values, and the difference tuned − base.

    Returns:
        ``task``, ``metric``, ``filter``, ``higher_is_better``, ``base``, ``base_stderr``, ``tuned``, ``tuned_stderr``
        and ``difference``; None where a value is undefined.
    """
    rows = []
    for task, values in base["results"].items():
        for key, value in values.items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr"):
                continue
            after = tuned["results"][task].get(key)
            error = f"{metric}_stderr,{filtered}"
            before, after = _number(value), _number(after)
            rows.append(
                {
                    "task": task,
                    "metric": metric,
                    "filter": filtered,
                    "higher_is_better": base["higher_is_better"].get(task, {}).get(metric),
                    "base": before,
                    "base_stderr": _number(values.get(error)),
                    "tuned": after,
                    "tuned_stderr": _number(tuned["results"][task].get(error)),
                    "difference": None if before is None or after is None else after - before,
                }
            )
    return rows


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if is_number else None


def cells(row: dict[str, Any]) -> list[str]:
    """A row of `compare` under `HEADER`; an arrow shows which way is better."""
    arrow = {True: " ↑", False: " ↓"}.get(row["higher_is_better"], "")
    name = row["metric"] if row["filter"] == "none" else f"{row['metric']} ({row['filter']})"
    shown = [_shown(row[key]) for key in ("base", "base_stderr", "tuned", "tuned_stderr")]
    return [row["task"], name + arrow, *shown, _shown(row["difference"], "+")]


def _shown(value: float | None, sign: str = "") -> str:
    if value is None:
        return "-"
    return f"{value:{sign}.4f}" if abs(value) < 1e5 else f"{value:{sign}.3e}"
