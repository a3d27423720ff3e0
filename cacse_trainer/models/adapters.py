"""LoRA in an encoder, by the peft library: its layers in place, an adapter's files in and out, and the merge.

The layers are put into the encoder itself, which stays the class that it was. An adapter's files are peft's own
(``adapter_config.json``, ``adapter_model.safetensors``), written for the bare encoder; those of a causal language model
(its ``model.`` before every name) are read as well, and those of both.
"""

import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig, PreTrainedModel

from cacse_trainer.errors import UserError
from cacse_trainer.models.pretrained import damage_named, load_encoder_model, runs_its_own_code

NAME = "default"
CONFIG_FILE = "adapter_config.json"
STATE = "adapter_model.safetensors"
PREFIX = "base_model.model."


@dataclass
class LoraSettings:
    """A new adapter.

    Args:
        r: rank.
        alpha: the adapter's product is scaled by alpha/r.
        dropout: before the adapter's first matrix.
        target_modules: names of the linear layers that get one; None: peft's choice for this kind of model.
        init: ``gaussian`` (A ~ N(0, 1/r)), or ``default`` (A Kaiming uniform); B is 0 in both.
    """

    r: int = 8
    alpha: float = 32
    dropout: float = 0.1
    target_modules: list[str] | None = None
    init: str = "gaussian"

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"lora_r must be at least 1, got {self.r}")
        if self.init not in ("gaussian", "default"):
            raise ValueError(f"lora_init {self.init!r} is unknown; choose gaussian or default")


def peft_library() -> Any:
    """The peft library.

    Raises:
        UserError: it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise UserError("LoRA and adapters need the peft library: pip install peft") from error
    return peft


def quantization(load_in_4bit: bool, load_in_8bit: bool) -> BitsAndBytesConfig | None:
    """How bitsandbytes loads the frozen weights; None: not at all. 4 bit is QLoRA's: NF4, twice quantised, in bfloat16.

    Raises:
        ValueError: both are asked for, or there is no CUDA GPU, or no bitsandbytes.
    """
    if not load_in_4bit and not load_in_8bit:
        return None
    if load_in_4bit and load_in_8bit:
        raise ValueError("give load_in_4bit or load_in_8bit, not both")
    name = "load_in_4bit" if load_in_4bit else "load_in_8bit"
    if not torch.cuda.is_available():
        raise ValueError(f"{name} needs a CUDA GPU, and there is none; leave it out, or give base_dtype bfloat16")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{name} needs the bitsandbytes library: pip install bitsandbytes") from error
    return BitsAndBytesConfig(
        load_in_4bit=load_in_4bit,
        load_in_8bit=load_in_8bit,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def add_lora(encoder: PreTrainedModel, settings: LoraSettings, base_model: str) -> None:
    """Put a new LoRA adapter into the encoder; all else is frozen.

    Args:
        encoder: changed in place.
        settings: the adapter's.
        base_model: folder or hub id that the encoder came from, for the adapter's config.

    Raises:
        ValueError: peft is missing, or no layer has one of the names.
    """
    config = peft_library().LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
        init_lora_weights="gaussian" if settings.init == "gaussian" else True,
        task_type="FEATURE_EXTRACTION",
        base_model_name_or_path=base_model,
    )
    inject(encoder, config)


def inject(encoder: PreTrainedModel, config: Any) -> None:
    """Put the layers of peft's ``config`` into the encoder; they alone are trained from now on."""
    peft = peft_library()
    if getattr(encoder, "is_quantized", False):
        peft.prepare_model_for_kbit_training(encoder, use_gradient_checkpointing=False)
    peft.inject_adapter_in_model(config, encoder, NAME)
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad and "lora_" in name:  # trained in float32 whatever the frozen weights are
            parameter.data = parameter.data.float()


def base_model_of(path: str) -> str | None:
    """The base model that an adapter's folder or hub id names; None where there is no adapter, or no name in it.

    A relative folder is that of the run which made the adapter: it is looked for here, then in the folders above it.

    Raises:
        ValueError: what is named is no text.
    """
    if Path(path).is_dir() and not (Path(path) / CONFIG_FILE).is_file():
        return None
    try:
        base = peft_library().PeftConfig.from_pretrained(path).base_model_name_or_path
    except (ValueError, OSError):
        return None
    if not isinstance(base, str | None):
        raise ValueError(f"its {CONFIG_FILE} names {base!r} as its base model; write a folder or hub id there")
    if base is None or Path(base).exists() or not Path(path).is_dir():
        return base
    above = (parent / base for parent in Path(path).resolve().parents)
    return next((str(folder) for folder in above if folder.is_dir()), base)


