"""Mining among many lines: seconds to encode the corpus and to mine, peak memory, and that the blocks change nothing.

The lines are distinct and made of random words, the model is tiny and random: what is measured is the road, not the
encoder. Ours is compared with faiss's exact index (``flat``) over the same vectors, in the same run, where it is there.

    python benchmarks/mine.py --lines 1000000 --rows 10000 --output mine.json
"""

import argparse
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from common import peak_gb, quiet
from transformers import BertConfig, BertModel, BertTokenizerFast

from cacse_trainer import SentenceEncoder, mine_hard_negatives
from cacse_trainer.evaluation.environment import environment
from cacse_trainer.files import write_json

WORDS = [f"{first}{second}" for first in "bcdfghjklmnprstvwz" for second in ("a", "e", "i", "o", "u", "an", "ol", "ir")]
WORDS_A_LINE = 8


def lines(count: int, seed: int = 0) -> Iterator[str]:
    """Lines of random words; the number at the end makes them distinct."""
    draw = random.Random(seed)
    for i in range(count):
        yield " ".join([*draw.choices(WORDS, k=WORDS_A_LINE), *str(i)])


def tiny_encoder(folder: Path) -> SentenceEncoder:
    """Two layers of width 64, random weights."""
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"0123456789"]) + "\n")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
    config = BertConfig(vocab_size=len(WORDS) + 15, max_position_embeddings=64, initializer_range=0.2, **sizes)
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(vocab=str(vocabulary), model_max_length=64).save_pretrained(folder)
    return SentenceEncoder(folder, "mean", "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=5_000, help="of the corpus; default 5000, a toy")
    parser.add_argument("--rows", type=int, default=200, help="pairs that negatives are found for")
    parser.add_argument("--negatives", type=int, default=4)
    parser.add_argument("--precision", default="float32", choices=["float32", "int8", "binary"])
    parser.add_argument("--compared", type=int, default=5_000, help="lines of the comparison with faiss flat")
    parser.add_argument("--output", type=Path, help="JSON file")
    settings = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        encoder = tiny_encoder(Path(folder))
        draw = random.Random(1)
        pairs = [
            {"anchor": " ".join(draw.sample(text.split(), WORDS_A_LINE)), "positive": text}
            for text in lines(settings.rows)
        ]
        asked = {"negatives": settings.negatives, "rank_range": (1, 20), "relative_margin": None}
        before, started = peak_gb(), time.perf_counter()
        found = mine_hard_negatives(
            encoder, pairs, lines(settings.lines), precision=settings.precision, show_progress_bar=True, **asked
        )
        seconds, peak = time.perf_counter() - started, peak_gb()
        user = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        print(
            f"{settings.lines} lines, {settings.rows} rows, {settings.precision}: {seconds:.1f} s, peak {peak:.2f} GB "
            f"({before:.2f} before), {found.counts['mined']} rows mined"
        )
        report = {"counts": found.counts, "seconds": seconds, "cpu_seconds": user, "peak_gb": peak, "before_gb": before}
        few, some = list(lines(settings.compared)), pairs[: min(200, len(pairs))]
        seconds_by = {}
        mined = {}
        for index in ("exact", "flat"):
            started = time.perf_counter()
            try:
                mined[index] = mine_hard_negatives(encoder, some, few, index=index, **asked).rows.to_list()
            except ValueError as error:  # faiss is not installed
                print(error)
                continue
            seconds_by[index] = time.perf_counter() - started
        if "flat" in mined:
            same = sum(row in mined["flat"] for row in mined["exact"]) / max(1, len(mined["exact"]))
            print(f"{len(few)} lines, {len(some)} rows: {same:.1%} the same rows as faiss flat; seconds {seconds_by}")
            report |= {"same_as_flat": same, "seconds_compared": seconds_by}
    if settings.output:
        write_json(settings.output, {**report, "environment": environment()})


if __name__ == "__main__":
    main()
