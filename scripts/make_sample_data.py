"""Write the quick start's sample: training sentences and graded sentence pairs, the same bytes on every run.

    python scripts/make_sample_data.py --output_dir examples/sample

`handbook.csv` describes the words of a made-up island, which no model knows before it has read them, and
`handbook_dev.tsv` and `handbook_test.tsv` grade pairs of sentences that use them, see sample_data/handbook.py.
`sentences.txt` comes from hand-written sentence frames, of which each gives a few fillings that differ from each other.
`dev.tsv` joins pairs graded by hand, pairs of described events whose score follows from the parts of the meaning that
differ, and unrelated pairs. No dev sentence occurs in the training text. Only the standard library is used.
"""

import argparse
import csv
import io
import random
from pathlib import Path

from sample_data import events, handbook
from sample_data.engine import fill_frames, normalise

DATA = Path(__file__).parent / "sample_data"
FRAME_FILES = ("culture", "encyclopedia", "everyday", "home", "periods", "society", "world")
SENTENCES_PER_FRAME = 16
UNRELATED_PAIRS = 120
HANDBOOK_PAIRS = 180  # of each score, dev and test together

Pair = tuple[str, str, float]

README = """# Sample data of the quick start

Written by `scripts/make_sample_data.py` (run it again and the same bytes come out); made up, not collected.

| file | what |
|---|---|
| `handbook.csv` | {entries} sentences of a made-up island, `sentence`, and the same again, `in_plain_words` |
| `handbook_dev.tsv`, `handbook_test.tsv` | {handbook_pairs} scored pairs each, other sentences, the same words |
| `sentences.txt` | {sentences} English sentences, one a line: the unlabelled training text |
| `dev.tsv` | {pairs} sentence pairs with scores, under a header: `sentence1`, `sentence2`, `score` |

A score of 5 stands for the same meaning, 4 for a minor detail that differs, 3 for important information that differs,
2 for some shared details, 1 for the same topic, 0 for nothing in common.

The handbook's words are made up, so a model knows them only once it has read it: there a good encoder has something to
learn. No dev sentence occurs in the training text. The pairs tell whether training works; they are no benchmark.
Published figures come from STS-B and the other STS sets.
"""


def read_lines(name: str) -> list[str]:
    """The lines of a file in `sample_data/` without its comments."""
    return [line for line in (DATA / name).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]


def hand_graded_pairs() -> list[list[Pair]]:
    """The pairs graded by reading, one list per anchor and one list for each pair without anchor."""
    groups: list[list[Pair]] = []
    anchor = ""
    for line in read_lines("graded_pairs.txt"):
        mark, sentence = line.split(" ", 1)
        if mark == "=":
            anchor = sentence
            groups.append([])
        else:
            groups[-1].append((anchor, sentence, float(mark)))
    for line in read_lines("single_pairs.txt"):
        score, first, second = line.split(" | ")
        groups.append([(first, second, float(score))])
    return groups


def unrelated_pairs(groups: list[list[Pair]], count: int, rng: random.Random) -> list[Pair]:
    """Sentences of different groups, no words of which begin with the same four letters, so that 0 is safe to say."""
    pairs: list[Pair] = []
    while len(pairs) < count:
        one, other = rng.sample(groups, 2)
        first, second = rng.choice(one)[rng.randrange(2)], rng.choice(other)[rng.randrange(2)]
        words = [{word[:4] for word in normalise(sentence).split() if len(word) > 3} for sentence in (first, second)]
        if not words[0] & words[1]:
            pairs.append((first, second, 0.0))
    return pairs


def make_dev_pairs(rng: random.Random) -> list[Pair]:
    """All graded pairs in random order, each at most once, either sentence first."""
    groups = hand_graded_pairs() + events.make_pairs("\n".join(read_lines("events.txt")), rng)
    pairs = [pair for group in groups for pair in group] + unrelated_pairs(groups, UNRELATED_PAIRS, rng)
    unique: dict[frozenset[str], Pair] = {}
    for first, second, score in pairs:
        if rng.random() < 0.5:
            first, second = second, first
        unique.setdefault(frozenset((normalise(first), normalise(second))), (first, second, score))
    chosen = [pair for key, pair in unique.items() if len(key) == 2]
    rng.shuffle(chosen)
    return chosen


def make_sentences(dev_pairs: list[Pair], rng: random.Random) -> list[str]:
    """Distinct training sentences in random order, none of which is a dev sentence."""
    seen = {normalise(sentence) for first, second, _ in dev_pairs for sentence in (first, second)}
    sentences = []
    for name in FRAME_FILES:
        for sentence in fill_frames(read_lines(f"frames/{name}.txt"), SENTENCES_PER_FRAME, rng):
            if normalise(sentence) not in seen:
                seen.add(normalise(sentence))
                sentences.append(sentence)
    rng.shuffle(sentences)
    return sentences


def csv_text(entries: list[tuple[str, str]]) -> str:
    """Sentences and the same in plain words, under a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("sentence", "in_plain_words"), *entries])
    return text.getvalue()


def tsv_text(pairs: list[Pair]) -> str:
    """Graded pairs under a header."""
    rows = ["sentence1\tsentence2\tscore"] + [f"{first}\t{second}\t{score:.1f}" for first, second, score in pairs]
    return "\n".join(rows) + "\n"


def write_sample(output_dir: Path, seed: int) -> None:
    """Write the sample below `output_dir`."""
    dev_pairs = make_dev_pairs(random.Random(f"dev {seed}"))
    sentences = make_sentences(dev_pairs, random.Random(f"text {seed}"))
    told, kinds = handbook.read_handbook(read_lines("handbook.txt"))
    entries = handbook.make_entries(told, kinds, random.Random(f"handbook {seed}"))
    graded = handbook.make_pairs(kinds, HANDBOOK_PAIRS, random.Random(f"handbook pairs {seed}"))
    half = len(graded) // 2
    counts = {"sentences": len(sentences), "pairs": len(dev_pairs), "entries": len(entries), "handbook_pairs": half}
    contents = {
        "handbook.csv": csv_text(entries),
        "handbook_dev.tsv": tsv_text(graded[:half]),
        "handbook_test.tsv": tsv_text(graded[half:]),
        "sentences.txt": "\n".join(sentences) + "\n",
        "dev.tsv": tsv_text(dev_pairs),
        "README.md": README.format(**counts),
    }
    output_dir.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        (output_dir / name).write_bytes(text.encode("utf-8"))
    print(f"{output_dir}: {len(sentences)} sentences, {len(dev_pairs)} pairs")


def main() -> None:
    """Parse the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parents[1] / "examples" / "sample")
    parser.add_argument("--seed", type=int, default=7, help="another seed gives other fillings (default: %(default)s)")
    arguments = parser.parse_args()
    write_sample(arguments.output_dir, arguments.seed)


if __name__ == "__main__":
    main()
