"""Every road of the program on one device, in one process: ``python -m tests.devices.roads DEVICE FOLDER``.

Prints one JSON line a road: its name, the exit code, how many passes had no padding as on a GPU, and the numbers that
must not depend on the device.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoModelForMaskedLM, BertModel, BertTokenizerFast, RobertaModel

from tests.conftest import WORDS, tiny_config, write_pairs, write_sentences
from tests.tiny_decoders import make_tiny_decoder

STEPS = 4
RESUME = ["--resume_from_checkpoint", "last"]
CONSTANT = ["--lr_scheduler_type", "constant"]


def make_models(folder: Path) -> None:
    """Towers, a generator and a decoder with their tokenizers."""
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    tokenizer = BertTokenizerFast(vocab=str(vocabulary), model_max_length=62)
    models = {name: BertModel(tiny_config("bert")) for name in ("a", "b", "c")}
    models |= {name: RobertaModel(tiny_config("roberta")) for name in ("ra", "rb", "rc")}
    models["generator"] = AutoModelForMaskedLM.from_config(tiny_config("bert", layers=2))
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    make_tiny_decoder(folder, "llama")


def roads(folder: Path, device: str) -> dict[str, list[str]]:
    """The commands by name."""
    text, dev = write_sentences(folder / "text.txt"), write_pairs(folder / "dev.tsv")
    run = [
        *("--train_file", str(text), "--dev_file", f"dev={dev}", "--max_steps", str(STEPS), "--logging_steps", "1"),
        *("--max_seq_length", "32", "--bf16", "false"),  # by itself it would follow the processor, on the CPU alone
        *("--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps", "--save_steps", "2"),
        *("--per_device_train_batch_size", "8", "--learning_rate", "1e-4", "--disable_tqdm", "true"),
    ]

    def train(name: str, *flags: str) -> list[str]:
        return ["train", *run, *flags, "--output_dir", str(folder / name)]

    def towers(a: str, b: str, c: str) -> list[str]:
        return [
            *("--tower_a", str(folder / a), "--tower_b", str(folder / b), "--constraint", str(folder / c)),
            *("--cascade_start_layer", "3", "--constraint_layers", "1", "--cascade_dropout", "0"),
            *("--constraint_dropout", "0"),
        ]

    single, decoder = ["--model", str(folder / "a")], str(folder / "llama")
    adapter = ["--lora_r", "2", "--lora_dropout", "0"]
    diffcse = [*single, "--generator", str(folder / "generator")]
    of_decoder = ["--model", decoder, "--pooling", "last_token", *adapter]
    distill = ["distill", *run, "--teacher", str(folder / "cacse" / "export"), "--student", str(folder / "a")]
    resumed = {
        "simcse_half": train("simcse_half", *single),
        "cacse_half": train("cacse_half", *towers("a", "b", "c")),
        "diffcse_half": train("diffcse_half", *diffcse),
        "decoder_half": train("decoder_half", *of_decoder),
        "distill_half": [*distill, "--output_dir", str(folder / "distill_half")],
    }
    encoder = str(folder / "simcse" / "export" / "encoder")
    return {
        "cacse": train("cacse", *towers("a", "b", "c")),
        "cacse_roberta": train("cacse_roberta", *towers("ra", "rb", "rc")),
        "simcse": train("simcse", *single),
        "simcse_cached": train("simcse_cached", *single, "--mini_batch_size", "3"),
        "simcse_buckets": train("simcse_buckets", *single, "--length_buckets", "3"),
        "simcse_mlm": train("simcse_mlm", "--model", str(folder / "generator"), "--mlm_weight", "0.1"),
        "simcse_bf16": train("simcse_bf16", *single, "--bf16", "true"),
        "simcse_mean": train("simcse_mean", *single, "--pooling", "mean"),
        "diffcse": train("diffcse", *diffcse),
        "decoder": train("decoder", *of_decoder),
        "distill": [*distill, "--output_dir", str(folder / "distill")],
        **{name: [*words, *RESUME] for name, words in resumed.items()},
        "export": [
            *("export", "--checkpoint", str(folder / "cacse"), "--dev_file", f"dev={dev}"),
            *("--output_dir", str(folder / "exported")),
        ],
        "encode": [
            *("encode", "--model", encoder, "--device", device, "--input", str(text)),
            *("--output", str(folder / "vectors.npy")),
        ],
        "search": [
            *("search", "--model", encoder, "--device", device, "--corpus", str(text), "--query", "a red dog"),
            *("--top_k", "3"),
        ],
        "evaluate": [
            *("evaluate", "--model", encoder, "--device", device, "--tasks", "STS13", "MRPC", "--mode", "fasttest"),
            *("--data_dir", os.environ["SENTEVAL_SAMPLE"], "--output_dir", str(folder / "results")),
        ],
    }


def numbers(name: str, folder: Path) -> dict[str, Any]:
    """What a road has measured."""
    report = folder / name / "training_report.json"
    if report.is_file():
        found = json.loads(report.read_text())
        losses = [entry["loss"] for entry in found["log_history"] if "loss" in entry]
        return {"losses": losses, "baseline": found["baseline"], "exported": found["exported"]}
    if name == "encode" and (folder / "vectors.npy").is_file():
        import numpy as np

        return {"vectors": np.load(folder / "vectors.npy").round(4).tolist()}
    return {}


def run_all(device: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Each road's name, exit code, passes by `FlatRows`, and numbers."""
    from cacse_trainer.cli.main import main as command
    from cacse_trainer.compute import packing

    torch.manual_seed(0)
    make_models(folder)
    for name, arguments in roads(folder, device).items():
        if arguments[-len(RESUME) :] == RESUME:  # half of a run first
            command([*arguments[: -len(RESUME)], *CONSTANT, "--max_steps", str(STEPS // 2), "--export", "false"])
            (folder / name / "training_report.json").unlink(missing_ok=True)
            arguments = [*arguments, *CONSTANT, "--resume_with_changes"]  # of the length
        with patch.object(packing, "FlatRows", wraps=packing.FlatRows) as flat:
            code = command(arguments)
        yield {"road": name, "code": code, "flat": flat.call_count, **numbers(name, folder)}


def main(device: str, folder: Path) -> None:
    """Run all roads."""
    if device != "cpu":
        from tests.devices.other_device import register

        register()
    for line in run_all(device, folder):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
