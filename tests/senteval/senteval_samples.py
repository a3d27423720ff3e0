"""Small data in exactly the published formats for every task, and an encoder of random word vectors."""

import zlib
from pathlib import Path

import numpy as np

NAMES = ["dog", "cat", "man", "woman", "girl", "boy", "chef", "horse"]
GOOD = ["good", "great", "fine", "lovely", "superb"]
BAD = ["bad", "awful", "poor", "dreadful", "boring"]
VERBS = ["sees", "likes", "hears", "finds", "wants"]


def word_vector(word: str, dim: int = 24) -> np.ndarray:
    """A random vector that depends on the word only."""
    return np.random.RandomState(zlib.crc32(word.encode())).randn(dim).astype(np.float32)


def embed(batch: list[list[str]]) -> np.ndarray:
    """Mean of word vectors, (len(batch), dim); an empty sentence counts as a full stop."""
    return np.stack([np.mean([word_vector(w) for w in (tokens or ["."])], axis=0) for tokens in batch])


class Writer:
    """Writes one file of lines below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.random = np.random.RandomState(0)

    def write(self, path: str, lines: list[str], encoding: str = "utf-8", start: str = "") -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((start + "".join(line + "\n" for line in lines)).encode(encoding))

    def pick(self, words: list[str]) -> str:
        return words[self.random.randint(len(words))]

    def sentence(self, words: list[str] = GOOD) -> str:
        extra = " ".join(self.pick(NAMES) for _ in range(self.random.randint(4)))
        return f"the {self.pick(NAMES)} {self.pick(VERBS)} a {self.pick(words)} {self.pick(NAMES)} {extra} .".replace(
            "  ", " "
        )

    def scored_pair(self) -> tuple[str, str, float]:
        first = self.sentence()
        tokens = first.split()
        changed = self.random.randint(len(tokens) + 1)
        second = " ".join([self.pick(BAD) if i < changed else t for i, t in enumerate(tokens)])
        return first, second, round(5 * (1 - changed / len(tokens)), 3)


def _similarity(w: Writer) -> None:
    from senteval.sts import SUBSETS

    for year, subsets in SUBSETS.items():
        for subset in subsets:
            rows = [w.scored_pair() for _ in range(12)]
            empty = {3, 7} if year in ("STS15", "STS16") else set()
            folder = f"downstream/STS/{year}-en-test"
            w.write(f"{folder}/STS.input.{subset}.txt", [f"{a}\t{b}" for a, b, _ in rows])
            w.write(f"{folder}/STS.gs.{subset}.txt", ["" if i in empty else f"{s}" for i, (_, _, s) in enumerate(rows)])
    for part, extra in (("train", ""), ("dev", ""), ("test", "\thttp://a\thttp://b")):
        rows = [w.scored_pair() for _ in range(40)]
        lines = [f'main-news\tMSRpar\t2012\t{i:04d}\t{s:.3f}\t"{a}\t{b}{extra}' for i, (a, b, s) in enumerate(rows)]
        w.write(f"downstream/STS/STSBenchmark/sts-{part}.csv", lines)
    header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
    for part in ("train", "trial", "test_annotated"):
        rows = [w.scored_pair() for _ in range(60)]
        judge = ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]
        lines = [
            f"{i}\t{a}\t{b}\t{1 + s * 0.8:.1f}\t{judge[min(2, int(s // 1.7))]}" for i, (a, b, s) in enumerate(rows)
        ]
        w.write(f"downstream/SICK/SICK_{part}.txt", [header, *lines])


def _transfer(w: Writer) -> None:
    for folder, good, bad in (
        ("MR", "rt-polarity.pos", "rt-polarity.neg"),
        ("CR", "custrev.pos", "custrev.neg"),
        ("MPQA", "mpqa.pos", "mpqa.neg"),
        ("SUBJ", "subj.objective", "subj.subjective"),
    ):
        positive = [w.sentence(GOOD) for _ in range(60)]
        negative = [w.sentence(BAD) for _ in range(60)]
        if folder in ("CR", "MPQA"):
            positive[5], negative[7] = "", "caf\xe9"  # an empty sentence, a one-token row with a latin-1 letter
        w.write(f"downstream/{folder}/{good}", positive, "latin-1")
        w.write(f"downstream/{folder}/{bad}", negative, "latin-1")
    for part, count in (("train", 80), ("dev", 30), ("test", 31)):
        two = [(w.sentence(GOOD if i % 2 else BAD), i % 2) for i in range(count)]
        w.write(f"downstream/SST/binary/sentiment-{part}", [f"{s}\t{y}" for s, y in two])
        five = [(w.sentence([(BAD + GOOD)[2 * (i % 5)]]), i % 5) for i in range(count)]
        w.write(f"downstream/SST/fine/sentiment-{part}", [f"{y} {s}" for s, y in five])
        labels = ["entailment", "neutral", "contradiction"]
        w.write(f"downstream/SNLI/s1.{part}", [w.sentence() for _ in range(count)], "latin-1")
        w.write(
            f"downstream/SNLI/s2.{part}", [w.sentence([(BAD + GOOD)[3 * (i % 3)]]) for i in range(count)], "latin-1"
        )
        w.write(f"downstream/SNLI/labels.{part}", [labels[i % 3] for i in range(count)])
    kinds = ["ABBR:abb", "DESC:manner", "ENTY:cremat", "HUM:ind", "LOC:city", "NUM:dist"]
    for file, count in (("train_5500.label", 120), ("TREC_10.label", 30)):
        lines = [f"{kinds[i % 6]} What {w.sentence([(GOOD + BAD)[i % 6]])} \xf0 ?" for i in range(count)]
        w.write(f"downstream/TREC/{file}", lines, "latin-1")
    for part, count in (("train", 80), ("test", 30)):
        rows = [(i % 2, w.sentence(GOOD), w.sentence(GOOD if i % 2 else BAD)) for i in range(count)]
        lines = [f'{y}\t{i}\t{i + 1}\tHe said "{a}\t{b}' for i, (y, a, b) in enumerate(rows)]
        header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
        w.write(f"downstream/MRPC/msr_paraphrase_{part}.txt", [header, *lines], start="\ufeff")


def _probing(w: Writer) -> None:
    from senteval.transfer import PROBING_FILES

    labels = {"Length": "012345", "Depth": ["10", "5", "6", "7"], "Tense": ["PAST", "PRES"], "WordContent": GOOD + BAD}
    for name, file in PROBING_FILES.items():
        classes = list(labels.get(name, ["I", "O"]))
        lines = []
        for split, count in (("tr", 60), ("va", 20), ("te", 20)):
            for i in range(count):
                word = (GOOD + BAD)[i % len(classes)]
                lines.append(f"{split}\t{classes[i % len(classes)]}\t{w.sentence([word])}")
        w.write(f"probing/{file}", lines)


def write_all(root: Path) -> Path:
    """Every task's files below ``root``, a few dozen rows each."""
    writer = Writer(root)
    _similarity(writer)
    _transfer(writer)
    _probing(writer)
    return root
