"""The files that make an encoder folder a sentence-transformers model with the right pooling.

A folder without them loads in sentence-transformers with MEAN pooling, whatever it was trained with. The module paths
are the older ones, which old and new versions of the library know.
"""

from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from cacse_trainer.files import write_json

DENSE = "2_Dense"
# pooling name → the flag of sentence-transformers' Pooling module
POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "weighted_mean": "pooling_mode_weightedmean_tokens",
    "last_token": "pooling_mode_lasttoken",
}


def write_modules(
    folder: Path, *, pooling: str, hidden_size: int, max_seq_length: int, dense: nn.Linear | None = None
) -> None:
    """Write ``modules.json``, ``1_Pooling/config.json`` and the two configuration files.

    Args:
        folder: of an encoder that AutoModel loads.
        pooling: cls, mean, max, weighted_mean or last_token.
        hidden_size: width of the encoder.
        max_seq_length: the tokenizer's own limit.
        dense: a layer above the pooling, followed by tanh: the head of supervised SimCSE.

    Raises:
        ValueError: sentence-transformers has no such pooling.
    """
    if pooling not in POOLING_FLAGS:
        raise ValueError(f"sentence-transformers has no pooling {pooling!r}; choose one of {sorted(POOLING_FLAGS)}")
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    if dense is not None:
        modules.append(("Dense", DENSE))
        (folder / DENSE).mkdir(exist_ok=True)
        write_json(
            folder / DENSE / "config.json",
            {
                "in_features": dense.in_features,
                "out_features": dense.out_features,
                "bias": True,
                "activation_function": "torch.nn.modules.activation.Tanh",
            },
        )
        weights = {"linear.weight": dense.weight, "linear.bias": dense.bias}
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()},
            folder / DENSE / "model.safetensors",
        )
    write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(modules)
        ],
    )
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": False})
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write_json(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": hidden_size, **{flag: name == pooling for name, flag in POOLING_FLAGS.items()}},
    )
    write_json(folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine", "prompts": {}})
