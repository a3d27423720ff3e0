"""Settings of a single tower that decoders and labelled pairs bring along: prompt, directions, adapter, weights."""

from dataclasses import dataclass
from typing import ClassVar

from cacse_trainer.settings import setting


@dataclass
class DecoderArguments:
    """Prompt, bidirectional layers, LoRA, and the weights of AnglE's objectives; for a model given by ``model``."""

    _argument_group_name: ClassVar[str] = "model"

    prompt_template: str | None = setting(
        None, "Text around every sentence, with {text} once. The saved tokenizer carries it."
    )
    append_eos: bool = setting(False, "Close every sentence with the EOS token, whatever its length.")
    bidirectional_start_layer: int | None = setting(
        None, "BeLLM: decoder layers from this one on (from 0) see both directions. Default: none."
    )
    lora_r: int | None = setting(None, "Train a LoRA adapter of this rank instead of the model's own weights.")
    lora_alpha: float = setting(32, "The adapter's product is scaled by lora_alpha/lora_r.")
    lora_dropout: float = setting(0.1, "Dropout before the adapter.")
    lora_target_modules: list[str] | None = setting(
        None, "Linear layers with an adapter, such as q_proj v_proj. Default: peft's choice."
    )
    lora_init: str = setting("gaussian", "gaussian or default (peft's).")
    adapter: str | None = setting(None, "Go on training this adapter, a folder or hub id, instead of a new one.")
    load_in_4bit: bool = setting(False, "QLoRA: the frozen weights in 4 bit (a CUDA GPU and bitsandbytes).")
    load_in_8bit: bool = setting(False, "The frozen weights in 8 bit, likewise.")
    base_dtype: str = setting(
        "float32", "Dtype of the frozen weights under an adapter: float32 or bfloat16 (half the memory)."
    )
    trust_remote_code: bool = setting(False, "Run the model code that comes with the checkpoint (MiniCPM needs it).")
    cosine_weight: float = setting(0.0, "angle_combined, bellm: weight of CoSENT's loss.")
    ibn_weight: float = setting(1.0, "angle_combined, bellm: weight of in-batch negatives.")
    cln_weight: float = setting(1.0, "angle_combined on triplets: weight of the part with hard negatives.")
    angle_weight: float = setting(0.02, "angle_combined, bellm: weight of the angle loss.")
    ranking_scale: float = setting(20.0, "cosent, angle and their combinations: the scale τ.")
    positive_threshold: float | None = setting(
        None, "angle_combined on graded labels: pairs from this label on are positive in the batch."
    )
