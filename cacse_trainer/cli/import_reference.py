"""``cacse-trainer import``: a checkpoint of the CACSE release → a Cacse model; of SimCSE or DiffCSE → an encoder.

The TNCSE release's pairs, two plain encoders, → a Tncse model.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from cacse_trainer.cli.common import OneLineParser, command_parser, run
from cacse_trainer.cli.encoders import chosen
from cacse_trainer.cli.output import tell
from cacse_trainer.encoding.model_card import CardFacts
from cacse_trainer.encoding.saving import clean_tokenizer
from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.export.encoders import export
from cacse_trainer.files import writing_folder
from cacse_trainer.importers.reference import convert_reference_checkpoint
from cacse_trainer.importers.simcse import load_simcse_checkpoint
from cacse_trainer.models import TncseModel
from cacse_trainer.runs.build import check_start, load_tokenizer
from cacse_trainer.settings.resources import resolve_resource

MOST = 10
"""Names of a list that are printed: a checkpoint of another kind would fill the screen."""
EPILOG = """examples:
  cacse-trainer import --checkpoint pytorch_model.bin --tower_a bert-base-uncased --output_dir cacse_model
  cacse-trainer import --checkpoint unsup-simcse-bert-base-uncased --head drop --output_dir simcse_model
  cacse-trainer import --tower_a TNCSE_BERT_CKPT/BERT_1 --tower_b TNCSE_BERT_CKPT/BERT_2 --output_dir tncse_model
"""


def parser() -> OneLineParser:
    """The command's flags."""
    made = command_parser(
        "import",
        "Turn the CACSE release's pytorch_model.bin into a model folder (cacse-trainer export goes on from "
        "there), or, with --head, a training checkpoint or released model of SimCSE or DiffCSE into a plain encoder; "
        "without --checkpoint, a pair of the TNCSE release, which is two encoders, into a model folder.",
        EPILOG,
    )
    add = made.add_argument
    add("--checkpoint", help="pytorch_model.bin or .safetensors with the release's key names; TNCSE: none")
    add("--tower_a", help="folder or hub id whose config and tokenizer tower A has; TNCSE: tower A itself")
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
        if settings.checkpoint is None:
            raise UserError("give --checkpoint, the folder of SimCSE or DiffCSE whose head is to be used or dropped")
        import_single_tower(settings.checkpoint, Path(settings.output_dir), use_head=settings.head == "use")
        return
    if settings.checkpoint is None:
        import_pair(settings.tower_a, settings.tower_b, settings.output_dir)
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
    print(f"skipped: {len(report.skipped)}", *report.skipped, sep="\n  ")
    for what, names in (("left over", report.left_over), ("missing", report.missing)):
        print(f"{what}: {len(names)}", *names[:MOST], *(["…"] if len(names) > MOST else []), sep="\n  ")
    if report.missing or report.left_over:
        raise UserError(
            f"checkpoint {settings.checkpoint} does not fit: {len(report.missing)} weights missing, "
            f"{len(report.left_over)} left over; check cascade_start_layer and constraint_layers"
        )
    write_model(model, tower_a, settings.output_dir)
    tell(f"wrote {Path(settings.output_dir)}", {"output_dir": settings.output_dir, "skipped": report.skipped})


def import_pair(tower_a: str | None, tower_b: str | None, output_dir: str) -> None:
    """The two encoders of a pair of the TNCSE release → ``output_dir``, a Tncse model.

    Raises:
        UserError: one of them is not given, they cannot be read, or do not fit each other.
    """
    if tower_a is None or tower_b is None:
        raise UserError("give --checkpoint, or --tower_a and --tower_b, the two encoders of the TNCSE release's pair")
    paths = resolve_resource(tower_a), resolve_resource(tower_b)
    with user_errors(f"towers {tower_a}, {tower_b}"):
        model = TncseModel.from_towers(*paths)
    write_model(model, paths[0], output_dir)
    tell(f"wrote {Path(output_dir)}", {"output_dir": output_dir})


def write_model(model: PreTrainedModel, tower_a: str, output_dir: str) -> None:
    """The model and tower A's tokenizer → ``output_dir``.

    Raises:
        UserError: there is no tokenizer, or the folder cannot be written.
    """
    tokenizer = clean_tokenizer(load_tokenizer(tower_a))
    unwritable = f"output_dir {output_dir} cannot be written"
    with user_errors(unwritable), writing_folder(Path(output_dir)) as staged:
        model.save_pretrained(staged)
        tokenizer.save_pretrained(staged)


def import_single_tower(checkpoint: str, output_dir: Path, *, use_head: bool) -> None:
    """A folder of SimCSE or DiffCSE → ``output_dir``, a plain encoder with the right pooling, its vectors compared."""
    check_start(checkpoint, "checkpoint")
    folder = resolve_resource(checkpoint)
    with user_errors(f"checkpoint {checkpoint}"):
        model = load_simcse_checkpoint(folder, use_head=use_head)
    facts = CardFacts(title=output_dir.resolve().name, what="", base_models=[Path(folder).name])
    export(model, load_tokenizer(folder), output_dir.parent, facts, name=output_dir.name)
    tell(f"wrote {output_dir}", {"output_dir": str(output_dir)})


if __name__ == "__main__":
    sys.exit(run(main))
