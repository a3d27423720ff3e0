"""Readers of the published file formats; a sentence is the list of its white-space separated tokens.

No CSV quoting anywhere (a default csv reader silently joins rows). Encodings and line splitting are those of the
published figures: the binary tasks, TREC and SNLI are latin-1 read with ``splitlines``, everything else is UTF-8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from senteval.errors import DataFormatError

Tokens = list[str]
Pairs = tuple[list[Tokens], list[Tokens], list[float]]  # first sentences, second sentences, scores
Value = TypeVar("Value")

TREC_LABELS = {"ABBR": 0, "DESC": 1, "ENTY": 2, "HUM": 3, "LOC": 4, "NUM": 5}
SICK_LABELS = {"CONTRADICTION": 0, "NEUTRAL": 1, "ENTAILMENT": 2}
SNLI_LABELS = {"entailment": 0, "neutral": 1, "contradiction": 2}
PROBING_SPLITS = {"tr": "train", "va": "dev", "te": "test"}


def utf8_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends, split at line ends only (a sentence may hold other separators)."""
    with path.open(encoding="utf-8") as stream:
        try:
            for number, line in enumerate(stream, start=1):
                yield number, line.rstrip("\n")
        except UnicodeDecodeError as error:
            raise DataFormatError(f"{path}: not UTF-8 ({error})") from error


def latin1_lines(path: Path) -> list[str]:
    """All lines by ``str.splitlines``."""
    return path.read_text(encoding="latin-1").splitlines()


def parse(path: Path, number: int, line: str, reader: Callable[[str], Value], form: str) -> Value:
    """``reader(line)``, with a failure told as file, line and expected form."""
    try:
        return reader(line)
    except (IndexError, KeyError, ValueError) as error:
        raise DataFormatError(f"{path}, line {number}: expected {form}, found {line[:100]!r}") from error


def rows(path: Path, reader: Callable[[str], Value], form: str, skip: int = 0) -> list[Value]:
    """Every non-empty line of a UTF-8 file after the first ``skip``, through ``reader``."""
    return [
        parse(path, number, line, reader, form) for number, line in utf8_lines(path) if number > skip and line.strip()
    ]


def not_empty(items: list[Value], path: Path) -> list[Value]:
    """The items, or an error if the file held none."""
    if not items:
        raise DataFormatError(f"{path}: no rows")
    return items


def columns(
    first: int, second: int, value: Callable[[list[str]], Value]
) -> Callable[[str], tuple[Tokens, Tokens, Value]]:
    """A reader of tab-separated lines: two sentence columns and a value made of the cells."""

    def read(line: str) -> tuple[Tokens, Tokens, Value]:
        cells = line.split("\t")
        return cells[first].split(), cells[second].split(), value(cells)

    return read


def sts_subset(folder: Path, subset: str) -> Pairs:
    """``STS.input.<subset>.txt`` beside ``STS.gs.<subset>.txt``; pairs with an empty gold line are unscored: dropped.

    Sorted by (tokens of the first, tokens of the second, score), stably, as published runs batch them.
    """
    inputs, gold = folder / f"STS.input.{subset}.txt", folder / f"STS.gs.{subset}.txt"
    sentences = list(utf8_lines(inputs))
    scores = list(utf8_lines(gold))
    if len(sentences) != len(scores):
        raise DataFormatError(f"{inputs} has {len(sentences)} lines, {gold} has {len(scores)}")
    read_pair = columns(0, 1, lambda cells: None)
    triples = []
    for (number, line), (_, score) in zip(sentences, scores, strict=True):
        if score.strip():
            first, second, _ = parse(inputs, number, line, read_pair, "sentence TAB sentence")
            triples.append((first, second, parse(gold, number, score, float, "a score")))
    not_empty(triples, gold)
    triples.sort(key=lambda row: (len(row[0]), len(row[1]), row[2]))
    return [a for a, _, _ in triples], [b for _, b, _ in triples], [s for _, _, s in triples]


def sts_benchmark(path: Path) -> Pairs:
    """``sts-{train,dev,test}.csv``: 7 or 9 tab-separated columns, score in column 4, sentences in 5 and 6 (from 0)."""
    reader = columns(5, 6, lambda cells: float(cells[4]))
    found = not_empty(rows(path, reader, "7 tab-separated columns with a score in the fifth"), path)
    return [a for a, _, _ in found], [b for _, b, _ in found], [s for _, _, s in found]


