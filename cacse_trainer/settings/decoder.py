"""Settings of a single tower that decoders and labelled pairs bring along: prompt, directions, adapter, weights."""

from dataclasses import dataclass, field
from typing import ClassVar


@dataclass
class DecoderArguments:
    """Prompt, bidirectional layers, LoRA, and the weights of AnglE's objectives; for a model given by ``model``."""

    _argument_group_name: ClassVar[str] = "model"

    prompt_template: str | None = field(
        default=None,
        metadata={"help": "Text around every sentence, with {text} once. The saved tokenizer carries it."},
    )
    append_eos: bool = field(
        default=False, metadata={"help": "Close every sentence with the EOS token, whatever its length."}
    )
    bidirectional_start_layer: int | None = field(
        default=None,
        metadata={"help": "BeLLM: decoder layers from this one on (from 0) see both directions. Default: none."},
    )
    lora_r: int | None = field(
        default=None, metadata={"help": "Train a LoRA adapter of this rank instead of the model's own weights."}
    )
    lora_alpha: float = field(default=32, metadata={"help": "The adapter's product is scaled by lora_alpha/lora_r."})
    lora_dropout: float = field(default=0.1, metadata={"help": "Dropout before the adapter."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Linear layers with an adapter, such as q_proj v_proj. Default: peft's choice."}
    )
    lora_init: str = field(default="gaussian", metadata={"help": "gaussian or default (peft's)."})
    adapter: str | None = field(
        default=None, metadata={"help": "Go on training this adapter, a folder or hub id, instead of a new one."}
    )
    load_in_4bit: bool = field(
        default=False, metadata={"help": "QLoRA: the frozen weights in 4 bit (a CUDA GPU and bitsandbytes)."}
    )
    load_in_8bit: bool = field(default=False, metadata={"help": "The frozen weights in 8 bit, likewise."})
    base_dtype: str = field(
        default="float32",
        metadata={"help": "Dtype of the frozen weights under an adapter: float32 or bfloat16 (half the memory)."},
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the model code that comes with the checkpoint (MiniCPM needs it)."}
    )
    cosine_weight: float = field(default=0.0, metadata={"help": "angle_combined, bellm: weight of CoSENT's loss."})
    ibn_weight: float = field(default=1.0, metadata={"help": "angle_combined, bellm: weight of in-batch negatives."})
    cln_weight: float = field(
        default=1.0, metadata={"help": "angle_combined on triplets: weight of the part with hard negatives."}
    )
    angle_weight: float = field(default=0.02, metadata={"help": "angle_combined, bellm: weight of the angle loss."})
    ranking_scale: float = field(default=20.0, metadata={"help": "cosent, angle and their combinations: the scale τ."})
    positive_threshold: float | None = field(
        default=None,
        metadata={"help": "angle_combined on graded labels: pairs from this label on are positive in the batch."},
    )
