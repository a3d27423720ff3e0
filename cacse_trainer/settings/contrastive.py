"""Settings of a single tower around its objective: more negatives and fewer false ones, teachers, and Matryoshka."""

from dataclasses import dataclass
from typing import ClassVar

from cacse_trainer.settings import setting
from cacse_trainer.settings.distillation import EncoderChoice, RankingArguments


@dataclass
class ContrastiveArguments(RankingArguments):
    """What is added to an objective, or taken from it; for a model given by ``model``."""

    _argument_group_name: ClassVar[str] = "model"

    guide: str | None = setting(
        None,
        "info_nce: an encoder, read as its folder states, that tells false negatives: what it finds as close to an "
        "anchor as the positive is no negative. A folder or hub id, or start: a frozen copy of the start.",
    )
    guide_margin: float = setting(
        0.0, "With guide: a candidate is left out from so much under the positive's similarity on."
    )
    guide_margin_type: str = setting(
        "absolute",
        "With guide: absolute, the margin is a difference of cosines, or relative, a share of the positive's.",
        choices=["absolute", "relative"],
    )
    within_view_negatives: bool = setting(
        False, "info_nce: the anchors and the positives of other rows are compared with their own kind, too (GIST)."
    )
    keep_weight: float = setting(
        0.0,
        "Not forgetting: weight of the mean squared change of cosines between general sentences (keep_file), against "
        "the start's.",
    )
    teachers: list[EncoderChoice] | None = setting(
        None,
        "Ranking distillation beside the objective, on single sentences (RankCSE): encoders whose order of a batch's "
        "sentences is learned, path=…,pooling=…,weight=… each.",
    )
    ranking_loss: str = setting("listnet", "With teachers: listnet or listmle.", choices=["listnet", "listmle"])
    tsdae_layers: int | None = setting(
        None,
        "TSDAE: layers of the decoder that rebuilds each sentence from the vector of what is left of it. Given, "
        "TSDAE is trained.",
    )
    tsdae_deletion: float = setting(0.6, "TSDAE: share of the words that are deleted before a sentence is encoded.")
    matryoshka_dims: list[int] | None = setting(
        None, "Matryoshka: the objective is summed over the first so many coordinates, such as 384 256 128 64."
    )
    matryoshka_weights: list[float] | None = setting(
        None, "With matryoshka_dims: the weight of each in the sum. Default: 1."
    )
