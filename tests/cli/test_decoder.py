"""The road of a decoder: train, resume, best adapter, merge, export, evaluate; adapters of others; labelled pairs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from cacse_trainer import SentenceEmbeddingModel, SentenceEncoder
from cacse_trainer.cli.main import main
from cacse_trainer.errors import UserError
from tests.tiny_decoders import make_tiny_decoder
from tests.tolerances import assert_near

PROMPT = 'The representative word for sentence {text} is:"'
TEXTS = ["A man is playing a guitar.", "", "Rain!", "it's 5 o'clock (again)", "and so on " * 300]
STATE = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """``decoder(kind)`` → folder of a tiny decoder."""
    folder = tmp_path_factory.mktemp("decoders")
    return lambda kind="llama": make_tiny_decoder(folder, kind)


def arguments(model: str, output: Path, *more: str) -> list[str]:
    return [
        *("train", "--model", model, "--prompt_template", PROMPT, "--append_eos", "--pooling", "last_token"),
        *("--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj", "--learning_rate", "3e-3"),
        *("--train_file", "sample:sentences.txt", "--dev_file", "sample=sample:dev.tsv", "--max_seq_length", "32"),
        *("--max_steps", "4", "--eval_steps", "2", "--save_total_limit", "2", "--bf16", "false"),
        *("--per_device_train_batch_size", "8", "--lr_scheduler_type", "constant", "--logging_steps", "1"),
        *("--report_to", "none", "--use_cpu", "true", "--disable_tqdm", "true", "--output_dir", str(output), *more),
    ]


@pytest.fixture(scope="module")
def finished(decoder, tmp_path_factory) -> Path:
    """A finished run of the tiny LLaMA."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(arguments(decoder(), folder)) == 0
    return folder


def check_road(folder: Path, bidirectional: bool = False) -> None:
    """What a finished run left: an adapter, the best one, and an export with the same vectors everywhere."""
    report = json.loads((folder / "training_report.json").read_text())
    best = folder / f"checkpoint-{report['best_step']}"
    assert (best / STATE).is_file() and not (best / "model.safetensors").exists()
    kept, reloaded = load_file(best / STATE), load_file(folder / STATE)
    assert all(torch.equal(kept[name], tensor) for name, tensor in reloaded.items())
    exported = folder / "export" / "encoder"
    vectors = SentenceEncoder(exported).vectors(TEXTS)
    assert_near(vectors, SentenceEncoder(folder).vectors(TEXTS))  # base and adapter
    transformer = pytest.importorskip("sentence_transformers").SentenceTransformer(str(exported), device="cpu")
    assert_near(transformer.encode(TEXTS), vectors)
    plain = AutoModel.from_pretrained(exported)
    assert (type(plain) is SentenceEmbeddingModel) == bidirectional
    assert not any("lora" in name for name, _ in plain.named_parameters())
    assert report["exported"]["encoder"]["sample"] == pytest.approx(report["best"], abs=0.1)


def test_the_road_of_a_llama(finished):
    check_road(finished)
    card = (finished / "export" / "encoder" / "README.md").read_text()
    assert "adapter merged" in card and PROMPT in card and "EOS token" in card


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi"])
def test_the_road_of_other_kinds(decoder, tmp_path, kind):
    assert main(arguments(decoder(kind), tmp_path / "run")) == 0
    check_road(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("llama", ["--bidirectional_start_layer", "1", "--pooling", "mean"]),
        ("qwen2", ["--bidirectional_start_layer", "2", "--pooling", "weighted_mean", "--base_dtype", "bfloat16"]),
        ("gemma", ["--bidirectional_start_layer", "0", "--gradient_checkpointing", "true", "--mini_batch_size", "5"]),
    ],
)
def test_the_road_of_bidirectional_layers(decoder, tmp_path, kind, flags):
    """Also with other poolings, frozen weights in bfloat16, checkpointing and gradient caching."""
    assert main(arguments(decoder(kind), tmp_path / "run", *flags)) == 0
    check_road(tmp_path / "run", bidirectional=True)
    loaded = AutoModel.from_pretrained(tmp_path / "run" / "export" / "encoder")
    assert loaded.config.bidirectional_start_layer == int(flags[1])


REMOTE = """from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel


class MineConfig(LlamaConfig):
    model_type = "mine"


class MineModel(LlamaModel):
    config_class = MineConfig


class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
"""


