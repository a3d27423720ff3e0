"""LoRA fine-tuning and merging of a tiny LLaMA: what moves, what is learned, resume, merge, wrong input."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cacse_trainer.errors import UserError
from cacse_trainer.instruct import merging
from cacse_trainer.instruct.arguments import InstructModelArguments
from cacse_trainer.instruct.dataset import TRAIN, VALIDATION, write_records
from cacse_trainer.instruct.training import train_adapter
from cacse_trainer.settings.arguments import CommonTrainingArguments
from tests.tolerances import assert_near, noise

peft = pytest.importorskip("peft")
SENTENCE = "Sentence 1: a man is playing the guitar"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Records with two answers, told apart by one word."""
    folder = tmp_path_factory.mktemp("data")
    made = [
        {"instruction": "Rate.", "input": f"the {word} dog {i}", "output": score}
        for i in range(12)
        for word, score in (("red", "0.0"), ("blue", "5.0"))
    ]
    write_records(folder / TRAIN, made[:20])
    write_records(folder / VALIDATION, made[20:])
    return folder


@pytest.fixture
def model_args(tiny_llama):
    """LoRA on all attention layers of the tiny LLaMA."""
    return InstructModelArguments(
        model=tiny_llama, max_seq_length=256, lora_target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]
    )


def training_args(folder, **changes) -> CommonTrainingArguments:
    fields = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 5,
        "max_steps": 8,
        "learning_rate": 1e-2,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "save_strategy": "steps",
        "save_steps": 4,
        "save_total_limit": 3,
        "load_best_model_at_end": True,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "report_to": "none",
        **changes,
    }
    return CommonTrainingArguments(**fields)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data, tiny_llama):
    """A trained adapter's folder, and the report."""
    folder = tmp_path_factory.mktemp("out") / "train"
    args = InstructModelArguments(
        model=tiny_llama, max_seq_length=256, lora_target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]
    )
    return folder, train_adapter(args, training_args(folder), data, folder)


def test_the_loss_falls_and_the_report_says_so(trained, data, tiny_llama):
    folder, report = trained
    assert report["steps"] == 8 and report["records"] == 20 and report["records_too_long"] == 0
    assert report["kept"] < report["baseline"] - 1 and report["kept_step"] in (4, 8)
    assert json.loads((folder / "training_report.json").read_text())["kept"] == report["kept"]
    # line break, three characters at most, end: "\n0.0</s>" of every record
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    answer = len(tokenizer("\n0.0", add_special_tokens=False)["input_ids"]) + 1
    assert report["answer_tokens"] == 20 * answer
    assert (folder / "training_curves.png").is_file()


