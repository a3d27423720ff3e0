"""CPU seconds of SentEval's classifiers on cached embeddings, side by side and one after the other as in the original.

The original toolkit does not run on current libraries; its way, a network, an optimizer and a loop of steps for every
fold and L2 value, is `senteval.tools.classifier`, which takes its turn in the same run, on the same vectors
(all-MiniLM-L6-v2, mean pooling, mode test, seed 1111) and one thread. The figures must agree, and be the original's.

    python benchmarks/senteval_classifiers.py --data_dir SentEval/data --tasks MR TREC MRPC --output classifiers.json
"""

import argparse
import sys
import time
from pathlib import Path
from unittest.mock import patch

import senteval
import torch
from common import MINILM, save

from cacse_trainer import SentenceEncoder

ORIGINAL_ACCURACY = {"MR": 76.34, "TREC": 90.0, "MRPC": 72.35}
SPREAD = {"MR": 0.5, "TREC": 1.2, "MRPC": 1.2}
TARGET = 20.0


def timed(engine: senteval.SE, task: senteval.Task) -> tuple[float, float]:
    """CPU seconds and accuracy."""
    started = time.process_time()
    found = engine.run(task)
    return time.process_time() - started, found["acc"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=Path("SentEval/data"), help="SentEval's data folder")
    parser.add_argument("--tasks", nargs="+", default=["TREC", "MRPC"], choices=list(ORIGINAL_ACCURACY))
    parser.add_argument("--runs", type=int, default=1, help="side by side, each before and after; the least counts")
    parser.add_argument("--output", type=Path, help="JSON file; the plot lies beside it")
    settings = parser.parse_args()
    try:
        tasks = [senteval.load_task(name, settings.data_dir) for name in settings.tasks]
    except senteval.DataFileMissing as error:
        print(f"nothing measured: {error}")
        return 0
    sentences = senteval.distinct_sentences(tasks)
    vectors = SentenceEncoder(MINILM, device="cpu").vectors(sentences)
    torch.set_num_threads(1)
    params = {**senteval.classifier_settings("test"), "seed": 1111, "batch_size": 4096}
    engine = senteval.SE(params, senteval.EmbeddingTable(sentences, vectors))
    rows, wrong = {}, []
    names = ("seconds", "one by one", "times as fast", "accuracy", "one by one", "original")
    print(f"{'task':6}" + "".join(f"{name:>15}" for name in names), flush=True)
    for task in tasks:
        runs = [timed(engine, task) for _ in range(settings.runs)]
        with patch("senteval.tools.validation.can_batch", return_value=False):
            plain, plain_accuracy = timed(engine, task)
        runs += [timed(engine, task) for _ in range(settings.runs)]
        seconds, accuracy = min(runs)
        original = ORIGINAL_ACCURACY[task.name]
        rows[task.name] = {
            "seconds": seconds,
            "seconds_one_by_one": plain,
            "times_as_fast": plain / seconds,
            "accuracy": accuracy,
            "accuracy_one_by_one": plain_accuracy,
        }
        values = (f"{seconds:.1f}", f"{plain:.1f}", f"{plain / seconds:.1f}", accuracy, plain_accuracy, original)
        print(f"{task.name:6}" + "".join(f"{value:>15}" for value in values), flush=True)
        if max(abs(accuracy - original), abs(accuracy - plain_accuracy)) > SPREAD[task.name]:
            wrong.append(task.name)
    bars = {
        name: {"side by side": row["seconds"], "one by one": row["seconds_one_by_one"]} for name, row in rows.items()
    }
    save(settings.output, {"target_times_as_fast": TARGET, "tasks": rows}, bars, "CPU seconds")
    if wrong:
        print(f"THE FIGURES DIFFER: {', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
