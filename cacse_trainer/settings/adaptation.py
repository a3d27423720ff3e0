"""The settings of an adaptation to one's own text: what is read, which rows, for how long, judged by what."""

from argparse import ArgumentTypeError
from dataclasses import dataclass
from math import inf
from typing import ClassVar

from cacse_trainer.settings import setting
from cacse_trainer.settings.command_line import number


def share(word: str) -> tuple[str, float]:
    """``KIND=NUMBER``, read.

    Raises:
        ValueError: it is none.
    """
    name, _, value = word.partition("=")
    try:
        found = number(value)
    except (ValueError, ArgumentTypeError):
        found = -1.0
    if not name or found < 0:
        raise ValueError(f"rows: a share is KIND=NUMBER, such as title=1 or cloze=0.5, got {word!r}")
    return name, found


@dataclass
class AdaptArguments:
    """What is read, which rows are made of it, and what judges the result."""

    _argument_group_name: ClassVar[str] = "adaptation"

    text: list[str] | None = setting(
        None,
        "Your text: folders or files (txt, md, html, pdf, docx: a document each; jsonl, csv, tsv, parquet: one a row), "
        "or names of Hugging Face data sets.",
    )
    budget: float | None = setting(
        None, "Minutes for all of it, on this machine: they tell the steps. Default: 30, unless max_steps is given."
    )
    title_column: str | None = setting(None, "Of tables: the title's column. Default: known names (title, …).")
    body_column: str | None = setting(None, "Of tables: the text's column. Default: known names (body, text, …).")
    txt: str = setting(
        "auto",
        "What is a document in a txt file that is named itself: file, blank (empty lines part them), line, or auto: "
        "lines where there is no empty one, else the file.",
        choices=["auto", "file", "blank", "line"],
    )
    near_duplicates: float | None = setting(
        None,
        "Leave out documents that share this much (Jaccard, of word triples: 0.8) with an earlier one. Default: equal "
        "ones only.",
    )
    passage_words: int = setting(100, "Long texts are cut into passages of at most so many words.")
    rows: list[str] | None = setting(
        None,
        "Kinds of rows with their shares, title=1 heading=1 cloze=1 neighbour=0 single=0 questions=0 … Default: "
        "those of the text's own structure.",
    )
    pairs_file: str | None = setting(
        None, "Pairs of your own (anchor, positive), for rows of kind pairs: of `cacse-trainer pairs`, clicks, …"
    )
    question_writer: str | None = setting(
        None,
        "Writes questions that passages answer, for rows of kind questions: a causal language model (folder, hub id), "
        "or the URL of an OpenAI-compatible server (http://localhost:8000/v1).",
    )
    question_model: str | None = setting(None, "The model's name on that server.")
    question_prompt: str | None = setting(None, "A file with the prompt; {passage} stands for the passage.")
    questions: int = setting(2000, "So many passages get a question, and so many sentences are translated.")
    there: str | None = setting(
        None, "A translation model (folder, hub id) into another language, for rows of kind round_trip, with back."
    )
    back: str | None = setting(None, "The one back.")
    held_out: int = setting(
        1000,
        "The most documents in the part that judges; half as many in the one that chooses; a tenth of all at most. A "
        "small budget has smaller parts.",
    )
    distractors: int = setting(
        4000, "Passages of other documents among which the part that judges is searched; a quarter in the other one."
    )
    dev_queries: list[str] | None = setting(
        None,
        "Your own queries with their documents instead of the made-up ones, to choose by: a file of (query, document), "
        "or a BEIR-like folder. Without test_queries a half of them judges.",
    )
    test_queries: list[str] | None = setting(None, "The same, to judge by.")
    general_text: str = setting(
        "sample:sentences.txt",
        "General sentences, one a line, in the start's language: how far their similarities change is watched.",
    )
    batch_neighbours: int | None = setting(
        None,
        "Rows that stand together in a batch, their anchors near by the start: each other's hard negatives, at no "
        "cost; 1: batches are random. Default: 32, and 1 where all rows are made of sentences alone.",
    )
    sentence_learning_rate: float = setting(
        2e-5,
        "The most that the learning rate is where all rows are made of sentences alone, as of a text without titles "
        "and headings; learning_rate as a flag goes before it.",
    )
    mined_negatives: int = setting(0, "Hard negatives a row, mined by the start among the passages; 0: none.")
    cross_encoder: str | None = setting(
        None,
        "Judges the mined negatives: a classifier with one label (folder, hub id); what it scores above the positive "
        "is left out. With objective margin_mse its scores of all rows are learned.",
    )
    shares: list[float] | None = setting(
        None,
        "Shares of the trained weights in their mean with the start's that are tried on the dev part: default 0.5 "
        "0.75 1.",
    )
    onnx: bool = setting(False, "Write the encoder as ONNX, too, in float32 and int8, and measure it.")
    static: bool = setting(False, "Write a static table of the encoder, too, and measure it (extra: static).")

    def __post_init__(self) -> None:
        if self.budget is not None and not 0 < self.budget < inf:
            raise ValueError(f"budget must be above 0, in minutes, got {self.budget}")
        lowest = {"passage_words": 5, "held_out": 20, "distractors": 0, "mined_negatives": 0}
        lowest |= {"questions": 1, "batch_neighbours": 1}
        for name, least in lowest.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not 0 < self.sentence_learning_rate < inf:
            raise ValueError(f"sentence_learning_rate must be above 0, got {self.sentence_learning_rate}")
        if (self.there is None) != (self.back is None):
            raise ValueError("there and back are two translation models: give both, or none")
        if self.cross_encoder is not None and self.mined_negatives == 0:
            raise ValueError("cross_encoder judges mined negatives: give mined_negatives, too")
        if self.question_writer is None and (self.question_model or self.question_prompt):
            raise ValueError("question_model and question_prompt are the question_writer's: name that, too")
        self.row_shares()
        for value in self.shares or []:
            if not 0 < value <= 1:
                raise ValueError(f"shares must be above 0 and at most 1, got {value}")

    def row_shares(self) -> dict[str, float] | None:
        """``rows`` by kind; None: not given."""
        return None if self.rows is None else dict(map(share, self.rows))
