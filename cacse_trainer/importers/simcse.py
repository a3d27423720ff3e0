"""Checkpoints of SimCSE and DiffCSE, training ones and released ones, read under their own key names.

A training checkpoint holds ``bert.*`` or ``roberta.*``, the head ``mlp.dense.*`` (DiffCSE with batch norm:
``mlp.net.<i>.*``), with the auxiliary loss ``lm_head.*``, and DiffCSE's ``generator.*``, ``discriminator.*`` and
``electra_head.*``. A released model is a plain encoder (``embeddings.*``, ``encoder.*``) with the head in the pooler's
place.
"""

import logging
import re
from pathlib import Path

from torch import Tensor

from cacse_trainer.importers.reference import ReferenceReport, read_state_dict, shown
from cacse_trainer.models.configuration_sentence_embedding import SentenceEmbeddingConfig
from cacse_trainer.models.modeling_sentence_embedding import SentenceEmbeddingModel
from cacse_trainer.models.pretrained import build_encoder, load_config

logger = logging.getLogger(__name__)

# Reference names and ours, in the order in which they are tried; the encoder's own prefix comes before them.
RENAMED = (
    (r"(embeddings|encoder|pooler)\.", r"encoder.\1."),
    (r"mlp\.dense\.", "projection_head.dense."),
    (r"mlp\.net\.0\.", "projection_head.expand."),
    (r"mlp\.net\.1\.", "projection_head.norm."),
    (r"mlp\.net\.3\.", "projection_head.contract."),
    (r"mlp\.net\.4\.", "projection_head.output_norm."),
    (r"lm_head\.(?:transform\.)?dense\.", "lm_head.dense."),
    (r"lm_head\.(?:transform\.LayerNorm|layer_norm)\.", "lm_head.norm."),
    (r"lm_head\.decoder\.weight$", "lm_head.decoder.weight"),
    (r"lm_head\.(?:decoder\.)?bias$", "lm_head.decoder.bias"),  # the same tensor under two names
    (r"electra_head\.", "rtd_head."),
    (r"(?:discriminator|aux_bert)\.", "discriminator."),  # two revisions of the release
    (r"generator\.", "generator."),
)
WITHOUT_EFFECT = re.compile(r".*\.position_ids$|cls\.")
TRAINING_ONLY = ("lm_head.", "generator.", "discriminator.", "rtd_head.")
POOLER = "encoder.pooler.dense."


def rename_simcse_keys(
    state: dict[str, Tensor], encoder_prefixes: tuple[str, ...] = ("bert", "roberta")
) -> tuple[dict[str, Tensor], ReferenceReport]:
    """Reference names → those of `SentenceEmbeddingModel` and `DiffcseModel`.

    Args:
        state: tensors by their reference names.
        encoder_prefixes: what the encoder may be called there.
    """
    rules = [(rf"(?:{'|'.join(encoder_prefixes)})\.", "encoder."), *RENAMED]
    renamed: dict[str, Tensor] = {}
    report = ReferenceReport()
    for full_name, tensor in state.items():
        name = full_name.removeprefix("module.")  # DataParallel's prefix
        if WITHOUT_EFFECT.match(name):
            report.skipped.append(full_name)
            continue
        for pattern, ours in rules:
            target, found = re.subn("^" + pattern, ours, name)
            if found:
                renamed[target] = tensor.reshape(()) if name.endswith("num_batches_tracked") else tensor
                break
        else:
            report.left_over.append(full_name)
    return renamed, report


def load_simcse_checkpoint(path: str | Path, *, use_head: bool) -> SentenceEmbeddingModel:
    """A training checkpoint or a released model of SimCSE or DiffCSE as a `SentenceEmbeddingModel`.

    Its ``encoder`` is the plain encoder, with SimCSE's head as its pooler, as in the released models.

    Args:
        path: folder with ``config.json`` and the weights.
        use_head: whether the head is used at inference: True for supervised SimCSE; False, the raw CLS state, for
            unsupervised SimCSE and DiffCSE. The file does not say which it is.

    Raises:
        ValueError: weights are missing or left over (the first are named), or there is no head to use.
        FileNotFoundError: there is no such file.
    """
    encoder_config = load_config(path)
    # What checkpoints call the encoder: one of two names, or its model type.
    prefixes = ("bert", "roberta", encoder_config.model_type.replace("-", "_"))
    renamed, report = rename_simcse_keys(read_state_dict(path), prefixes)
    for name in [name for name in renamed if name.startswith(TRAINING_ONLY)]:
        report.skipped.append(name)
        del renamed[name]
    for name, tensor in list(renamed.items()):
        if name.startswith("projection_head.dense."):
            renamed[name.replace("projection_head.dense.", POOLER)] = tensor
        elif name.startswith(POOLER):
            renamed.setdefault(name.replace(POOLER, "projection_head.dense."), tensor)
    head = {name: tensor for name, tensor in renamed.items() if name.startswith("projection_head.")}
    if use_head and not head:
        raise ValueError(f"{path} holds no head (mlp.* or pooler.*): load it with use_head=False, as a raw CLS encoder")
    if not use_head:
        renamed = {name: tensor for name, tensor in renamed.items() if name not in head}
    encoder = build_encoder(encoder_config)
    has_pooler = any(name == "pooler" for name, _ in encoder.named_children())
    if has_pooler and not any(name.startswith("encoder.pooler.") for name in renamed):
        encoder = build_encoder(encoder_config, add_pooling_layer=False)
    config = SentenceEmbeddingConfig(
        encoder_config,
        pooling="cls" if use_head else "cls_before_pooler",
        projection="batch_norm" if "projection_head.expand.weight" in renamed else "tanh",
    )
    model = SentenceEmbeddingModel(config, encoder)
    loading = model.load_state_dict(renamed, strict=False)
    missing, left_over = loading.missing_keys, report.left_over + loading.unexpected_keys
    if missing or left_over:
        raise ValueError(
            f"{path} is no checkpoint of SimCSE or DiffCSE; missing: {shown(missing)}; left over: {shown(left_over)}"
        )
    logger.info("%s: %d keys used in training only, or without effect, skipped", path, len(report.skipped))
    return model.eval()
