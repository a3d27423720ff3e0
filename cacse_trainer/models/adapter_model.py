"""What a sentence model with an adapter does otherwise: how it is given one, saved and loaded."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PretrainedConfig

from cacse_trainer.errors import UserError, one_line, user_errors
from cacse_trainer.models.adapters import (
    CONFIG_FILE,
    NAME,
    STATE,
    adapter_state,
    base_model_of,
    inject,
    load_adapter,
    load_adapter_weights,
    unwrapped,
)
from cacse_trainer.models.base import SentenceModel
from cacse_trainer.models.pretrained import find_file, load_config, load_encoder_model


def _dtype(asked: Any, own: Any) -> Any:
    """A dtype, or one by its name as ``from_pretrained`` takes it; ``auto`` is the checkpoint's own."""
    return own if asked == "auto" else getattr(torch, asked) if isinstance(asked, str) else asked


class AdapterModel(SentenceModel):
    """A sentence model of one ``encoder``; where that has an adapter, its checkpoints hold the adapter alone."""

    encoder: Any

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter is trained, and saved, instead of the encoder's own weights."""
        return NAME in self.adapters

    def check_resizable(self) -> None:
        """Refuse it where an adapter is trained: its checkpoints hold no word vectors."""
        if self.has_adapter:
            raise ValueError(
                "an adapter's checkpoint holds no word vectors: resize the base model's embeddings, save that, and "
                "train an adapter of the saved model"
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As `SentenceModel.from_pretrained`.

        Of a checkpoint that holds an adapter only, the base model is read from where the adapter names it, or from
        ``base_model``, a folder or hub id.
        """
        path = str(pretrained_model_name_or_path)
        if find_file(path, CONFIG_FILE) is not None:
            return cls._from_adapter(path, **kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def _from_adapter(
        cls, path: str, base_model: str | None = None, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        base = base_model or base_model_of(path)
        if base is None:
            raise ValueError(f"{path}: its {CONFIG_FILE} names no base model; state base_model_name_or_path there")
        config = cls.config_class.from_pretrained(path)
        names = ("attn_implementation", "trust_remote_code", "device_map")
        loading = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        if type(config.encoder_config) is PretrainedConfig:  # its code comes with the base model
            config.encoder_config = load_config(base, trust_remote_code=kwargs.get("trust_remote_code", False))
        try:  # in the dtype of the training, which rounds the weights, then in the one asked for
            encoder, _ = load_encoder_model(base, config=config.encoder_config, dtype=config.dtype, **loading)
            asked = kwargs.get("dtype") or kwargs.get("torch_dtype") or config.dtype
            encoder = encoder.to(_dtype(asked, config.dtype))
        except OSError as error:
            raise OSError(
                f"{path} is an adapter of {base}, which cannot be read; put the base there, or state where it is as "
                f"base_model_name_or_path in its {CONFIG_FILE} ({one_line(error)})"
            ) from error
        model = cls(config, encoder)
        load_adapter(model.encoder, path, base_model=base)
        model.eval()
        report: dict[str, Any] = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}
        return (model, report) if output_loading_info else model

    def add_adapter(  # type: ignore[override]  # of the parent's arguments these have a meaning here
        self, adapter_config: Any, adapter_name: str = NAME
    ) -> None:
        """Put a new adapter into the encoder, by peft's config; it alone is trained and saved from now on.

        Args:
            adapter_config: such as ``peft.LoraConfig``.
            adapter_name: its name; a model has one.

        Raises:
            UserError: see `adopt_adapter`; or there is one already.
        """
        if adapter_name in self.adapters:
            raise UserError(
                "add_adapter: there is one already, which the new one would replace; go on with it, or export the "
                "model, which merges it, and start from that"
            )
        self._check_adapter({**self.adapters, adapter_name: adapter_config})
        config = copy.copy(adapter_config)
        config.base_model_name_or_path = config.base_model_name_or_path or self.encoder.name_or_path
        with user_errors("add_adapter"):
            inject(self.encoder, config)

    @property
    def adapters(self) -> dict[str, Any]:
        """peft's configs of the encoder's adapters by name."""
        return getattr(self.encoder, "peft_config", {})

    def adopt_adapter(self, adapters: Mapping[str, Any] | None) -> None:
        """As `SentenceModel.adopt_adapter`: the encoder's own.

        Raises:
            UserError: there are several, of another name or a kind that does not live in layers, or the model trains
                more than its encoder.
        """
        encoder = unwrapped(self.encoder)
        if encoder is not self.encoder:
            adapters = self.encoder.peft_config
        if adapters is None:
            return
        self._check_adapter(adapters)
        config = copy.copy(adapters[NAME])
        if encoder is self.encoder:  # peft has looked from above it
            if isinstance(config.target_modules, str):
                raise UserError(
                    f"an adapter around the model finds its layers by the pattern {config.target_modules!r}; put it "
                    "into the encoder by model.add_adapter(config), with a pattern of the encoder's own names"
                )
            config.target_modules = {name.removeprefix("encoder.") for name in config.target_modules}
        config.base_model_name_or_path = config.base_model_name_or_path or encoder.name_or_path
        self.encoder, encoder.peft_config = encoder, {NAME: config}

    def _check_adapter(self, adapters: Mapping[str, Any]) -> None:
        if set(adapters) != {NAME}:
            raise UserError(f"adapters {', '.join(adapters)}: a model trains one, named {NAME}")
        if adapters[NAME].is_prompt_learning:
            kind = adapters[NAME].peft_type
            raise UserError(f"adapter: {kind} puts tokens before the text, which is not supported here; choose LoRA")
        outside = next((name for name, _ in self.named_parameters() if not name.startswith("encoder.")), None)
        if outside is not None:
            raise UserError(
                f"an adapter is trained, and saved, of the encoder alone, and {outside} is none of it: choose a "
                "pooling without a head (last_token, mean, weighted_mean, cls_before_pooler) and mlm_weight 0"
            )

    def save_pretrained(  # type: ignore[override]  # the parent's further arguments pass through
        self, save_directory: Any, is_main_process: bool = True, state_dict: dict | None = None, **kwargs: Any
    ) -> None:
        """As `PreTrainedModel.save_pretrained`; with an adapter the config and the adapter only."""
        if not self.has_adapter:
            super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)
        elif is_main_process:
            self.config.architectures = [type(self).__name__]
            self.config.save_pretrained(save_directory)
            given = (self.state_dict() if state_dict is None else state_dict).items()
            state = {name[len("encoder.") :]: tensor for name, tensor in given if name.startswith("encoder.")}
            adapter = copy.copy(self.encoder.peft_config[NAME])
            adapter.inference_mode = True
            adapter.save_pretrained(str(save_directory))
            state = {name: t.detach().cpu().contiguous() for name, t in adapter_state(self.encoder, state).items()}
            save_file(state, Path(save_directory) / STATE, metadata={"format": "pt"})

    def load_adapter_checkpoint(self, folder: str) -> None:
        """As `load_adapter_weights`: a checkpoint's adapter into the one that is trained."""
        load_adapter_weights(self.encoder, folder)