def test_the_reported_loss_is_that_of_the_answers(trained, data, tiny_llama):
    """Computed by hand: −log p of the answers' tokens under base and adapter, mean over all of them."""
    folder, report = trained
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), str(folder)).eval()
    losses = []
    for line in (data / VALIDATION).read_text().splitlines():
        record = json.loads(line)
        prompt = (
            "Below is an instruction that describes a task, paired with an input that provides further context. Write "
            "a response that appropriately completes the request.\n\n### Instruction:\n"
            f"{record['instruction']}\n\n### Input:\n{record['input']}\n\n### Response:"
        )
        before = len(tokenizer(prompt)["input_ids"])
        ids = torch.tensor([[*tokenizer(f"{prompt}\n{record['output']}")["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, before - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, ids[0, before:], reduction="none"))
    assert torch.cat(losses).mean().item() == pytest.approx(report["kept"], abs=1e-4 + noise(report["kept"]))


def test_only_the_adapter_moves(trained, tiny_llama):
    folder, report = trained
    adapter = load_file(folder / "adapter_model.safetensors")
    assert adapter and all("lora_" in name for name in adapter)
    assert report["trainable_parameters"] == sum(tensor.numel() for tensor in adapter.values())
    assert all(tensor.abs().max() > 0 for name, tensor in adapter.items() if "lora_B" in name)  # they start at 0
    assert not list(folder.glob("model*.safetensors"))
    checkpoint = next(folder.glob("checkpoint-*"))
    assert (checkpoint / "adapter_model.safetensors").is_file() and not (checkpoint / "model.safetensors").is_file()


def test_a_resumed_run_equals_the_whole_one(trained, data, model_args, tmp_path):
    """Also where a killed run has left a checkpoint without its last file."""
    whole, _ = trained
    folder = tmp_path / "train"
    shutil.copytree(whole, folder)
    (folder / "training_report.json").unlink()
    (folder / "checkpoint-8" / "trainer_state.json").unlink()
    (folder / "adapter_model.safetensors").unlink()
    report = train_adapter(model_args, training_args(folder), data, folder)
    assert report["steps"] == 8
    expected = load_file(whole / "adapter_model.safetensors")
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name
    (folder / "training_report.json").unlink()  # killed after its last checkpoint: no step is left
    assert train_adapter(model_args, training_args(folder), data, folder)["steps"] == 8
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name
    with pytest.raises(UserError, match=r"learning_rate was 0\.01, is 0\.02"):
        train_adapter(model_args, training_args(folder, learning_rate=2e-2), data, folder)


def test_merged_model_is_base_plus_adapter(trained, model_args, tmp_path, tiny_llama):
    folder, _ = trained
    merged = tmp_path / "merge"
    (tmp_path / ".merge.partial").mkdir()  # of a killed run
    report = merging.merge_adapter_folder(model_args, folder, merged)
    assert report["merge_difference"] < noise(report["largest_logit"]) and report["reload_difference"] == 0
    plain = AutoModelForCausalLM.from_pretrained(merged).eval()
    assert type(plain).__name__ == "LlamaForCausalLM" and not (merged / "adapter_config.json").exists()
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    before = base.eval()(input_ids=torch.tensor([[1, 5, 9, 20]])).logits
    adapted = peft.PeftModel.from_pretrained(base, str(folder)).eval()
    tokenizer = AutoTokenizer.from_pretrained(merged)
    with torch.no_grad():
        for text in (SENTENCE, "the red dog 3", "0.0"):
            inputs = tokenizer(text, return_tensors="pt")
            assert_near(plain(**inputs).logits, adapted(**inputs).logits)
        assert (plain(input_ids=torch.tensor([[1, 5, 9, 20]])).logits - before).abs().max() > 0.1
    original = AutoTokenizer.from_pretrained(tiny_llama)
    assert tokenizer.get_vocab() == original.get_vocab() and tokenizer.pad_token == original.pad_token
    assert tokenizer.chat_template == original.chat_template
    assert {path.name for path in tmp_path.iterdir()} == {"merge"}
    card = (merged / "README.md").read_text()
    assert "base_model" not in card and str(tmp_path.parent) not in card  # a folder is nobody else's base model


def test_merging_in_bfloat16(trained, model_args, tmp_path):
    model_args.merged_dtype = "bfloat16"
    report = merging.merge_adapter_folder(model_args, trained[0], tmp_path / "merge")
    assert report["dtype"] == "bfloat16" and report["reload_difference"] == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merge").dtype == torch.bfloat16


def test_a_wrong_merge_is_not_written(trained, model_args, tmp_path, monkeypatch):
    """Merged weights that are not base and adapter: an older folder stays as it is."""
    (tmp_path / "merge").mkdir()
    (tmp_path / "merge" / "config.json").write_text("{}")
    merge = peft.LoraModel.merge_and_unload

    def spoiled(self, **kwargs):
        model = merge(self, **kwargs)
        model.get_output_embeddings().weight.data += 0.01
        return model

    monkeypatch.setattr(peft.LoraModel, "merge_and_unload", spoiled)
    with pytest.raises(merging.MergeError, match="nothing is written"):
        merging.merge_adapter_folder(model_args, trained[0], tmp_path / "merge")
    assert (tmp_path / "merge" / "config.json").read_text() == "{}"
    assert {path.name for path in tmp_path.iterdir()} == {"merge"}


def test_gradient_checkpointing_gives_the_same_adapter(data, model_args, tmp_path):
    found = []
    for has_checkpointing in (False, True):
        folder = tmp_path / str(has_checkpointing)
        # plain descent: Adam makes whole steps of a gradient that is rounding only
        flags = {"max_steps": 2, "eval_steps": 2, "save_steps": 2, "optim": "sgd"}
        args = training_args(folder, gradient_checkpointing=has_checkpointing, **flags)
        train_adapter(model_args, args, data, folder)
        found.append(load_file(folder / "adapter_model.safetensors"))
    assert_near(*(torch.cat([tensor.flatten() for tensor in state.values()]) for state in found))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": None}, "--model"),
        ({"model": "./nowhere"}, "model ./nowhere"),
        ({"model": "{bert}"}, "no causal language model"),
        ({"lora_target_modules": ["query"]}, "lora_target_modules"),
        ({"max_seq_length": 8}, "all 20 records"),
        ({"max_seq_length": 4096}, "beyond the 1024 tokens"),
        ({"prompt_format": "chatty"}, "prompt_format must be one of alpaca, chat"),
        ({"lora_r": 0}, "lora_r"),
    ],
)
def test_wrong_settings(data, tiny_llama, tiny_towers, tmp_path, changes, words):
    given = {"model": tiny_llama, "max_seq_length": 256, **changes}
    if given["model"] == "{bert}":
        tokenizer = AutoTokenizer.from_pretrained(tiny_towers("bert")[0])
        tokenizer.add_special_tokens({"eos_token": "[SEP]"})
        given["model"] = shutil.copytree(tiny_towers("bert")[0], tmp_path / "bert").as_posix()
        tokenizer.save_pretrained(given["model"])
        given["max_seq_length"] = 32
    with pytest.raises(UserError) as caught:
        train_adapter(InstructModelArguments(**given), training_args(tmp_path / "run"), data, tmp_path / "run")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_merge_without_an_adapter(model_args, tmp_path):
    with pytest.raises(UserError, match="run the stage train first"):
        merging.merge_adapter_folder(model_args, tmp_path, tmp_path / "merge")
