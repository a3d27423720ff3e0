"""``cacse-trainer export``: a training checkpoint → plain encoder folders."""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModel, PreTrainedModel

import cacse_trainer.models  # noqa: F401 - registers the model classes with AutoModel
from cacse_trainer.cli.common import OneLineParser, run
from cacse_trainer.cli.output import tell_json
from cacse_trainer.encoding.hub import HubTarget, push_folders
from cacse_trainer.encoding.model_card import RECORDED, CardFacts
from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.export.onnx import export_onnx
from cacse_trainer.runs.build import export_model, load_encoders, load_tokenizer, public_name
from cacse_trainer.runs.preparation import REPORT, load_dev_sets
from cacse_trainer.runs.pushing import add_hub_flags, flagged_target, push_export
from cacse_trainer.settings.distillation import EncoderChoice

logger = logging.getLogger(__name__)

EPILOG = """examples:
  cacse-trainer export --checkpoint runs/cacse/checkpoint-1200 --output_dir exported
  cacse-trainer export --encoders path=exported/tower_a path=other,weight=0.5 --output_dir sum
  cacse-trainer export --folder exported/tower_a --format onnx
  cacse-trainer export --folder exported/tower_a --push_to_hub --hub_model_id me/my-encoder
"""


def parser() -> OneLineParser:
    """The command's flags."""
    made = OneLineParser(
        prog="cacse-trainer export",
        description="Turn a training checkpoint, or a weighted list of encoders, into folders that load.",
        epilog=EPILOG,
    )
    source = made.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", help="folder of a checkpoint, or of a finished run")
    source.add_argument(
        "--folder", help="instead: a folder that was exported before, for --format onnx or --push_to_hub"
    )
    source.add_argument(
        "--encoders",
        nargs="+",
        type=EncoderChoice,
        metavar="path=…,pooling=…,weight=…",
        help="instead: encoders whose weighted sum is written as one ensemble; tokenizers may differ",
    )
    made.add_argument("--output_dir", help="where the folders are written (not with --folder)")
    made.add_argument(
        "--dev_file",
        nargs="+",
        metavar="NAME=PATH",
        help="dev sets that the exported folders are scored on, for their cards; default: the run's own",
    )
    made.add_argument(
        "--format",
        default="torch",
        choices=["torch", "onnx"],
        help="onnx: ONNX graphs beside the weights as well, float32 and int8",
    )
    made.add_argument(
        "--trust_remote_code", action="store_true", help="run the model code that comes with an adapter's base model"
    )
    add_hub_flags(made.add_argument)
    return made


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    settings = parser().parse_args(arguments)
    target = flagged_target(settings)
    dev_sets = load_dev_sets(settings.dev_file) if settings.dev_file else {}
    if settings.folder is not None:
        if settings.output_dir is not None:
            raise UserError("--folder: leave --output_dir out; the graphs are written into the folder, as onnx/")
        use_folder(Path(settings.folder), settings.format, target, dev_sets)
        tell_json({"folders": {str(settings.folder): {}}})
        return
    if settings.output_dir is None:
        raise UserError("command line: give --output_dir, where the folders are written")
    if settings.encoders:
        model: PreTrainedModel
        model, tokenizer = load_encoders(settings.encoders)
        facts = CardFacts(
            title=Path(settings.output_dir).resolve().name,
            what="",
            license=settings.hub_license,
            base_models=[public_name(choice.path) for choice in settings.encoders],
        )
    else:
        model, tokenizer = load_checkpoint(Path(settings.checkpoint), settings.trust_remote_code)
        recorded, dev_files = recorded_run(Path(settings.checkpoint))
        facts = CardFacts(
            title=Path(settings.checkpoint).resolve().name, what="", license=settings.hub_license, **recorded
        )
        if not dev_sets and dev_files:
            dev_sets = dev_sets_still_there(dev_files)
    with user_errors(f"output_dir {settings.output_dir} cannot be written"):
        Path(settings.output_dir).mkdir(parents=True, exist_ok=True)
    scores = export_model(model, tokenizer, Path(settings.output_dir), facts, dev_sets)
    for name, measured in scores.items():
        print(Path(settings.output_dir) / name, *(f"{dev} {score:.2f}" for dev, score in measured.items()))
        if settings.format == "onnx":
            write_graphs(Path(settings.output_dir) / name, dev_sets)
    if target is not None:
        push_export(target, Path(settings.output_dir), scores)
    tell_json({"folders": {str(Path(settings.output_dir) / name): measured for name, measured in scores.items()}})


def recorded_run(checkpoint: Path) -> tuple[dict[str, Any], list[str] | None]:
    """What the report of the checkpoint's run, in its folder or beside it, says for the card, and the run's dev sets.

    Raises:
        UserError: the report cannot be read.
    """
    for folder in (checkpoint, checkpoint.resolve().parent):
        path = folder / REPORT
        if path.is_file():
            with user_errors(f"report {path}"):
                report = json.loads(path.read_text(encoding="utf-8"))
            card = report.get("card", {})
            return {name: card[name] for name in RECORDED if name in card}, report.get("settings", {}).get("dev_file")
    return {}, None


def dev_sets_still_there(dev_files: Sequence[str]) -> dict[str, Dataset]:
    """The dev sets of a run; none, with a warning, where they have moved."""
    try:
        return load_dev_sets(dev_files)
    except UserError as error:
        logger.warning("the run's dev sets cannot be scored again (%s); name them with --dev_file", error)
        return {}


def use_folder(folder: Path, kind: str, target: HubTarget | None, dev_sets: Mapping[str, Dataset]) -> None:
    """ONNX graphs for a folder that was exported before, or its push, or both.

    Raises:
        UserError: it is no such folder, or nothing is asked for.
    """
    if not (folder / "modules.json").is_file():
        raise UserError(f"--folder {folder}: is no exported folder (there is no modules.json)")
    if kind != "onnx" and target is None:
        raise UserError(f"--folder {folder}: nothing to do; give --format onnx, or --push_to_hub --hub_model_id ID")
    if kind == "onnx":
        write_graphs(folder, dev_sets)
    if target is not None:
        print(f"pushed: {push_folders([folder], target)}")


def write_graphs(folder: Path, dev_sets: Mapping[str, Dataset]) -> None:
    """A folder's ONNX graphs, and what the int8 one costs."""
    report = export_onnx(folder, dev_sets)
    sizes = ", ".join(f"{name} {size:.0f} MB" for name, size in report["megabytes"].items())
    print(f"{folder / 'onnx'} {sizes}")
    for dev, cost in report.get("cost_of_int8", {}).items():
        scores = report["scores"]
        print(f"  {dev}: float32 {scores['float32'][dev]:.2f}, int8 {scores['int8'][dev]:.2f} ({-cost:+.2f})")


def load_checkpoint(folder: Path, trust_remote_code: bool = False) -> tuple[PreTrainedModel, Any]:
    """A checkpoint's model and tokenizer; of an adapter's checkpoint, with the base model that it names.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"checkpoint {folder}: no such folder, or no config.json in it")
    with user_errors(f"checkpoint {folder}"):
        trusted = {"trust_remote_code": True} if trust_remote_code else {}
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, **trusted)
        return model, load_tokenizer(str(folder), trust_remote_code)


if __name__ == "__main__":
    sys.exit(run(main))