def load_adapter(encoder: PreTrainedModel, path: str, trainable: bool = True, base_model: str | None = None) -> None:
    """Put a saved adapter into the encoder.

    Args:
        encoder: changed in place; a bare encoder, without the language model head.
        path: the adapter's folder or hub id; one made for the causal language model of the encoder will do.
        trainable: go on training it (all else is frozen).
        base_model: where the encoder came from, if that is not what the adapter names.

    Raises:
        ValueError: peft is missing, the adapter is of a kind that does not live in layers, or its weights do not fit.
        OSError: there is no such adapter.
    """
    peft = peft_library()
    config = peft.PeftConfig.from_pretrained(path)
    if config.is_prompt_learning:
        raise ValueError(f"adapter {path}: {config.peft_type} puts tokens before the text, which is not supported here")
    if isinstance(config.target_modules, (list, set)):  # full names start with the causal model's own part
        whole_model = f"{encoder.base_model_prefix}."
        config.target_modules = {name.removeprefix(whole_model) for name in config.target_modules}
    config.inference_mode = not trainable
    config.task_type = "FEATURE_EXTRACTION"  # it is saved for the bare encoder, whatever it was made for
    if base_model is not None:
        config.base_model_name_or_path = base_model
    inject(encoder, config)
    load_adapter_weights(encoder, path)


def load_adapter_weights(encoder: PreTrainedModel, path: str) -> None:
    """Read an adapter's weights into the one that the encoder has.

    Raises:
        ValueError: weights are missing, left over, or of other shapes.
    """
    with damage_named(str(path), {"file": CONFIG_FILE}):
        found = peft_library().utils.load_peft_weights(str(path), device="cpu")
    whole_model = f"{encoder.base_model_prefix}."  # what a model with a head calls the encoder
    parts = {f"{name}." for name, _ in encoder.named_children()}
    state = {}
    for name, tensor in found.items():
        inner = name.removeprefix(PREFIX)
        if whole_model not in parts:
            inner = inner.removeprefix(whole_model)
        if not inner.startswith("lm_head."):  # of no use without a language model's head
            state[PREFIX + inner] = tensor
    expected = adapter_state(encoder)
    missing, left_over = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or left_over:
        raise ValueError(
            f"adapter {path} does not fit the model: {len(missing)} of its weights are missing ({missing[:1]}), "
            f"{len(left_over)} are left over ({left_over[:1]})"
        )
    wrong = next((name for name, tensor in state.items() if tensor.shape != expected[name].shape), None)
    if wrong is not None:
        raise ValueError(
            f"adapter {path} does not fit the model: {wrong} is {tuple(state[wrong].shape)}, the model wants "
            f"{tuple(expected[wrong].shape)}"
        )
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(state[name])


def adapter_state(encoder: PreTrainedModel, state_dict: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The adapter's weights under their names in peft's files.

    Args:
        encoder: with an adapter.
        state_dict: the encoder's, where it must not be read from its parameters (they are sharded).
    """
    chosen = peft_library().get_peft_model_state_dict(
        encoder,
        state_dict=encoder.state_dict() if state_dict is None else state_dict,
        adapter_name=NAME,
        save_embedding_layers=False,
    )
    return {PREFIX + name: tensor for name, tensor in chosen.items()}


def merge_adapter(encoder: PreTrainedModel) -> PreTrainedModel:
    """The encoder with its adapter's weights added to its own, and no trace of peft left. Changed in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper  # of modules_to_save and trainable_token_indices

    for name, module in list(encoder.named_modules()):
        if isinstance(module, AuxiliaryTrainingWrapper):
            whole = module.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
            encoder.set_submodule(name, whole)
        elif isinstance(module, BaseTunerLayer) and ".token_adapter" not in name:  # which is its wrapper's
            module.merge(safe_merge=True)
            encoder.set_submodule(name, module.get_base_layer())
    del encoder.peft_config
    encoder._hf_peft_config_loaded = False  # set where transformers has put it in
    return encoder.requires_grad_(False)


def in_full_precision(encoder: PreTrainedModel) -> PreTrainedModel:
    """The encoder with its adapter, in float32.

    Quantised weights cannot be widened: its base model is read anew, so its vectors are those of the adapter on the
    base model's own weights.
    """
    if not getattr(encoder, "is_quantized", False):
        return encoder.float()
    adapter = encoder.peft_config[NAME]  # type: ignore[index]
    config = copy.deepcopy(encoder.config)
    del config.quantization_config
    base, _ = load_encoder_model(
        str(adapter.base_model_name_or_path),
        config=config,
        dtype=torch.float32,
        trust_remote_code=runs_its_own_code(encoder),
    )
    inject(base, copy.copy(adapter))
    state = adapter_state(encoder)
    with torch.no_grad():
        for name, tensor in adapter_state(base).items():
            tensor.copy_(state[name])
    return base.to(encoder.device).eval()


def unwrapped(model: Any) -> Any:
    """A model without peft's wrapper, if it has one."""
    peft = sys.modules.get("peft")  # nobody has made one without it
    return model.get_base_model() if peft is not None and isinstance(model, peft.PeftModel) else model
