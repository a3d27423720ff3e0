"""A frozen teacher's vectors into one encoder: settings → data → teacher and student → trainer → train → export."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cacse_trainer.encoding.embedder import Embedder
from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.models.modeling_ensemble import EnsembleModel
from cacse_trainer.models.modeling_similarity import SimilarityEnsemble
from cacse_trainer.models.modeling_student import StudentModel
from cacse_trainer.models.pretrained import load_config
from cacse_trainer.runs.baseline import own_pooling, stated_pooling, take_stated_prompts
from cacse_trainer.runs.build import (
    check_fit,
    check_pooling_of,
    check_start,
    check_weights,
    load_encoders,
    load_teachers_of_similarities,
    load_tokenizer,
)
from cacse_trainer.runs.methods import settle
from cacse_trainer.runs.run import RunResult, TrainingRun
from cacse_trainer.runs.scoring import score_only
from cacse_trainer.settings.arguments import CacseTrainingArguments, DataArguments, ModelArguments
from cacse_trainer.settings.distillation import DistillationArguments, EncoderChoice, RankingArguments
from cacse_trainer.settings.precision import resolve_bf16, spelled
from cacse_trainer.settings.recipes import Parsed
from cacse_trainer.settings.resources import public_name, resolve_resource
from cacse_trainer.training.distillation import DistillationTrainer, check_widths
from cacse_trainer.training.ranking import Ranking, RankingTerm
from cacse_trainer.training.teacher_cache import cached_teacher_embeddings

logger = logging.getLogger(__name__)

Teacher = EnsembleModel | SimilarityEnsemble


def distill(
    settings: DistillationArguments,
    data_args: DataArguments,
    args: CacseTrainingArguments,
    parsed: Parsed | None = None,
) -> RunResult:
    """What ``cacse-trainer distill`` does; see `train` for the arguments and the errors."""
    parsed = parsed or Parsed((settings, data_args, args))
    if not args.do_train:
        return score_only(parsed, [settings.student], settings.pooling)
    settle(
        parsed,
        {
            "mask_probability": "mask_probability has no effect with distillation, which masks nothing; leave it out",
            "keep_file": "keep_file has no effect with distillation; it belongs to keep_weight of train: leave it out",
        },
    )
    choices = teacher_choices(settings, parsed)
    if settings.student is None:
        raise UserError("no student: give an encoder to train, in a recipe or as --student FOLDER")
    settings.pooling = settings.pooling or stated_pooling(settings.student) or own_pooling(settings.student)
    ranking = None if settings.objective == "vectors" else ranking_of(settings.objective, settings)
    settle(parsed, unused_settings(settings), ("objective", "pooling"))
    spelled(settings.teacher_bf16, "teacher_bf16")
    check_cache(settings, data_args, args)
    training = TrainingRun(parsed)
    bf16 = teacher_precision(settings, training)
    columns = training.data_facts.get("columns", [])
    if len(columns) > 1:
        raise UserError(
            f"distillation reads single sentences, got the columns {', '.join(columns)}; name one with text_columns"
        )
    teacher, teacher_tokenizer = (load_encoders if ranking is None else load_teachers_of_similarities)(choices)
    student, tokenizer = build_student(settings, settings.student, teacher)
    take_stated_prompts(data_args, [settings.student])
    for model in (teacher, student):
        check_weights(model)
    if args.export:
        student.check_exportable()
    check_fit(student, tokenizer, data_args.max_seq_length)
    vectors = cached_vectors(settings, training, teacher, teacher_tokenizer, bf16)
    trainer = DistillationTrainer(
        model=student,
        teacher=teacher,
        args=args,
        train_dataset=training.train_dataset,
        eval_dataset=training.dev_sets or None,
        processing_class=tokenizer,
        teacher_tokenizer=teacher_tokenizer,
        teacher_bf16=bf16,
        teacher_vectors=vectors,
        contrastive_weight=settings.contrastive_weight,
        temperature=settings.contrastive_temperature,
        ranking=ranking,
        max_seq_length=data_args.max_seq_length,
        eval_max_seq_length=data_args.eval_max_seq_length,
        query_prompt=data_args.query_prompt or "",
        document_prompt=data_args.document_prompt or "",
    )
    facts = {} if args.check else describe_teacher(choices, trainer)
    return training.execute(trainer, [settings.student], {"teacher": facts})


def ranking_of(kind: str, settings: RankingArguments) -> Ranking:
    """The ranking that the settings ask for.

    Raises:
        UserError: a number is out of range.
    """
    return Ranking(
        kind,
        settings.ranking_weight,
        settings.ranking_temperature,
        settings.teacher_temperature,
        settings.consistency_weight,
        settings.consistency_temperature,
    )


TEACHER_IN_BF16 = "teacher_in_bf16"
"""In a checkpoint's record: what ``teacher_bf16`` came to."""


def teacher_precision(settings: RankingArguments, training: TrainingRun) -> bool:
    """What ``teacher_bf16`` comes to in a run, for its record: a run that goes on keeps what ``auto`` chose."""
    on_cpu, asked, before = training.args.device.type == "cpu", settings.teacher_bf16, training.before
    kept = on_cpu and spelled(asked, "teacher_bf16") == "auto" and TEACHER_IN_BF16 in before
    bf16 = bool(before[TEACHER_IN_BF16]) if kept else resolve_bf16(asked, "teacher_bf16", use_cpu=on_cpu)
    training.chosen[TEACHER_IN_BF16] = bf16
    return bf16


RANKING = ("ranking_weight", "ranking_temperature", "consistency_weight", "consistency_temperature", "mlp_only_train")
READ_BY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("contrastive_weight", "project_to_teacher"), ("vectors",)),
    **dict.fromkeys(RANKING, ("listnet", "listmle")),
    "teacher_temperature": ("listnet",),
}
"""Settings of some objectives only."""