@pytest.mark.slow
def test_code_that_comes_with_the_checkpoint(decoder, tmp_path, capsys):
    """MiniCPM's case: nothing of it runs unless the user says so; adapter, merge and export are as everywhere."""
    base, run = tmp_path / "base", tmp_path / "run"
    shutil.copytree(decoder(), base)
    (base / "mine.py").write_text(REMOTE)
    config = json.loads((base / "config.json").read_text())
    classes = {"AutoConfig": "Config", "AutoModel": "Model", "AutoModelForCausalLM": "ForCausalLM"}
    auto = {name: f"mine.Mine{kind}" for name, kind in classes.items()}
    config.update(model_type="mine", architectures=["MineForCausalLM"], auto_map=auto)
    (base / "config.json").write_text(json.dumps(config))
    assert main(arguments(str(base), run)) == 2
    assert "custom code" in capsys.readouterr().err
    assert main(arguments(str(base), run, "--trust_remote_code")) == 0
    with pytest.raises(UserError, match="custom code"):
        SentenceEncoder(run)
    vectors = SentenceEncoder(run, trust_remote_code=True).vectors(TEXTS)
    exported = SentenceEncoder(run / "export" / "encoder", trust_remote_code=True).vectors(TEXTS)
    assert_near(vectors, exported)
    out = ["export", "--checkpoint", str(run), "--output_dir", str(tmp_path / "again")]
    assert main(out) == 2 and main([*out, "--trust_remote_code"]) == 0
    assert "trust_remote_code=True" in (tmp_path / "again" / "encoder" / "README.md").read_text()


def test_resuming_is_exact(decoder, finished, tmp_path):
    """Stopped after two steps and resumed, a run ends with the adapter of one that ran through."""
    run = tmp_path / "run"
    assert main(arguments(decoder(), run, "--max_steps", "2")) == 0
    (run / "training_report.json").unlink()
    changed = ["--resume_from_checkpoint", "last", "--resume_with_changes"]  # its length
    assert main(arguments(decoder(), run, *changed)) == 0
    through, resumed = (load_file(folder / "checkpoint-4" / STATE) for folder in (finished, run))
    start = load_file(finished / "checkpoint-2" / STATE)
    assert through.keys() == resumed.keys()
    for name, tensor in through.items():
        assert torch.equal(tensor, resumed[name]), name
        assert not torch.equal(tensor, start[name]), name


def test_other_settings_do_not_resume(decoder, finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "training_report.json").unlink()
    flags = ["--resume_from_checkpoint", "last", "--prompt_template", "other {text}"]
    assert main(arguments(decoder(), tmp_path / "run", *flags)) == 2
    assert "prompt_template was" in capsys.readouterr().err


def test_a_second_stage_goes_on_with_the_adapter(decoder, finished, tmp_path):
    """BeLLM's way: another objective, the first stage's adapter, at a rate of 0 to see what was loaded."""
    flags = ["--adapter", str(finished), "--learning_rate", "0", "--max_steps", "2", "--objective", "nt_xent"]
    command = arguments(decoder(), tmp_path / "run", *flags)
    cut = command.index("--lora_r")
    assert main(command[:cut] + command[command.index("--learning_rate") :]) == 0
    before, after = load_file(finished / STATE), load_file(tmp_path / "run" / STATE)
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


def test_a_new_adapter_over_the_merged_one(finished, tmp_path, capsys):
    """``lora_r`` beside ``adapter`` is refused; as it says, over the earlier run's export it is a new one."""
    run = arguments(str(finished / "export" / "encoder"), tmp_path / "run", "--learning_rate", "0", "--max_steps", "2")
    assert main([*run, "--adapter", str(finished)]) == 2
    assert "give as model the earlier run's export/encoder" in capsys.readouterr().err
    assert main([*run, "--export", "false"]) == 0
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(finished / "export" / "encoder") and config["r"] == 4
    assert_near(SentenceEncoder(tmp_path / "run").vectors(TEXTS), SentenceEncoder(finished).vectors(TEXTS))


def test_adapters_of_others(decoder, finished, tmp_path, senteval_sample, capsys):
    """A folder as peft publishes them: its own base by default, or the one given; in evaluate, encode and Python."""
    published = tmp_path / "published"
    published.mkdir()
    for name in (STATE, "adapter_config.json"):
        shutil.copyfile(finished / name, published / name)
    expected = SentenceEncoder(finished).vectors(TEXTS)
    how = {"pooling": "last_token", "prompt_template": PROMPT, "append_eos": True}
    for which in ({"adapter": published}, {"path": published}, {"path": decoder(), "adapter": str(published)}):
        encoder = SentenceEncoder(**{name: str(value) for name, value in which.items()}, **how)
        assert_near(encoder.vectors(TEXTS), expected)
    assert encoder.settings()["prompt_template"] == PROMPT
    flags = ["--adapter", str(published), "--pooling", "last_token", "--prompt_template", PROMPT, "--append_eos"]
    out = tmp_path / "out"
    scoring = ["--tasks", "STS12", "--data_dir", str(senteval_sample), "--output_dir", str(out), "--device", "cpu"]
    assert main(["evaluate", *flags, *scoring, "--disable_tqdm"]) == 0
    settings = json.loads((out / "results.json").read_text())["settings"]
    assert (settings["prompt_template"], settings["append_eos"]) == (PROMPT, True)
    text = tmp_path / "texts.txt"
    text.write_text("A man is playing a guitar.\nRain!\n")
    assert main(["encode", *flags, "--input", str(text), "--output", str(out / "v.npy"), "--no_normalize"]) == 0
    assert_near(np.load(out / "v.npy"), expected[[0, 2]])
    kept = load_file(published / STATE)
    kept.pop(min(kept))
    save_file(kept, published / STATE)
    assert main(["evaluate", *flags, *scoring]) == 2
    assert "1 of its weights are missing" in capsys.readouterr().err


