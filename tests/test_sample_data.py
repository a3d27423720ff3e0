"""The sample of the quick start: the same bytes when made again, varied text, pairs graded over the whole range."""

import csv
import importlib.util
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "examples" / "sample"
SCRIPT = ROOT / "scripts" / "make_sample_data.py"


def normalise(sentence: str) -> str:
    return " ".join(re.findall(r"[\w']+", sentence.lower()))


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    return (SAMPLE / "sentences.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str, float]]:
    with (SAMPLE / "dev.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert rows[0] == ["sentence1", "sentence2", "score"]
    return [(first, second, float(score)) for first, second, score in rows[1:]]


def run_script(output_dir: Path, *options: str) -> None:
    subprocess.run([sys.executable, SCRIPT, "--output_dir", output_dir, *options], check=True, cwd=output_dir.parent)


def test_the_script_writes_the_shipped_bytes(tmp_path):
    run_script(tmp_path / "again")

    for name in ("handbook.csv", "handbook_dev.tsv", "handbook_test.tsv", "sentences.txt", "dev.tsv", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (SAMPLE / name).read_bytes(), name


def test_another_seed_gives_other_sentences(tmp_path, sentences):
    run_script(tmp_path / "other", "--seed", "8")

    other = (tmp_path / "other" / "sentences.txt").read_text(encoding="utf-8").splitlines()
    assert len(other) >= 4000
    assert len(set(other) & set(sentences)) < 0.5 * len(other)


def test_enough_sentences_all_distinct(sentences):
    assert len(sentences) >= 4000
    assert len({normalise(sentence) for sentence in sentences}) == len(sentences)


def test_sentences_are_well_formed(sentences, pairs):
    for sentence in sentences + [side for first, second, _ in pairs for side in (first, second)]:
        assert sentence == " ".join(sentence.split()), sentence
        assert not re.search(r"[\[\]{}|\t]| [,.;:?!]|[,.;:?!]{2}(?!\")|,\w", re.sub(r"\d,\d", "", sentence)), sentence
        assert re.match(r"[\"A-Z]", sentence) and re.search(r"[.?!]\"?$", sentence), sentence
        assert not re.search(r"\b(\w+) \1\b", sentence.replace("that that", "")), sentence
        assert not re.search(r"\b[Aa] [aeio]\w|\b[Aa]n [bcdfgjklmnpqrstvwxyz]\w", sentence), sentence


def test_sentences_are_varied(sentences):
    words = [normalise(sentence).split() for sentence in sentences]
    lengths = sorted(len(row) for row in words)
    openings = Counter(" ".join(row[:4]) for row in words)

    assert len({word for row in words for word in row}) >= 3500
    assert openings.most_common(1)[0][1] <= 0.005 * len(sentences)
    assert len(openings) >= 0.5 * len(sentences)
    # A batch is padded to its longest row, so lengths spread: short remarks as well as long periods.
    assert lengths[0] >= 3 and lengths[-1] >= 30
    assert lengths[len(lengths) // 10] <= 9 and lengths[-len(lengths) // 10] >= 16


def test_pairs_are_graded_over_the_whole_range(pairs):
    scores = [score for _, _, score in pairs]

    assert len(pairs) >= 400
    assert len({frozenset((normalise(first), normalise(second))) for first, second, _ in pairs}) == len(pairs)
    assert min(scores) == 0.0 and max(scores) == 5.0
    assert len(set(scores)) >= 20
    by_point = Counter(min(int(score), 4) for score in scores)
    assert all(by_point[point] >= 0.1 * len(pairs) for point in range(5)), by_point


def test_no_dev_sentence_is_in_the_training_text(sentences, pairs):
    text = {normalise(sentence) for sentence in sentences}

    assert not text & {normalise(side) for first, second, _ in pairs for side in (first, second)}


def test_the_score_of_an_event_pair_follows_from_what_differs(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.find_spec("sample_data.events")
    events = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(events)
    block = "\n".join(
        (
            "same: {who} cut {what}. | {what} was cut by {who}.",
            "other 2.0: {who} ate {what}.",
            "who 0.5: Ann / Bob",
            "what 1.5: ham / pie",
        )
    )

    class First:
        """Stands in for random.Random and takes the first of everything."""

        def choice(self, items):
            return items[0]

        def sample(self, items, count):
            return items[:count]

    pairs = events.make_pairs(block, First())[0]

    # Nothing differs: 5. One slot (the first by name, "what"): 5 - 1.5. Both: 5 - 1.5 - 0.5. The action: 5 - 2.
    assert pairs[0] == ("Ann cut ham.", "Ham was cut by Ann.", 5.0)
    assert pairs[2] == ("Ann cut ham.", "Pie was cut by Ann.", 3.5)
    assert pairs[4] == ("Ann cut ham.", "Pie was cut by Bob.", 3.0)
    assert pairs[5] == ("Ann cut ham.", "Ann ate ham.", 3.0)
    # Both and the action: 5 - 1.5 - 0.5 - 2, which is the floor of 1 at the same time.
    assert pairs[6] == ("Ann cut ham.", "Bob ate pie.", 1.0)


def test_the_handbooks_pairs_follow_from_it_and_do_not_stand_in_it():
    with (SAMPLE / "handbook.csv").open(encoding="utf-8", newline="") as file:
        entries = list(csv.DictReader(file))
    told = {normalise(entry["sentence"]) for entry in entries}
    words = set(" ".join(told).split()) - set(normalise(" ".join(entry["in_plain_words"] for entry in entries)).split())
    bodies = told | {normalise(entry["in_plain_words"]) for entry in entries}
    assert len(entries) == len(told) == 512 and len(bodies) == 1024
    seen: set[tuple[str, str]] = set()
    for name in ("handbook_dev.tsv", "handbook_test.tsv"):
        with (SAMPLE / name).open(encoding="utf-8", newline="") as file:
            pairs = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        assert Counter(pair["score"] for pair in pairs).keys() == {"0.0", "2.0", "5.0"} and len(pairs) == 270
        for pair in pairs:
            first, second = normalise(pair["sentence1"]), normalise(pair["sentence2"])
            assert first not in bodies and second not in bodies and (first, second) not in seen
            assert len(set(first.split()) & words) >= 1, first
            seen.add((first, second))
