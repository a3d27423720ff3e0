"""A trained adapter as the folder that is shared: peft's classes find it, this package reads all that it says."""

import json
import warnings

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM

from cacse_trainer import SentenceEncoder
from cacse_trainer.cli import evaluate, export, train
from cacse_trainer.cli.common import run
from tests.tiny_decoders import make_tiny_decoder
from tests.tolerances import assert_near

PROMPT = 'The word for {text} is:"'
TEXTS = ["A man is playing a guitar.", "Rain!"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run of a tiny decoder with an adapter and bidirectional layers, and its base."""
    folder = tmp_path_factory.mktemp("adapter")
    base = make_tiny_decoder(folder, "llama")
    flags = [
        *("--model", base, "--prompt_template", PROMPT, "--pooling", "mean", "--bidirectional_start_layer", "1"),
        *("--lora_r", "2", "--lora_target_modules", "q_proj", "--learning_rate", "1e-1", "--max_steps", "2"),
        *("--train_file", "sample:sentences.txt", "--dev_file", "sample=sample:dev.tsv", "--max_seq_length", "32"),
        *("--eval_steps", "2", "--per_device_train_batch_size", "8", "--bf16", "false", "--use_cpu", "true"),
        *("--lr_scheduler_type", "constant", "--disable_tqdm", "true", "--output_dir", str(folder / "run")),
    ]
    assert run(train.main, [*flags, "--export", "false"]) == 0
    return folder, base


def test_the_shared_adapter_is_active_everywhere(place, capsys):
    folder, base = place
    assert run(export.main, ["--folder", str(folder / "run"), "--adapter", "--hub_license", "mit"]) == 0
    shared = folder / "run" / "export" / "adapter"
    assert str(shared) in capsys.readouterr().out
    trained = SentenceEncoder(folder / "run").vectors(TEXTS)
    encoder = SentenceEncoder(shared)
    assert_near(encoder.vectors(TEXTS), trained)
    assert encoder.pooling == "mean"
    rows = encoder.tokenizer(TEXTS, return_tensors="pt", padding=True)
    inputs = {name: rows[name] for name in ("input_ids", "attention_mask")}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        whole = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), shared)
        bare = PeftModel.from_pretrained(AutoModel.from_pretrained(base), shared)
    states = load_file(shared / "adapter_model.safetensors")
    moved = next(tensor for name, tensor in states.items() if "lora_B" in name)
    assert moved.abs().max() > 0
    with torch.inference_mode():
        plain = AutoModel.from_pretrained(base)(**inputs).last_hidden_state
        found = bare(**inputs).last_hidden_state
        hidden = whole(**inputs, output_hidden_states=True).hidden_states[-1]
    assert (found - plain).abs().max() > 1e-3
    assert_near(hidden, found)


def test_its_config_and_card_say_how_it_is_read(place):
    folder, base = place
    where = ["--output_dir", str(folder / "out"), "--hub_license", "other: mine"]
    assert run(export.main, ["--folder", str(folder / "run"), "--adapter", *where]) == 0
    config = json.loads((folder / "out" / "config.json").read_text())
    assert (config["pooling"], config["prompt_template"], config["bidirectional_start_layer"]) == ("mean", PROMPT, 1)
    assert json.loads((folder / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == base
    card = (folder / "out" / "README.md").read_text()
    for words in ("llama", PROMPT, "| pooling | mean |", "from 1 on (from 0)", "library_name: peft", "{li2024bellm,"):
        assert words in card
    data = ModelCard(card).data.to_dict()
    assert data["license"] == "other: mine" and "base_model" not in data  # a folder of this machine is none of the hub


@pytest.mark.parametrize(
    ("named", "code"),
    [
        (["--model", "RUN"], 0),
        (["--adapter", "RUN", "--bidirectional_start_layer", "1"], 0),
        (["--adapter", "RUN", "--model", "BASE", "--prompt_template", PROMPT], 0),
        (["--adapter", "RUN", "--bidirectional_start_layer", "2"], 2),
    ],
)
def test_a_run_with_bidirectional_layers_is_evaluated_from_its_folder(place, tmp_path, capsys, named, code):
    folder, base = place
    words = {"RUN": str(folder / "run"), "BASE": base}
    where = ["--dev_file", "sample=sample:dev.tsv", "--output_dir", str(tmp_path / "out"), "--disable_tqdm"]
    assert run(evaluate.main, [*(words.get(word, word) for word in named), *where, "--device", "cpu"]) == code
    if code:
        assert "it was trained with 1; leave it out" in capsys.readouterr().err


def test_a_run_without_an_adapter_has_none_to_share(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"model_type": "bert"}')  # of a base that lies beside its adapter
    (tmp_path / "run" / "adapter_config.json").write_text("{}")
    assert run(export.main, ["--folder", str(tmp_path / "run"), "--adapter"]) == 2
    assert "holds no adapter that was trained here" in capsys.readouterr().err
    assert run(export.main, ["--checkpoint", str(tmp_path), "--adapter", "--output_dir", "x"]) == 2