def sick(path: Path) -> tuple[list[Tokens], list[Tokens], list[float], list[int]]:
    """``SICK_*.txt``: header, then id, sentence A, sentence B, relatedness, judgement."""
    reader = columns(1, 2, lambda cells: (float(cells[3]), SICK_LABELS[cells[4].strip()]))
    found = rows(path, reader, "id, sentence, sentence, score, judgement between tabs", skip=1)
    not_empty(found, path)
    return [a for a, _, _ in found], [b for _, b, _ in found], [v[0] for _, _, v in found], [v[1] for _, _, v in found]


def mrpc(path: Path) -> tuple[list[Tokens], list[Tokens], list[int]]:
    """``msr_paraphrase_*.txt``: header (with a byte order mark), then label, id, id, sentence, sentence."""
    reader = columns(3, 4, lambda cells: int(cells[0]))
    found = not_empty(rows(path, reader, "label, id, id, sentence, sentence between tabs", skip=1), path)
    return [a for a, _, _ in found], [b for _, b, _ in found], [y for _, _, y in found]


def plain_sentences(path: Path) -> list[Tokens]:
    """One sentence a line, latin-1; an empty line is an empty sentence."""
    return [line.split() for line in not_empty(latin1_lines(path), path)]


def trec(path: Path) -> tuple[list[Tokens], list[int]]:
    """``COARSE:fine question`` a line, latin-1; the label is the coarse class."""

    def read(line: str) -> tuple[Tokens, int]:
        label, question = line.strip().split(":", 1)
        return question.split()[1:], TREC_LABELS[label]

    lines = not_empty(latin1_lines(path), path)
    found = [parse(path, n, line, read, "CLASS:subclass question") for n, line in enumerate(lines, start=1)]
    return [x for x, _ in found], [y for _, y in found]


def sst(path: Path, classes: int) -> tuple[list[Tokens], list[int]]:
    """SST: ``sentence TAB label`` for two classes, ``label sentence`` for five."""

    def read(line: str) -> tuple[Tokens, int]:
        if classes == 2:
            sentence, label = line.rsplit("\t", 1)
        else:
            label, _, sentence = line.strip().partition(" ")
        if not 0 <= int(label) < classes:
            raise ValueError(label)
        return sentence.split(), int(label)

    form = "sentence TAB label" if classes == 2 else "label sentence"
    found = not_empty(rows(path, read, f"{form} with labels 0 to {classes - 1}"), path)
    return [x for x, _ in found], [y for _, y in found]


def snli(folder: Path, split: str) -> tuple[list[Tokens], list[Tokens], list[int]]:
    """``s1.<split>``, ``s2.<split>``, ``labels.<split>``, line by line; tokens end at ASCII white space only."""

    def sentences(column: str) -> list[Tokens]:
        path = folder / f"{column}.{split}"
        return [[word.decode() for word in line.encode().split()] for line in not_empty(latin1_lines(path), path)]

    first, second = sentences("s1"), sentences("s2")
    path = folder / f"labels.{split}"
    form = "entailment, neutral or contradiction"
    labels = [parse(path, n, line, lambda s: SNLI_LABELS[s.strip()], form) for n, line in utf8_lines(path)]
    if not len(first) == len(second) == len(labels):
        raise DataFormatError(f"{folder}: {split} has {len(first)}, {len(second)} sentences and {len(labels)} labels")
    return first, second, labels


def probing(path: Path) -> dict[str, tuple[list[Tokens], list[int]]]:
    """``tr|va|te TAB label TAB sentence`` a line; labels are numbered in their sorted order in the training part."""

    def read(line: str) -> tuple[str, str, Tokens]:
        cells = line.rstrip().split("\t")
        if len(cells) < 3:
            raise ValueError(line)
        return PROBING_SPLITS[cells[0]], cells[1], cells[-1].split()

    found = rows(path, read, "tr, va or te, then label and sentence, between tabs")
    number = {label: index for index, label in enumerate(sorted({y for split, y, _ in found if split == "train"}))}
    parts: dict[str, tuple[list[Tokens], list[int]]] = {split: ([], []) for split in PROBING_SPLITS.values()}
    for split, label, tokens in found:
        if label not in number:
            raise DataFormatError(f"{path}: label {label!r} of the {split} part does not occur in training")
        parts[split][0].append(tokens)
        parts[split][1].append(number[label])
    for split, (sentences, _) in parts.items():
        if not sentences:
            raise DataFormatError(f"{path}: no rows of the {split} part")
    return parts
