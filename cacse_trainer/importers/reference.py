"""Checkpoints of the reference implementations, read under their own key names.

The CACSE release saves one state dict: ``Submodel_1.*`` and ``Submodel_2.*`` are the towers,
``cascade.first_layer.*`` and ``cascade.Subsequentlayer.index<k>.*`` the cascade's blocks, each with ``_A`` and ``_B``
weights for the two views, and the whole constraint model under ``…Encoderlayers_Model`` with its last layers listed a
second time as ``…constraint_layer.<i>``. Query and key rows of the cascade's attentions have no effect (see
models/cascade.py) and are skipped, as are the parts of the constraint model that never run.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from cacse_trainer.models.modeling_cacse import CacseModel, cacse_class
from cacse_trainer.models.pretrained import damage, load_config

logger = logging.getLogger(__name__)

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# What each part of a cascade block is called in the release, and here.
PARTS = {"W": "linear", "bl": "norm", "ln": "output_norm", "selfatt": "self_attention", "crossatt": "cross_attention"}
BLOCK = re.compile(r"cascade\.(?:first_layer|Subsequentlayer\.index(\d+))\.(W|ln|bl|selfatt|crossatt)_([AB])\.(.+)")
CONSTRAINT = re.compile(r"cascade\.first_layer\.constraint_layer\.constraint_layer\.(.+)")
NEVER_RUN = re.compile(r"cascade\.first_layer\.constraint_layer\.Encoderlayers_Model\.|.*\.position_ids$")
TOWER = re.compile(r"Submodel_([12])\.(.+)")


@dataclass
class ReferenceReport:
    """What became of the keys of a reference checkpoint.

    Args:
        skipped: keys without effect, left behind on purpose.
        left_over: keys that this reader does not know.
        missing: weights of our model that the checkpoint does not hold.
    """

    skipped: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def shown(names: Sequence[str], most: int = 4) -> str:
    """The names; of many how many there are, and the first of them.

    >>> shown(["a", "b"])
    "['a', 'b']"
    >>> shown(["a", "b", "c", "d", "e", "f"])
    '6, such as a, b, c, d'
    """
    return str(list(names)) if len(names) <= most else f"{len(names)}, such as {', '.join(names[:most])}"


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` or ``.bin`` file, or of a folder that holds one; never runs a pickle's code.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or no state dict of tensors.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(f"{path} holds none of {', '.join(WEIGHT_FILES)}")
        path = found[0]
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        wrong = damage(path) or f"{path} is no readable checkpoint ({type(error).__name__}: {first_line})"
        raise ValueError(wrong) from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{path} is no state dict of tensors")
    return state


def rename_reference_keys(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], ReferenceReport]:
    """Reference names → ours; in-projections lose their query and key rows."""
    renamed: dict[str, Tensor] = {}
    report = ReferenceReport()
    for full_name, tensor in state.items():
        name = full_name.removeprefix("module.")  # DataParallel's prefix
        if NEVER_RUN.match(name):
            report.skipped.append(full_name)
        elif match := TOWER.fullmatch(name):
            renamed[f"tower_{'ab'[int(match[1]) - 1]}.{match[2]}"] = tensor
        elif match := CONSTRAINT.fullmatch(name):
            renamed[f"cascade.constraint_layers.{match[1]}"] = tensor
        elif match := BLOCK.fullmatch(name):
            block, part, view, rest = match.groups()
            target = f"cascade.blocks.{block or 0}.view_{'xy'['AB'.index(view)]}.{PARTS[part]}."
            if rest.startswith("in_proj_"):
                report.skipped.append(f"{full_name} (query and key rows)")
                renamed[target + rest.replace("in_proj_", "value.")] = tensor[2 * len(tensor) // 3 :].clone()
            else:
                renamed[target + rest.replace("out_proj.", "output.")] = tensor
        else:
            report.left_over.append(full_name)
    return renamed, report


def convert_reference_checkpoint(
    path: str | Path, tower_a: str, tower_b: str, constraint: str, **settings: Any
) -> tuple[CacseModel, ReferenceReport]:
    """As `load_reference_checkpoint`, with the report of skipped, left-over and missing keys; raises for neither."""
    model_class = cacse_class(load_config(tower_a))
    renamed, report = rename_reference_keys(read_state_dict(path))
    model = model_class(model_class.configure((tower_a, tower_b, constraint), **settings))
    expected = model.state_dict()
    for name in [name for name in renamed if name not in expected]:
        report.left_over.append(name)
        del renamed[name]
    for name, tensor in renamed.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, "
                f"the configuration asks for {tuple(expected[name].shape)}"
            )
    report.missing = sorted(expected.keys() - renamed.keys())
    model.load_state_dict(renamed, strict=False)
    return model, report


def load_reference_checkpoint(path: str | Path, tower_a: str, tower_b: str, constraint: str, **settings) -> CacseModel:
    """A checkpoint of the CACSE release as a `CacseBertModel` or `CacseRobertaModel`.

    Args:
        path: ``pytorch_model.bin`` or ``.safetensors`` with the release's key names (old ``position_ids`` are fine).
        tower_a, tower_b, constraint: folders or hub ids whose configs describe the parts; their weights are not read.
        settings: ``cascade_start_layer`` (7), ``constraint_layers`` (4), ``cascade_heads`` (6), and for going on with
            the training ``cascade_loss_weight`` (1), ``contrastive_temperature`` (0.05), ``constraint_attention``
            (``batch``), ``tower_dropout``, ``cascade_dropout`` (0.2), ``constraint_dropout`` (0.1).

    Raises:
        ValueError: keys are missing or left over (the first are named), a shape differs, or the file is damaged.
        FileNotFoundError: there is no such file.
    """
    model, report = convert_reference_checkpoint(path, tower_a, tower_b, constraint, **settings)
    if report.missing or report.left_over:
        raise ValueError(
            f"{path} does not fit this configuration (cascade_start_layer={model.config.cascade_start_layer}, "
            f"constraint_layers={model.config.constraint_layers}); "
            f"missing: {shown(report.missing)}; left over: {shown(report.left_over)}"
        )
    logger.info("%s: %d keys skipped as without effect: %s", path, len(report.skipped), ", ".join(report.skipped))
    return model
