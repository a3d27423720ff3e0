"""``cacse-trainer import``: a checkpoint of the CACSE release → a Cacse model; of SimCSE or DiffCSE → an encoder."""

import sys
from collections.abc import Sequence
from pathlib import Path

from cacse_trainer.cli.common import OneLineParser, command_parser, run
from cacse_trainer.cli.encoders import chosen
from cacse_trainer.cli.output import tell
from cacse_trainer.encoding.model_card import CardFacts
from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.export.encoders import clean_tokenizer, export
from cacse_trainer.files import writing_folder
from cacse_trainer.importers.reference import convert_reference_checkpoint
from cacse_trainer.importers.simcse import load_simcse_checkpoint
from cacse_trainer.runs.build import load_tokenizer
from cacse_trainer.settings.resources import resolve_resource

EPILOG = """examples:
  cacse-trainer import --checkpoint pytorch_model.bin --tower_a bert-base-uncased --output_dir cacse_model
  cacse-trainer import --checkpoint unsup-simcse-bert-base-uncased --head drop --output_dir simcse_model
"""


def parser() -> OneLineParser:
    """The command's flags."""
    made = command_parser(
        "import",
        "Turn the CACSE release's pytorch_model.bin into a model folder (cacse-trainer export goes on from "
        "there), or, with --head, a training checkpoint or released model of SimCSE or DiffCSE into a plain encoder.",
        EPILOG,
    )
    add = made.add_argument
    add("--checkpoint", required=True, help="pytorch_model.bin or .safetensors with the release's key names")
    add("--tower_a", help="folder or hub id whose config and tokenizer tower A has")
    add("--tower_b", help="the same for tower B; default: tower A's")
    add("--constraint", help="the same for the constraint model; default: tower A's")
    add("--cascade_start_layer", type=int, default=7, help="k0: BERT 7, RoBERTa 11")
    add("--constraint_layers", type=int, default=4, help="m: BERT 4, RoBERTa 1")
    add("--cascade_heads", type=int, default=6, help="without effect, kept in the config")
    add(
        "--head",
        choices=("use", "drop"),
        help="SimCSE, DiffCSE: whether the head is used at inference. use: supervised SimCSE; drop: the raw CLS state, "
        "for unsupervised SimCSE and DiffCSE (the file does not say which it is)",
    )
    add("--output_dir", required=True, help="folder of the model")
    return made


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    settings = parser().parse_args(arguments)
    if settings.head is not None:
        import_single_tower(settings.checkpoint, Path(settings.output_dir), use_head=settings.head == "use")
        return
    if settings.tower_a is None:
        raise UserError("give --tower_a for a checkpoint of the CACSE release, or --head for one of SimCSE or DiffCSE")
    tower_a = resolve_resource(settings.tower_a)
    with user_errors(f"checkpoint {settings.checkpoint}"):
        model, report = convert_reference_checkpoint(
            settings.checkpoint,
            tower_a,
            resolve_resource(settings.tower_b or settings.tower_a),
            resolve_resource(settings.constraint or settings.tower_a),
            **chosen(settings, "cascade_start_layer", "constraint_layers", "cascade_heads"),
        )
    for what, names in (("skipped", report.skipped), ("left over", report.left_over), ("missing", report.missing)):
        print(f"{what}: {len(names)}", *names, sep="\n  ")
    if report.missing or report.left_over:
        raise UserError(
            f"checkpoint {settings.checkpoint} does not fit: {len(report.missing)} weights missing, "
            f"{len(report.left_over)} left over; check cascade_start_layer and constraint_layers"
        )
    tokenizer = clean_tokenizer(load_tokenizer(tower_a))
    unwritable = f"output_dir {settings.output_dir} cannot be written"
    with user_errors(unwritable), writing_folder(Path(settings.output_dir)) as staged:
        model.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
    tell(f"wrote {Path(settings.output_dir)}", {"output_dir": settings.output_dir, "skipped": report.skipped})


def import_single_tower(checkpoint: str, output_dir: Path, *, use_head: bool) -> None:
    """A folder of SimCSE or DiffCSE → ``output_dir``, a plain encoder with the right pooling, its vectors compared."""
    folder = resolve_resource(checkpoint)
    with user_errors(f"checkpoint {checkpoint}"):
        model = load_simcse_checkpoint(folder, use_head=use_head)
    facts = CardFacts(title=output_dir.resolve().name, what="", base_models=[Path(folder).name])
    export(model, load_tokenizer(folder), output_dir.parent, facts, name=output_dir.name)
    tell(f"wrote {output_dir}", {"output_dir": str(output_dir)})


if __name__ == "__main__":
    sys.exit(run(main))
