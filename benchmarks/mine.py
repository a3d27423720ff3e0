"""Mining among many lines: seconds to encode the corpus and to mine, peak memory, and that the blocks change nothing.

The lines are distinct and made of random words, the encoder is a static table of random vectors: what is measured is
the road, not a model. On some lines ours is compared with faiss's exact index (``flat``), in the same run, where that
is there.

    python benchmarks/mine.py --lines 1000000 --rows 5000 --output mine.json
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
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from cacse_trainer import SentenceEncoder, mine_hard_negatives
from cacse_trainer.encoding.sentence_transformers import list_modules
from cacse_trainer.evaluation.environment import environment
from cacse_trainer.files import write_json
from cacse_trainer.models.modeling_static import OURS, TOKENIZER, WEIGHTS
from cacse_trainer.models.pretrained import STATIC

WORDS = [f"{first}{second}" for first in "bcdfghjklmnprstvwz" for second in ("a", "e", "i", "o", "u", "an", "ol", "ir")]
WORDS_A_LINE, DIMS = 8, 64


def lines(count: int, seed: int = 0) -> Iterator[str]:
    """Lines of random words; the number at the end makes them distinct."""
    draw = random.Random(seed)
    for i in range(count):
        yield " ".join([*draw.choices(WORDS, k=WORDS_A_LINE), *str(i)])


def tiny_encoder(folder: Path) -> SentenceEncoder:
    """A static table of random vectors of 64 dimensions: the cheapest encoder there is."""
    tokens = {token: i for i, token in enumerate(["[UNK]", *WORDS, *"0123456789"])}
    backend = Tokenizer(models.WordLevel(tokens, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)])
    backend.save(str(folder / TOKENIZER))
    table = torch.randn(len(tokens), DIMS, generator=torch.Generator().manual_seed(0))
    save_file({OURS: table}, folder / WEIGHTS)
    list_modules(folder, {".": f"sentence_transformers.models.{STATIC}"}, 64)
    return SentenceEncoder(folder, device="cpu")


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