def unused_settings(settings: DistillationArguments) -> dict[str, str]:
    """Every setting that nothing would read, and what to say of it."""
    chosen = settings.objective
    unused = {
        name: f"{name} has no effect with objective {chosen}; it belongs to {' and '.join(readers)}: leave it out"
        for name, readers in READ_BY.items()
        if chosen not in readers
    }
    if settings.pooling != "cls":
        wrong = f"mlp_only_train has no effect with pooling {settings.pooling}: only cls has a head on top"
        unused.setdefault("mlp_only_train", wrong)
    return unused


def teacher_choices(settings: DistillationArguments, parsed: Parsed) -> list[EncoderChoice]:
    """The teacher's encoders with their weights; the one or the list that a flag gives replaces the recipe's.

    Raises:
        UserError: neither a teacher nor a list of them, or both.
    """
    both = "give either teacher (one) or teachers (a weighted list), not both"
    for name, other in (("teacher", "teachers"), ("teachers", "teacher")):
        if name in parsed.flags:
            settle(parsed, {other: both}, [name])
    if settings.teachers and settings.teacher is not None:
        raise UserError(both)
    if settings.teachers:
        return settings.teachers
    if settings.teacher is None:
        raise UserError("no teacher: give teacher or teachers, in a recipe or as --teacher FOLDER")
    return [EncoderChoice({"path": settings.teacher})]


def check_cache(settings: RankingArguments, data_args: DataArguments, args: CacseTrainingArguments) -> None:
    """Refuse a cache of vectors where it cannot be used, or would be deleted.

    Raises:
        UserError: the text is a stream, or the cache lies in the output folder.
    """
    if settings.teacher_cache is None:
        return
    if data_args.streaming:
        raise UserError("teacher_cache needs a training text that is no stream; drop one of the two")
    if Path(str(args.output_dir)).resolve() in (Path(settings.teacher_cache) / "any").resolve().parents:
        raise UserError(f"teacher_cache {settings.teacher_cache} lies in output_dir, which a new run clears; move it")


def cached_vectors(
    settings: RankingArguments, training: TrainingRun, teacher: Teacher, tokenizer: Any, bf16: bool
) -> np.ndarray | None:
    """The teacher's vectors of the training text, where they are to be kept; else None."""
    args = training.args
    if settings.teacher_cache is None or args.check:
        return None
    teacher.eval().to(args.device)
    dtype = torch.bfloat16 if bf16 else None
    limit = min(training.data_args.max_seq_length, tokenizer.model_max_length)
    return cached_teacher_embeddings(
        settings.teacher_cache,
        teacher,
        Embedder(teacher.embed, tokenizer, limit, args.device, dtype),
        training.train_dataset,  # type: ignore[arg-type]  # no stream: see check_cache
        show_progress_bar=not args.disable_tqdm,
    )


def build_ranking_term(settings: ModelArguments, training: TrainingRun) -> RankingTerm | None:
    """The teachers whose ranking is learned beside another loss; None: the settings name none.

    Raises:
        UserError: one cannot be read, a number is out of range, or the text is no single sentences.
    """
    if not settings.teachers:
        return None
    args, data_args = training.args, training.data_args
    ranking = ranking_of(settings.ranking_loss, settings)
    columns = training.data_facts.get("columns", [])
    if len(columns) > 1:
        raise UserError(
            f"teachers rank single sentences, got the columns {', '.join(columns)}; name one with text_columns, or "
            "leave teachers out"
        )
    bf16 = teacher_precision(settings, training)
    check_cache(settings, data_args, args)
    with torch.random.fork_rng(devices=[]):  # weights that a checkpoint lacks are drawn: not from the run's seed
        teacher, tokenizer = load_teachers_of_similarities(settings.teachers)
    check_weights(teacher)
    vectors = cached_vectors(settings, training, teacher, tokenizer, bf16)
    return RankingTerm(ranking, teacher, tokenizer, args.device, data_args.max_seq_length, bf16, vectors)


def build_student(settings: DistillationArguments, encoder: str, teacher: Teacher) -> tuple[StudentModel, Any]:
    """The student and its tokenizer.

    Raises:
        UserError: it cannot be read, or is not of the teacher's width and no projection is asked for.
    """
    check_start(encoder, "student")
    path = resolve_resource(encoder)
    names = ("pooling", "dropout", "mlp_only_train", "attn_implementation")
    common: Any = {name: getattr(settings, name) for name in names}
    with user_errors(f"student {encoder}"):
        check_pooling_of(encoder, load_config(path), str(settings.pooling))
        student = StudentModel.from_encoder(path, **common)
        if settings.project_to_teacher and student.config.hidden_size != teacher.config.hidden_size:
            student = StudentModel.from_encoder(path, teacher_size=teacher.config.hidden_size, **common)
    if settings.objective == "vectors":
        check_widths(student, teacher)
    return student, load_tokenizer(path)


def public_choices(choices: Sequence[EncoderChoice]) -> list[str]:
    """Encoders of a list, as they may be told to others."""
    return [str(EncoderChoice({**vars(choice), "path": public_name(choice.path)})) for choice in choices]


def describe_teacher(choices: Sequence[EncoderChoice], trainer: DistillationTrainer) -> dict[str, Any]:
    """For the report: the teacher's encoders, and its scores on the dev sets."""
    encoders = public_choices(choices)
    scores = trainer.score_teacher() if trainer.eval_dataset is not None else {}
    logger.info(
        "teacher: %s%s", " + ".join(encoders), "".join(f"; {name} {score:.2f}" for name, score in scores.items())
    )
    return {"encoders": encoders, "scores": scores}
