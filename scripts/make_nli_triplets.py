"""SNLI and MNLI to triplets for supervised SimCSE: premise, entailed hypothesis, contradicting hypothesis.

    python scripts/make_nli_triplets.py snli_1.0_train.jsonl multinli_1.0_train.jsonl --output nli_triplets.csv
    python scripts/make_nli_triplets.py AllNLI.tsv.gz --output nli_triplets.csv

Files are SNLI's and MNLI's (jsonl) or sentence-transformers' AllNLI (tsv, of which the training part is read), plain or
packed by gzip.

Each entailed hypothesis of a premise is paired with one of its contradicting ones, in the order of the files,
beginning anew when they run out; premises without one of either kind are left out, as in the SimCSE release (275 601
triplets there). Only the standard library is used.
"""

import argparse
import csv
import gzip
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import cycle
from pathlib import Path
from typing import TextIO


def read_pairs(path: Path) -> Iterator[tuple[str, str, str]]:
    """Premise, hypothesis and label of each line; lines without an agreed label ("-") are passed over."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        records = table(file) if ".tsv" in path.suffixes else enumerate(file, start=1)
        for number, line in records:
            if isinstance(line, str) and not line.strip():
                continue
            try:
                record = json.loads(line) if isinstance(line, str) else line
                pair = record["sentence1"], record["sentence2"], record["label" if "label" in record else "gold_label"]
                premise, hypothesis = (" ".join(text.split()) for text in pair[:2])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                sys.exit(f"{path}, line {number}: no SNLI record ({error!r}); needed: sentence1, sentence2, gold_label")
            if premise and hypothesis and pair[2] != "-":
                yield premise, hypothesis, pair[2]


def table(file: TextIO) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of the training part of a tab-separated file, whose quotes are text, by the names in its first line."""
    for number, row in enumerate(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE), start=2):
        if row.get("split", "train") == "train":
            yield number, row


def triplets(pairs: Iterable[tuple[str, str, str]]) -> Iterator[tuple[str, str, str]]:
    """(premise, hypothesis, label) → (premise, entailed, contradicting), each triplet once."""
    entailed: dict[str, list[str]] = {}
    contradicting: dict[str, list[str]] = {}
    kinds = {"entailment": entailed, "contradiction": contradicting}
    for premise, hypothesis, label in pairs:
        if label in kinds:
            kinds[label].setdefault(premise, []).append(hypothesis)
    seen = set()
    for premise, positives in entailed.items():
        for triplet in zip(positives, cycle(contradicting.get(premise, [])), strict=False):
            if (premise, *triplet) not in seen:
                seen.add((premise, *triplet))
                yield premise, *triplet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="JSONL", help="training files of SNLI and MNLI")
    parser.add_argument("--output", type=Path, default=Path("nli_triplets.csv"))
    settings = parser.parse_args()
    for path in settings.files:
        if not path.is_file():
            sys.exit(f"{path}: no such file; get SNLI from nlp.stanford.edu/projects/snli, MNLI from its authors' page")
    count = 0
    with settings.output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("sent0", "sent1", "hard_neg"))
        for triplet in triplets(pair for path in settings.files for pair in read_pairs(path)):
            writer.writerow(triplet)
            count += 1
    print(f"{settings.output}: {count} triplets")


if __name__ == "__main__":
    main()
