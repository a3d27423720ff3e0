"""The files that make an encoder folder a sentence-transformers model with the right pooling.

A folder without them loads in sentence-transformers with MEAN pooling, whatever it was trained with. The module paths
are the older ones, which old and new versions of the library know.
"""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file
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


def read_dense(folder: Path) -> nn.Linear | None:
    """The dense layer of a folder that `write_modules` gave one; tanh comes after it."""
    path = folder / DENSE / "model.safetensors"
    if not path.is_file():
        return None
    weights = load_file(path)
    out_features, in_features = weights["linear.weight"].shape
    dense = nn.Linear(in_features, out_features)
    dense.load_state_dict({name.removeprefix("linear."): tensor for name, tensor in weights.items()})
    return dense.requires_grad_(False)


def read_pooling(folder: Path) -> str | None:
    """The pooling that a folder's sentence-transformers files state; None when it has none, or another kind."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return None
    stated = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(stated.get("pooling_mode"), str):  # the newer form
        return {"lasttoken": "last_token", "weightedmean": "weighted_mean"}.get(
            stated["pooling_mode"], stated["pooling_mode"]
        )
    chosen = [name for name, flag in POOLING_FLAGS.items() if stated.get(flag)]
    return chosen[0] if len(chosen) == 1 else None
