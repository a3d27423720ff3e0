"""``cacse-trainer evaluate``: any encoder through SentEval's suites, MTEB and sets of one's own."""

import sys
import time
from collections.abc import Sequence

from cacse_trainer.cli.common import OneLineParser, command_parser, run
from cacse_trainer.cli.encoders import add_compute_flags, add_decoder_flags, torch_settings
from cacse_trainer.cli.output import tell_json
from cacse_trainer.compute.distributed import join_processes, rank
from cacse_trainer.encoding.loading import CHOICES
from cacse_trainer.encoding.weighted import open_encoders
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.results import ResultStore
from cacse_trainer.evaluation.run import choose_tasks, evaluate_encoder
from cacse_trainer.evaluation.senteval_suite import Scoring
from cacse_trainer.evaluation.tables import terminal
from cacse_trainer.settings.command_line import count, seed
from cacse_trainer.settings.resources import public_name

EPILOG = """examples:
  cacse-trainer evaluate --model runs/cacse/export/ensemble --suite sts
  cacse-trainer evaluate --model bert-base-uncased --pooling avg_first_last --tasks STS12 STSBenchmark MR
  cacse-trainer evaluate --model A --model B --weights 0.25 0.75 --suite sts
  cacse-trainer evaluate --model A --dev_file docs=questions.csv                (columns query, document: nDCG@10, …)
  cacse-trainer evaluate --model A --mteb STS12 Banking77Classification cacse-reranking
  torchrun --nproc_per_node 4 -m cacse_trainer.cli.evaluate --model A --suite full

A second call with the same output folder goes on where the first one stopped.
"""


def parser() -> OneLineParser:
    """The command's flags."""
    made = command_parser("evaluate", "Score an encoder on SentEval, MTEB and sets of your own.", EPILOG)
    add = made.add_argument
    scored = "folder, hub id or package:NAME/FOLDER; several are summed. With --adapter: its base, by default"
    add("--model", action="append", help=scored)
    add("--weights", nargs="+", type=float, help="of several models, one number each; default: 1 each")
    add("--pooling", nargs="+", help=f"{', '.join(CHOICES)}; one, or one a model. Default: what the folder states")
    add_decoder_flags(add)
    add("--suite", nargs="+", default=[], choices=["sts", "transfer", "probing", "full"], help="the papers' tables")
    add("--tasks", nargs="+", default=[], metavar="TASK", help="SentEval tasks by name, such as STS12 STSBenchmark MR")
    add("--mteb", nargs="+", default=[], metavar="TASK", help="MTEB tasks or suites (cacse-sts22, …)")
    own = "sets of your own, path or name=path each: graded pairs, or queries and documents (see docs: evaluation)"
    add("--dev_file", nargs="+", default=[], metavar="NAME=PATH", help=own)
    add("--data_dir", help="SentEval's data folder. Default: SentEval/data, here or in the checkout")
    modes = "dev: STS-B's and SICK-R's dev parts alone, and the classifiers' dev scores; fasttest: quick classifiers"
    add("--mode", default="test", choices=["test", "dev", "fasttest"], help=modes)
    add("--aggregation", default="all", choices=["all", "mean", "wmean"], help="of the subsets of STS12 to STS16")
    add("--output_dir", help="for results.json, pairs/, tables and the chart. Default: results/MODEL_POOLING")
    add("--overwrite", action="store_true", help="forget the results that are in the output folder")
    add("--skip_missing", action="store_true", help="leave out tasks whose data files are not there")
    add("--train_text", metavar="FILE", help="training text: count the evaluation sentences in it, score without them")
    add_compute_flags(add)
    add("--device", help="cpu, cuda, cuda:1, …; default: a GPU where there is one")
    add("--max_seq_length", type=count, help="in tokens; default: what the model states")
    add("--tokens_per_batch", type=count, help="padded tokens a batch; default: by kind of device")
    add("--seed", type=seed, default=1111, help="of SentEval's classifiers")
    add("--trust_remote_code", action="store_true", help="run the model code that comes with the checkpoint")
    add("--disable_tqdm", action="store_true", help="no progress bars")
    return made


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    settings = parser().parse_args(arguments)
    if settings.model is None:
        if settings.adapter is None:
            raise UserError("command line: give --model, or --adapter (cacse-trainer evaluate --help)")
        settings.model, settings.adapter = [settings.adapter], None
    chosen = choose_tasks(
        settings.suite,
        settings.tasks,
        settings.mteb,
        dev_files=settings.dev_file,
        data_dir=settings.data_dir,
        skip_missing=settings.skip_missing,
        mode=settings.mode,
    )
    join_processes([settings.device] if settings.device else None)
    started = time.perf_counter()
    encoder = open_encoders(
        settings.model,
        settings.pooling,
        settings.weights,
        adapter=settings.adapter,
        device=settings.device,
        **torch_settings(settings, settings.device),
    )
    names = [public_name(name) for name in settings.model]
    mode = "" if settings.mode == "test" else f"_{settings.mode}"
    named = "+".join(names).replace("/", "_").replace(":", "_")
    store = evaluate_encoder(
        encoder,
        chosen,
        settings.output_dir or f"results/{named}_{encoder.pooling.replace(' ', '')}{mode}",
        Scoring(settings.mode, settings.aggregation, settings.seed),
        model=" + ".join(names),
        train_text=settings.train_text,
        overwrite=settings.overwrite,
        progress=not settings.disable_tqdm,
    )
    if rank() == 0:
        tell_evaluation(store, time.perf_counter() - started)
    if store.failure is not None:
        raise store.failure


def tell_evaluation(store: ResultStore, seconds: float) -> None:
    """Print the tables."""
    results = store.contents()
    print(terminal(results))
    contaminated = {name: entry["contamination"] for name, entry in store.tasks.items() if "contamination" in entry}
    if contaminated:
        print("\nevaluation sentences in the training text, and the score without them")
        for name, told in contaminated.items():
            share = 100 * told["occurring"] / max(1, told["sentences"])
            rest = told.get("score_without")
            more = f"; {rest:.2f} on the other {told['n_without']}" if rest is not None else ""
            print(f"  {name}: {told['occurring']} of {told['sentences']} ({share:.1f} %){more}")
    print(f"\n{store.path}   ({seconds:.0f} s)")
    tell_json({"output_dir": str(store.folder), **results})


if __name__ == "__main__":
    sys.exit(run(main))
