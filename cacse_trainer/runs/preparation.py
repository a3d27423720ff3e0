"""Before a training run: its text, its dev sets, and the metric that chooses."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, IterableDataset

from cacse_trainer.data import has_labels, load_pairs, load_sentences, load_sentences_with_stats
from cacse_trainer.encoding.embedder import Vectors
from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.evaluation.dev_sets import DevSet, GradedPairs, load_named
from cacse_trainer.files import crc32_of
from cacse_trainer.runs.mixing import mixed, shares_of
from cacse_trainer.settings.arguments import CacseTrainingArguments, DataArguments
from cacse_trainer.settings.resources import nearest, public_name, resolve_resource

STREAM_HEAD = 1 << 24
"""Bytes of a streamed text that its checksum covers."""
STSB_ON_THE_HUB = "sentence-transformers/stsb"


def load_training_text(
    data_args: DataArguments, args: CacseTrainingArguments, scored: bool = False
) -> tuple[Dataset | IterableDataset, dict[str, Any]]:
    """The training rows, and what is known of them for the report; ``scored``: with their column ``scores``."""
    if data_args.train_file is None:
        raise UserError("no training text: give train_file, in a recipe or as --train_file FILE")
    if not data_args.mix:
        return _load_rows(data_args.train_file, data_args, args, scored)
    if data_args.streaming:
        raise UserError("mix takes shares of texts whose lengths are known: leave out streaming, or mix")
    names = (data_args.train_file, *shares_of(data_args.mix))
    loaded = {name: _load_rows(name, data_args, args, scored) for name in names}
    seed = args.seed if args.data_seed is None else args.data_seed
    dataset, counts = mixed({name: rows for name, (rows, _) in loaded.items()}, shares_of(data_args.mix), seed)
    facts = {"mixed": {public_name(name): told for name, told in counts.items()}, "kept": len(dataset)}
    return dataset, {**loaded[data_args.train_file][1], **facts}


def _load_rows(
    name: str, data_args: DataArguments, args: CacseTrainingArguments, scored: bool
) -> tuple[Dataset | IterableDataset, dict[str, Any]]:
    """`load_training_text` of one file or data set."""
    source = resolve_resource(name)
    columns = None
    if data_args.label_column is not None:
        if data_args.text_columns is None or len(data_args.text_columns) != 2:
            raise UserError("label_column belongs to pairs: name their two columns with text_columns, too")
        columns = (data_args.text_columns[0], data_args.text_columns[1], data_args.label_column)
    by_name = data_args.text_columns is None and not data_args.streaming  # a stream is not loaded to look at it
    if columns is not None or (by_name and has_labels(source)):
        if data_args.streaming:
            raise UserError("streaming reads no labels; leave it out, labelled pairs are read at once")
        pairs = load_pairs(source, split="train", columns=columns)
        facts = {"columns": list(columns or pairs.column_names), "rows": len(pairs), "kept": len(pairs)}
        return pairs, {"source": public_name(source), **facts, "labelled": True}
    if data_args.streaming:
        if args.max_steps <= 0:
            raise UserError("streaming needs max_steps: the length of the text is not known before it is read")
        if data_args.shuffle_buffer < 1:
            raise UserError(f"shuffle_buffer is {data_args.shuffle_buffer}; it must be at least 1")
        if scored:
            raise UserError("streaming reads no scores; leave it out, scored rows are read at once")
        stream = load_sentences(source, data_args.text_columns, streaming=True)
        seed = args.seed if args.data_seed is None else args.data_seed
        return stream.shuffle(seed, buffer_size=data_args.shuffle_buffer), {"source": public_name(source)}
    dataset, stats = load_sentences_with_stats(source, data_args.text_columns, scored=scored)
    return dataset, {"source": public_name(source), **stats}


def text_facts(data_args: DataArguments) -> dict[str, Any]:
    """What tells the training text from another one: size and checksum of its file, the name of a hub's data set.

    Of a stream, which may be longer than anyone wants to read twice, only the beginning is summed.
    """
    if data_args.train_file is None:
        return {}
    own = _text_facts(data_args.train_file, "train_file", data_args.streaming)
    shares = shares_of(data_args.mix or [])
    more = [f"{share:g} of {_text_facts(name, 'mix')}" for name, share in shares.items()]
    kept = {"kept_text": _text_facts(data_args.keep_file, "keep_file")} if data_args.keep_file is not None else {}
    return {"text": own, **({"mixed_text": ", ".join(more)} if more else {}), **kept}


def _text_facts(name: str, option: str, streaming: bool = False) -> str:
    source = Path(resolve_resource(name)).expanduser()
    if not source.is_file():
        return name
    with user_errors(f"{option} {source}"), source.open("rb") as file:
        sums = crc32_of(source) if not streaming else zlib.crc32(file.read(STREAM_HEAD))
    return f"{source.stat().st_size} bytes, checksum {sums:08x}"


def load_dev_sets(dev_files: Sequence[str] | None) -> dict[str, DevSet]:
    """Paths or ``name=path`` → dev sets by name, see `load_named`; STS-B from the hub when none is given.

    Raises:
        UserError: a name that is none or given twice, a file that is wrong.
    """
    if not dev_files:
        try:
            return {"stsb": GradedPairs(load_pairs(STSB_ON_THE_HUB))}
        except UserError as error:
            reason = str(error).partition(";")[0]
            raise UserError(
                f"no dev_file is given, and STS-B cannot be read from the hub ({reason}); give --dev_file stsb=PATH, "
                "or --evaluation none"
            ) from error
    return load_named(dev_files, "dev_file")


class Sets(NamedTuple):
    """What scores a model: the dev sets and the held-out ones by name, and what else gives scores."""

    dev: dict[str, DevSet]
    held_out: dict[str, DevSet]
    scorers: Sequence[Callable[[Vectors], dict[str, float]]]

    @property
    def every(self) -> dict[str, DevSet]:
        """All sets by name."""
        return {**self.dev, **self.held_out}


def load_sets(data_args: DataArguments, args: CacseTrainingArguments) -> Sets:
    """The sets that the settings name.

    Raises:
        UserError: see `dev_entries` and `load_dev_sets`.
    """
    uses = uses_dev_sets(data_args, args)
    entries = dev_entries(data_args)
    dev_sets = load_dev_sets(entries) if uses and (entries or not data_args.held_out_rows) else {}
    held_out = load_named(data_args.test_file or [], "test_file", dev_sets)
    scorers = []
    if uses and data_args.eval_transfer:
        from cacse_trainer.evaluation.transfer_dev import TransferDevScorer  # senteval is only needed here

        scorers.append(TransferDevScorer(Path(data_args.senteval_data)))
    return Sets(dev_sets, held_out, scorers)


def uses_dev_sets(data_args: DataArguments, args: CacseTrainingArguments) -> bool:
    """Whether dev sets are scored; with ``evaluation: none`` the settings that need a score are switched off."""
    if data_args.evaluation not in ("sts", "none"):
        raise UserError(f"evaluation must be sts or none, got {data_args.evaluation!r}")
    if data_args.evaluation == "none" or not args.do_eval or (args.eval_strategy == "no" and not data_args.dev_file):
        args.without_evaluation()
        return False
    return True


DEV_FILES = {"stsb": "downstream/STS/STSBenchmark/sts-dev.csv", "sickr": "downstream/SICK/SICK_trial.txt"}
"""Named dev sets, below SentEval's data folder."""


