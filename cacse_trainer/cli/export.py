"""``cacse-trainer export``: a training checkpoint → plain encoder folders."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cacse_trainer.cli.common import OneLineParser, command_parser, run
from cacse_trainer.cli.output import tell, tell_json
from cacse_trainer.encoding.hub import HubTarget, push_folders
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.dev_sets import DevSet
from cacse_trainer.export.adapter import export_adapter
from cacse_trainer.export.onnx import export_onnx
from cacse_trainer.export.openvino import export_openvino
from cacse_trainer.runs.export import export_checkpoint, export_sum, recorded_dev_sets
from cacse_trainer.runs.preparation import load_dev_sets
from cacse_trainer.settings.distillation import EncoderChoice

EPILOG = """examples:
  cacse-trainer export --checkpoint runs/cacse/checkpoint-1200 --output_dir exported
  cacse-trainer export --encoders path=exported/tower_a path=other,weight=0.5 --output_dir sum
  cacse-trainer export --folder exported/tower_a --format onnx
  cacse-trainer export --folder exported/tower_a --format openvino --dev_file stsb=sts-dev.csv
  cacse-trainer export --folder exported/tower_a --push_to_hub --hub_model_id me/my-encoder
  cacse-trainer export --folder runs/bellm --adapter --push_to_hub --hub_model_id me/my-adapter
"""

GRAPHS = {"onnx": export_onnx, "openvino": export_openvino}
"""What writes the graphs of a ``--format``."""


def parser() -> OneLineParser:
    """The command's flags."""
    made = command_parser(
        "export", "Turn a training checkpoint, or a weighted list of encoders, into folders that load.", EPILOG
    )
    add = made.add_argument
    source = made.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, help="folder of a checkpoint, or of a finished run")
    before = "instead: a folder that was exported before, for --format or --push_to_hub"
    source.add_argument("--folder", type=Path, help=before)
    summed = "instead: encoders whose weighted sum is written as one ensemble; tokenizers may differ"
    choice = "path=…,pooling=…,weight=…"
    source.add_argument("--encoders", nargs="+", type=EncoderChoice, metavar=choice, help=summed)
    shared = "of --folder RUN: its LoRA adapter as a folder to share, RUN/export/adapter, with base, prompt and pooling"
    add("--adapter", action="store_true", help=shared)
    add("--output_dir", type=Path, help="where the folders are written (not with --folder)")
    scored = "dev sets that the exported folders are scored on, for their cards; default: the run's own"
    add("--dev_file", nargs="+", metavar="NAME=PATH", help=scored)
    graphs = "onnx, openvino: such graphs beside the weights as well, float32 and int8"
    add("--format", default="torch", choices=["torch", *GRAPHS], help=graphs)
    add("--trust_remote_code", action="store_true", help="run the model code that comes with an adapter's base model")
    add("--push_to_hub", action="store_true", help="push the exported folders")
    add("--hub_model_id", metavar="OWNER/NAME", help="repository of the hub; made when missing")
    add("--hub_private_repo", action="store_true", default=None, help="make it a private one")
    add("--hub_revision", metavar="BRANCH", help="branch to push to; made when missing. Default: main")
    add("--hub_token", help="default: HF_TOKEN, or the login of `hf auth login`")
    add("--hub_license", help="licence id for the cards, such as mit")
    return made


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    settings = parser().parse_args(arguments)
    target = None
    if settings.push_to_hub:
        if not settings.hub_model_id:
            raise UserError("--push_to_hub needs a name: give --hub_model_id OWNER/NAME")
        target = HubTarget(settings.hub_model_id, settings.hub_private_repo, settings.hub_revision, settings.hub_token)
    dev_sets = load_dev_sets(settings.dev_file) if settings.dev_file else {}
    if settings.adapter:
        share_adapter(settings, target)
        return
    if settings.folder is not None:
        use_folder(settings, target, dev_sets)
        return
    output: Path | None = settings.output_dir
    if output is None:
        raise UserError("command line: give --output_dir, where the folders are written")
    if settings.encoders:
        scores = export_sum(settings.encoders, output, dev_sets, settings.hub_license)
    else:
        dev_sets = dev_sets or recorded_dev_sets(settings.checkpoint)
        scores = export_checkpoint(
            settings.checkpoint, output, dev_sets, settings.hub_license, settings.trust_remote_code
        )
    for name, measured in scores.items():
        print(output / name, *(f"{dev} {score:.2f}" for dev, score in measured.items()))
        write_graphs(settings.format, output / name, dev_sets)
    if target is not None:
        print(f"pushed: {push_folders([output / name for name in scores], target)}")
    tell_json({"folders": {str(output / name): measured for name, measured in scores.items()}})


def share_adapter(settings: argparse.Namespace, target: HubTarget | None) -> None:
    """A run's adapter as a folder, and its push.

    Raises:
        UserError: no run is named, it has no adapter, or something else is asked for.
    """
    if settings.folder is None or settings.format != "torch" or settings.dev_file:
        raise UserError("--adapter: give --folder RUN, and neither --format nor --dev_file")
    trusted = settings.trust_remote_code
    folder = export_adapter(settings.folder, settings.output_dir, settings.hub_license, trust_remote_code=trusted)
    lines = [str(folder)]
    if target is not None:
        lines.append(f"pushed: {push_folders([folder], target)}")
    tell("\n".join(lines), {"folders": {str(folder): {}}})


def use_folder(settings: argparse.Namespace, target: HubTarget | None, dev_sets: dict[str, DevSet]) -> None:
    """Graphs for a folder that was exported before, or its push, or both.

    Raises:
        UserError: it is no such folder, or nothing is asked for.
    """
    folder: Path = settings.folder
    if settings.output_dir is not None:
        raise UserError("--folder: leave --output_dir out; the graphs are written into the folder itself")
    if not (folder / "modules.json").is_file():
        raise UserError(f"--folder {folder}: is no exported folder (there is no modules.json)")
    if (folder / "training_args.bin").is_file():
        raise UserError(f"--folder {folder}: is a training model; give --checkpoint {folder}, which exports it")
    if settings.format == "torch" and target is None:
        kinds = " or ".join(f"--format {kind}" for kind in GRAPHS)
        raise UserError(f"--folder {folder}: nothing to do; give {kinds}, or --push_to_hub --hub_model_id ID")
    write_graphs(settings.format, folder, dev_sets)
    if target is not None:
        print(f"pushed: {push_folders([folder], target)}")
    tell_json({"folders": {str(folder): {}}})


def write_graphs(kind: str, folder: Path, dev_sets: dict[str, DevSet]) -> None:
    """A folder's graphs of a kind (``torch``: none); tells their sizes, and what the int8 one costs."""
    if kind not in GRAPHS:
        return
    report = GRAPHS[kind](folder, dev_sets)
    sizes = ", ".join(f"{name} {size:.0f} MB" for name, size in report["megabytes"].items())
    print(f"{folder / kind} {sizes}")
    for dev, cost in report.get("cost_of_int8", {}).items():
        scores = report["scores"]
        print(f"  {dev}: float32 {scores['float32'][dev]:.2f}, int8 {scores['int8'][dev]:.2f} ({-cost:+.2f})")


if __name__ == "__main__":
    sys.exit(run(main))
