"""The settings of a distillation: who learns from whom, and how (see arguments.py)."""

from argparse import ArgumentTypeError
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from cacse_trainer.settings import setting
from cacse_trainer.settings.command_line import number
from cacse_trainer.settings.precision import FLAG, HELP


class EncoderChoice:
    """One encoder of a weighted list: ``path=…,pooling=…,weight=…``, or a mapping of these, or a path alone.

    Args:
        given: text or mapping; pooling and weight may be left out (what the folder says, and 1).

    Raises:
        ArgumentTypeError: an unknown key, no path, or a weight that is no number.
    """

    def __init__(self, given: str | Mapping[str, Any]):
        if isinstance(given, str):
            text = given if "=" in given else f"path={given}"
            fields: dict[str, Any] = {key: value for key, _, value in (part.partition("=") for part in text.split(","))}
        else:
            fields = dict(given)
        unknown = set(fields) - {"path", "pooling", "weight"}
        if unknown or not fields.get("path"):
            raise ArgumentTypeError(f"an encoder of a list is path=…[,pooling=…][,weight=…], got {given!r}")
        self.path = str(fields["path"])
        self.pooling = None if fields.get("pooling") is None else str(fields["pooling"])
        try:
            self.weight = number(fields.get("weight", 1.0))
        except (TypeError, ValueError, ArgumentTypeError) as error:
            raise ArgumentTypeError(
                f"the weight of {self.path} must be a finite number, got {fields['weight']!r}"
            ) from error

    def __str__(self) -> str:
        pooling = f",pooling={self.pooling}" if self.pooling is not None else ""
        return f"path={self.path}{pooling},weight={self.weight:g}"

    __repr__ = __str__  # settings are compared by it


@dataclass
class RankingArguments:
    """Frozen teachers, and the weights of learning their ranking."""

    teachers: list[EncoderChoice] | None = setting(
        None, "Instead: a weighted list, path=…,pooling=…,weight=… each; tokenizers may differ."
    )
    teacher_bf16: str = setting("false", f"Run the teacher in bfloat16: {HELP}", **FLAG)
    teacher_cache: str | None = setting(
        None, "Folder for the teacher's vectors, computed once and reused. Default: computed at each step."
    )
    ranking_weight: float = setting(1.0, "Listnet, listmle: γ, weight of the ranking.")
    ranking_temperature: float = setting(0.05, "Listnet, listmle: τ₂, of the student's cosines.")
    teacher_temperature: float = setting(0.025, "Listnet: τ₃, of the teacher's cosines.")
    consistency_weight: float = setting(
        1.0, "Listnet, listmle: β, weight of the Jensen-Shannon divergence of the similarities of both views."
    )
    consistency_temperature: float = setting(0.05, "Listnet, listmle: τ₁, of both views' cosines.")


@dataclass
class DistillationArguments(RankingArguments):
    """Who learns from whom, and how."""

    _argument_group_name: ClassVar[str] = "distillation"

    student: str | None = setting(None, "The encoder that learns: a folder, a hub id, or package:NAME/FOLDER.")
    teacher: str | None = setting(
        None, "The teacher: a CACSE checkpoint, a folder with tower_a/ and tower_b/, an ensemble, or any encoder."
    )
    objective: str = setting(
        "vectors",
        "vectors: the student learns the teacher's vectors; listnet, listmle: its ranking of the batch's sentences, by "
        "InfoNCE + β·consistency + γ·ranking. Then teachers are a weighted mean of cosines, of any width.",
        choices=["vectors", "listnet", "listmle"],
    )
    pooling: str | None = setting(
        None, "The student's: cls (raw), mean, max or last_token. Default: what its folder states, else cls."
    )
    dropout: float | None = setting(None, "Every dropout of the student. Default: what its config says.")
    project_to_teacher: bool = setting(
        False, "Vectors: where the widths differ, learn a projection of the student for the loss."
    )
    contrastive_weight: float = setting(
        0.01, "Vectors: w in w·NT-Xent + (1-w)·mean|student - teacher| (published: 0.01; with UC 0.1)."
    )
    contrastive_temperature: float = setting(0.05, "τ of the NT-Xent part; listnet, listmle: of InfoNCE.")
    mlp_only_train: bool = setting(
        False, "Listnet, listmle: with pooling cls, compare what a head (dense, tanh) makes of it, in training only."
    )
    attn_implementation: str | None = setting(None, "sdpa, eager or flash_attention_2. Default: transformers' choice.")