def dev_entries(data_args: DataArguments) -> list[str] | None:
    """``dev_file`` and ``eval_sets`` as ``name=path`` each; None when neither is given.

    Raises:
        UserError: an unknown name, or its file is missing.
    """
    entries = list(data_args.dev_file or [])
    for name in data_args.eval_sets or []:
        path = Path(data_args.senteval_data) / DEV_FILES.get(name, "")
        if "=" in name:
            entries.append(name)
        elif name not in DEV_FILES:
            raise UserError(
                f"eval_sets {name!r}: give {', '.join(DEV_FILES)} or name=path{nearest(name, list(DEV_FILES))}"
            )
        elif path.is_file():
            entries.append(f"{name}={path}")
        elif name == "stsb":
            entries.append(f"{name}={STSB_ON_THE_HUB}")
        else:
            raise UserError(
                f"eval_sets {name}: no file {path}; run bash SentEval/data/downstream/download_dataset.sh, "
                "or point senteval_data to SentEval's data folder"
            )
    return entries or None


def check_metric(args: CacseTrainingArguments, dev_sets: Mapping[str, DevSet], scorers: Sequence[object] = ()) -> None:
    """The metric that chooses the best model must belong to a dev set, or be the average of the transfer tasks."""
    metric = args.metric_for_best_model
    known = [f"{name}_{metric}" for name, dev_set in dev_sets.items() for metric in dev_set.metrics]
    known += ["transfer_avg"] if scorers else []
    if metric is not None and args.eval_strategy != "no" and str(metric).removeprefix("eval_") not in known:
        raise UserError(f"metric_for_best_model={metric}: the dev sets give {', '.join(known) or 'none'}")
    if args.early_stopping_patience is not None and (args.eval_strategy == "no" or not known):
        raise UserError("early_stopping_patience waits for a better score, and no dev set is scored; give dev_file")
