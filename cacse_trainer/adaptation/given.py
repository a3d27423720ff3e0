"""Rows that the text's structure does not give: a user's own pairs, translations there and back, questions."""

import random
from pathlib import Path

from cacse_trainer.adaptation.parts import Parts
from cacse_trainer.adaptation.plan import QUESTIONS, ROUND_TRIP
from cacse_trainer.adaptation.questions import write_questions
from cacse_trainer.data import load_sentences
from cacse_trainer.data.round_trip import write_pairs
from cacse_trainer.data.structure import OWN, Row
from cacse_trainer.errors import UserError
from cacse_trainer.models.translation import Translator
from cacse_trainer.settings.adaptation import AdaptArguments
from cacse_trainer.settings.arguments import CacseTrainingArguments
from cacse_trainer.settings.resources import resolve_resource


def given_kinds(settings: AdaptArguments) -> list[str]:
    """The kinds of such rows that there will be."""
    asked = {"pairs": settings.pairs_file, "questions": settings.question_writer, "round_trip": settings.there}
    return [kind for kind, source in asked.items() if source is not None]


def given_rows(
    settings: AdaptArguments, parts: Parts, folder: Path, args: CacseTrainingArguments
) -> dict[str, list[Row]]:
    """Rows that the text's structure does not give: a user's own pairs, translations, a generator's questions.

    With ``check`` no model writes any.

    Raises:
        UserError: a file or a model that cannot be read.
    """
    found = {} if settings.pairs_file is None else {"pairs": own_pairs(settings.pairs_file)}
    if args.check:
        return {kind: found.get(kind, []) for kind in given_kinds(settings)}
    shown = not args.disable_tqdm
    if settings.question_writer is not None:
        found["questions"] = write_questions(
            parts.train,
            folder / QUESTIONS,
            writer=settings.question_writer,
            model=settings.question_model,
            prompt=settings.question_prompt,
            count=settings.questions,
            seed=args.seed,
            device=args.device,
            shown=shown,
        )
    if settings.there is not None and settings.back is not None:
        found["round_trip"] = translated(parts, (settings.there, settings.back), folder, settings.questions, args)
    return found


def translated(
    parts: Parts, models: tuple[str, str], folder: Path, count: int, args: CacseTrainingArguments
) -> list[Row]:
    """Sentences of the text with what comes back from another language."""
    sentences = sorted({sentence for passage in parts.train for sentence in passage.sentences})
    chosen = random.Random(f"{args.seed} round trip").sample(sentences, min(count, len(sentences)))
    if not (folder / ROUND_TRIP).is_file():
        there, back = (Translator(resolve_resource(name), str(args.device)) for name in models)
        named = {"there": models[0], "back": models[1]}
        shown = not args.disable_tqdm
        write_pairs(chosen, there, back, folder / ROUND_TRIP, settings=named, show_progress_bar=shown)
    rows = load_sentences(str(folder / ROUND_TRIP))
    return [Row(row["anchor"], row["positive"], "round_trip", OWN) for row in rows]


def own_pairs(path: str) -> list[Row]:
    """A user's own pairs.

    Raises:
        UserError: the file is none of pairs.
    """
    pairs = load_sentences(resolve_resource(path))
    if pairs.column_names != ["anchor", "positive"]:
        found = ", ".join(pairs.column_names)
        raise UserError(f"pairs_file {path}: has the columns {found}; give anchor and positive")
    return [Row(row["anchor"], row["positive"], "pairs", OWN) for row in pairs]
