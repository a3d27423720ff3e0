"""A decoder small enough to train on a CPU: random weights, and a byte-level BPE tokenizer trained on a text.

python scripts/make_tiny_decoder.py --output_dir tiny_llama
python scripts/make_tiny_decoder.py --output_dir tiny_qwen --kind qwen2 --text wiki1m_for_simcse.txt

The folder is a causal language model as they come from the hub, for trying recipes out without one. It has learned
nothing: what it scores shows the road, not a method.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "examples" / "sample" / "sentences.txt"
KINDS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi", "phi3")
BOS, EOS = "<s>", "</s>"
UNKNOWN = "<|endoftext|>"  # Qwen2's own tokenizer class adds it where it is missing


def train_tokenizer(text: Path, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that puts BOS before every text; it closes none with EOS."""

    def lines() -> Iterator[str]:
        with text.open(encoding="utf-8") as file:
            yield from file

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[BOS, EOS, UNKNOWN], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(lines(), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B:1", special_tokens=[(BOS, backend.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=EOS, unk_token=UNKNOWN, model_max_length=512
    )


def make_tiny_decoder(
    folder: Path,
    kind: str = "llama",
    text: Path = SAMPLE,
    vocab_size: int = 2000,
    hidden_size: int = 128,
    layers: int = 4,
    heads: int = 4,
    initializer_range: float = 0.05,
    seed: int = 0,
) -> None:
    """Write the model's folder.

    Args:
        folder: made when missing.
        kind: one of `KINDS`.
        text: that the tokenizer is trained on, one sentence a line.
        vocab_size, hidden_size, layers, heads: the model's sizes.
        initializer_range: standard deviation of the weights. The usual 0.02 is for wide models: in a narrow one little
            of a token would reach the last layer.
        seed: of the weights.
    """
    tokenizer = train_tokenizer(text, vocab_size)
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden_size // heads,
        max_position_embeddings=512,
        initializer_range=initializer_range,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, type=Path, help="the model's folder")
    parser.add_argument("--kind", default="llama", choices=KINDS, help="of decoder (default: llama)")
    parser.add_argument("--text", default=SAMPLE, type=Path, help="for the tokenizer (default: the sample)")
    for name, value in (("vocab_size", 2000), ("hidden_size", 128), ("layers", 4), ("heads", 4), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default: {value}")
    settings = parser.parse_args(arguments)
    if not settings.text.is_file():
        parser.error(f"--text {settings.text}: no such file")
    if settings.hidden_size % (2 * settings.heads):
        parser.error(f"--hidden_size {settings.hidden_size} must be a multiple of twice the {settings.heads} heads")
    make_tiny_decoder(
        settings.output_dir,
        settings.kind,
        settings.text,
        settings.vocab_size,
        settings.hidden_size,
        settings.layers,
        settings.heads,
        seed=settings.seed,
    )
    print(f"{settings.output_dir}: a {settings.kind} of random weights, {settings.layers} layers")


if __name__ == "__main__":
    main()