def test_labelled_pairs(tiny_towers, dev_file, tmp_path, capsys):
    """AnglE's format A: graded labels rank, and need a threshold to be positive in the batch."""
    command = [
        *("train", "--model", tiny_towers("bert")[0], "--pooling", "mean", "--train_file", str(dev_file)),
        *("--dev_file", f"stsb={dev_file}", "--max_steps", "20", "--eval_strategy", "steps", "--eval_steps", "10"),
        *("--save_strategy", "steps", "--save_steps", "10", "--metric_for_best_model", "stsb_spearman"),
        *("--load_best_model_at_end", "true", "--per_device_train_batch_size", "12", "--learning_rate", "3e-3"),
        *("--bf16", "false"),
        *("--report_to", "none", "--use_cpu", "true", "--disable_tqdm", "true", "--logging_steps", "10"),
    ]
    assert main([*command, "--output_dir", str(tmp_path / "a"), "--objective", "angle_combined"]) == 2
    assert "set positive_threshold" in capsys.readouterr().err
    assert main([*command, "--output_dir", str(tmp_path / "a"), "--objective", "info_nce"]) == 2
    assert "objective info_nce compares pairs" in capsys.readouterr().err
    for name, flags in (
        ("cosent", ["--objective", "cosent"]),
        ("angle", [*("--objective", "angle_combined", "--positive_threshold", "4"), "--learning_rate", "1e-3"]),
        ("columns", ["--objective", "cosent", "--text_columns", "sentence1", "sentence2", "--label_column", "score"]),
    ):
        assert main([*command, "--output_dir", str(tmp_path / name), *flags]) == 0
        report = json.loads((tmp_path / name / "training_report.json").read_text())
        assert report["best"] > report["baseline"] + 5  # it is trained on the dev set itself
        assert report["data"]["kept"] == 24


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--pooling", "cls"], "first token sees nothing"),
        (["--prompt_template", "none"], "must hold {text} exactly once"),
        (["--bidirectional_start_layer", "9"], "within 0 and 3, the number of layers"),
        (["--lora_target_modules", "query"], "query"),
        (["--lora_r", "0"], "lora_r must be at least 1"),
        (["--lora_init", "other"], "gaussian or default"),
        (["--adapter", "nowhere"], "has no effect with adapter"),
        (["--base_dtype", "float64"], "float32 or bfloat16"),
        (["--max_seq_length", "12"], "leaves no room"),
        (["--objective", "bellm"], "triplets (three columns), got pairs"),
        (["--label_column", "score"], "name their two columns"),
    ],
)
def test_wrong_settings_are_one_line(decoder, tmp_path, capsys, flags, words):
    assert main(arguments(decoder(), tmp_path / "run", *flags)) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert words in said[-1] and said[-1].startswith("error: ")
    assert not (tmp_path / "run" / "training_report.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("flag", ["--load_in_4bit", "--load_in_8bit"])
def test_quantisation_needs_a_gpu(decoder, tmp_path, capsys, flag):
    assert main(arguments(decoder(), tmp_path / "run", flag)) == 2
    assert f"{flag[2:]} needs a CUDA GPU, and there is none" in capsys.readouterr().err


def test_settings_of_a_single_tower_elsewhere(tiny_towers, text_file, dev_file, tmp_path, capsys):
    first, second, _ = tiny_towers("bert")
    command = ["train", "--tower_a", first, "--tower_b", second, "--train_file", str(text_file)]
    command += ["--dev_file", f"stsb={dev_file}", "--output_dir", str(tmp_path / "run"), "--lora_r", "4"]
    assert main(command) == 2
    assert "lora_r has no effect with CACSE" in capsys.readouterr().err
    single = ["train", "--model", first, "--train_file", str(text_file), "--dev_file", f"stsb={dev_file}"]
    single += ["--output_dir", str(tmp_path / "run")]
    assert main([*single, "--lora_r", "4"]) == 2
    assert "without a projection" in capsys.readouterr().err
    assert main([*single, "--base_dtype", "bfloat16"]) == 2
    assert "for frozen weights" in capsys.readouterr().err
