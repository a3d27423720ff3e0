"""Pushes over real HTTP to a stand-in of the hub on 127.0.0.1, in processes of their own that know no other hub."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from cacse_trainer.cli import train
from cacse_trainer.cli.common import run
from cacse_trainer.encoding import hub as pushing
from cacse_trainer.encoding.hub import HubTarget, list_files, push_folders
from cacse_trainer.encoding.model_card import CardFacts, render_card
from cacse_trainer.files import RECORD, write_json
from tests.conftest import ROOT
from tests.standin_hub import TOKEN
from tests.tiny_decoders import make_tiny_decoder


@pytest.fixture(scope="module")
def hub():
    """The stand-in's address."""
    script = [sys.executable, str(Path(__file__).parent.parent / "standin_hub.py")]
    with subprocess.Popen(script, stdout=subprocess.PIPE, text=True) as server:
        yield server.stdout.readline().strip()
        server.terminate()


@pytest.fixture
def shell(hub, tmp_path):
    """``shell(words, token=…)`` → a finished Python process that talks to the stand-in."""

    def start(*words, token=TOKEN, endpoint=hub):
        environment = {
            **os.environ,
            "HF_ENDPOINT": endpoint,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'SentEval'}",
        }
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            environment.pop(name, None)
        if token is not None:
            environment["HF_TOKEN"] = token
        return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, timeout=170)

    return start


def stored(hub) -> dict:
    with urllib.request.urlopen(urllib.request.Request(f"{hub}/standin/files", method="POST", data=b"")) as answer:
        return json.load(answer)


@pytest.fixture
def folder(tmp_path, tiny_towers, tiny_tokenizer, dev_file) -> Path:
    """An exported student."""
    from cacse_trainer.data import load_pairs
    from cacse_trainer.encoding.model_card import CardFacts
    from cacse_trainer.export.encoders import export
    from cacse_trainer.models import StudentModel

    model = StudentModel.from_encoder(tiny_towers("bert")[0])
    facts = CardFacts(title="tiny", what="", license="mit", base_models=["bert-base-uncased", "some/model"])
    export(model, tiny_tokenizer, tmp_path, facts, {"stsb": load_pairs(dev_file)}, name="student")
    return tmp_path / "student"


UPLOAD = """
import sys
from huggingface_hub import HfApi
name, revision, path = sys.argv[1:]
HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo=path, repo_id=name, revision=revision)
"""
LOAD = """
import sys, numpy as np
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer
name, folder, revision = sys.argv[1:]
words = ["a man in the park", "the dog"]
local = SentenceTransformer(folder, device="cpu").encode(words)
assert np.abs(SentenceTransformer(name, device="cpu", revision=revision).encode(words) - local).max() == 0
AutoModel.from_pretrained(name, revision=revision), AutoTokenizer.from_pretrained(name, revision=revision)
"""


@pytest.mark.slow
def test_pushed_and_loaded_again(hub, shell, folder):
    """A private repository on a branch; then a second push that leaves no file of the first; then loaded by name.

    A file that is no push's stays.
    """
    push = ["-m", "cacse_trainer.cli.export", "--folder", str(folder), "--push_to_hub", "--hub_model_id", "me/tiny"]
    extra = folder / "2_Dense" / "config.json"
    extra.parent.mkdir()
    extra.write_text("{}")
    done = shell(*push, "--hub_private_repo", "--hub_revision", "v2")
    assert done.returncode == 0, done.stderr
    assert "2_Dense/config.json" in stored(hub)["me/tiny"]["v2"]
    assert shell("-c", UPLOAD, "me/tiny", "v2", "data/train.csv").returncode == 0
    extra.unlink()
    extra.parent.rmdir()
    assert shell(*push, "--hub_revision", "v2").returncode == 0
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(stored(hub)["me/tiny"]["v2"]) == {".gitattributes", "data/train.csv", *files}
    loaded = shell("-c", LOAD, "me/tiny", str(folder), "v2")
    assert loaded.returncode == 0, loaded.stderr[-2000:]
    assert shell("-c", LOAD, "me/tiny", str(folder), "v2", token=None).returncode != 0  # it is private


@pytest.mark.slow
def test_refused_broken_and_unreachable(hub, shell, folder):
    """Each says what happened and how to go on; the folder stays whole, and the hub takes no half commit."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    push = ["-m", "cacse_trainer.cli.export", "--folder", str(folder), "--push_to_hub", "--hub_model_id"]
    refused = shell(*push, "me/refused", token="hf_wrong")
    assert refused.returncode == 2 and "the token was refused (401)" in refused.stderr
    forbidden = shell(*push, "me/refuse-me")
    assert forbidden.returncode == 2 and "the token was refused (403)" in forbidden.stderr
    unreachable = shell(*push, "me/x", endpoint="http://127.0.0.1:9")
    assert unreachable.returncode == 1 and "cannot be reached" in unreachable.stderr
    broken = shell(*push, "me/break-off")
    assert broken.returncode == 1 and "broke off" in broken.stderr and f"--folder {folder}" in broken.stderr
    for process in (refused, forbidden, unreachable, broken):
        assert "Traceback" not in process.stderr
    assert stored(hub)["me/break-off"]["main"] == [".gitattributes"]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_training_run_pushes_its_export_and_no_checkpoint(hub, shell, tmp_path, tiny_towers, text_file, dev_file):
    a, b, c = tiny_towers("bert")
    run = [
        *("-m", "cacse_trainer.cli.train", "--tower_a", a, "--tower_b", b, "--constraint", c),
        *("--cascade_start_layer", "2", "--constraint_layers", "1", "--train_file", str(text_file), "--max_steps", "2"),
        *("--dev_file", f"stsb={dev_file}", "--per_device_train_batch_size", "8", "--eval_strategy", "steps"),
        *("--bf16", "false"),
        *("--eval_steps", "2", "--report_to", "none", "--use_cpu", "true", "--disable_tqdm", "true"),
        *("--push_to_hub", "true", "--hub_license", "mit", "--save_strategy", "steps", "--save_steps", "2"),
    ]
    done = shell(*run, "--output_dir", str(tmp_path / "run"), "--hub_model_id", "me/pair")
    assert done.returncode == 0, done.stderr
    assert "pushed: " in done.stdout
    files = stored(hub)["me/pair"]["main"]
    assert {"config.json", "modules.json", "tower_a/model.safetensors", "tower_b/1_Pooling/config.json"} <= set(files)
    assert not any("checkpoint" in name or "optimizer" in name for name in files)
    refused = shell(*run, "--output_dir", str(tmp_path / "other"), "--hub_model_id", "me/pair", token="hf_wrong")
    assert refused.returncode == 2 and "train_runtime" not in refused.stdout  # known before the training


@pytest.mark.slow
def test_a_distillation_pushes_the_student(hub, shell, tmp_path, tiny_towers, text_file, dev_file):
    teacher, student, _ = tiny_towers("bert")
    run = [
        *("-m", "cacse_trainer.cli.distill", "--teacher", teacher, "--student", student, "--max_steps", "2"),
        *("--train_file", str(text_file), "--dev_file", f"stsb={dev_file}", "--per_device_train_batch_size", "8"),
        *("--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps", "--save_steps", "2"),
        *("--bf16", "false"),
        *("--use_cpu", "true", "--disable_tqdm", "true", "--push_to_hub", "true", "--hub_model_id", "me/student"),
    ]
    done = shell(*run, "--output_dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    exported = tmp_path / "run" / "export" / "student"
    files = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert set(stored(hub)["me/student"]["main"]) == {".gitattributes", *files}
    loaded = shell("-c", LOAD, "me/student", str(exported), "main")
    assert loaded.returncode == 0, loaded.stderr[-2000:]


FROM_PYTHON = """
import sys
from transformers import AutoTokenizer, TrainingArguments
from cacse_trainer import CacseTrainer, SentenceEmbeddingModel, SentenceEncoder, load_sentences
start, text, output = sys.argv[1:]
args = TrainingArguments(output, max_steps=1, use_cpu=True, hub_model_id="me/trained", report_to="none")
model, tokenizer = SentenceEmbeddingModel.from_encoder(start), AutoTokenizer.from_pretrained(start)
trainer = CacseTrainer(model=model, args=args, train_dataset=load_sentences(text), processing_class=tokenizer)
trainer.train()
print(trainer.push_to_hub(license="mit"))
encoder = SentenceEncoder.from_pretrained("me/trained", device="cpu")
print(encoder.push_to_hub("me/again", private=True, commit_message="again"))
"""


@pytest.mark.slow
def test_from_python(hub, shell, tmp_path, tiny_towers, text_file):
    """A trainer pushes its export, and an encoder that was loaded from there itself."""
    done = shell("-c", FROM_PYTHON, tiny_towers("bert")[0], str(text_file), str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-2000:]
    exported = tmp_path / "run" / "export" / "encoder"
    files = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert set(stored(hub)["me/trained"]["main"]) == {".gitattributes", *files}
    assert set(stored(hub)["me/again"]["main"]) == {".gitattributes", *files}
    for name in ("me/trained", "me/again"):
        loaded = shell("-c", LOAD, name, str(exported), "main")
        assert loaded.returncode == 0, loaded.stderr[-2000:]


def test_card_names_the_repository(folder):
    files = list_files([folder], "me/tiny")
    card = files["README.md"].decode()
    assert 'SentenceTransformer("me/tiny")' in card and "path/to/this/folder" not in card
    for words in (
        "license: mit",
        "pipeline_tag: sentence-similarity",
        "library_name: sentence-transformers",
        "- some/model",
    ):
        assert words in card
    assert "model-index" in card and re.search(r"value: 0\.\d", card)
    beside = list_files([folder, folder.with_name("tower_a")], "me/tiny")
    assert set(beside) == set(files)  # the other folder is not there


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A folder in the place of a repository, to which `push_folders` pushes."""
    root = tmp_path / "repository"
    root.mkdir()

    class Api:
        """What `push_folders` asks of the hub."""

        def __init__(self, token):
            self.whoami = self.create_repo = lambda *words, **settings: None

        def list_repo_files(self, repo_id, revision):
            return [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]

        def hf_hub_download(self, repo_id, name, revision):
            return str(root / name)

        def create_commit(self, repo_id, operations, commit_message, revision):
            for operation in operations:
                path = root / operation.path_in_repo
                if isinstance(operation, pushing.CommitOperationDelete):
                    path.unlink()
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                with operation.as_file() as file:
                    path.write_bytes(file.read())
            return SimpleNamespace(commit_url="there")

    monkeypatch.setattr(pushing, "HfApi", Api)
    return root


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")


FOREIGN = {"thesis.txt", "data/train.csv", "tower_a/notes.txt", "vocab.txt", "data/model.safetensors", ".gitattributes"}


def test_a_push_deletes_only_what_an_earlier_one_wrote(repository, tmp_path):
    """Also where the repository held other files before the first push."""
    fill(repository, *FOREIGN)
    first, second = {"config.json", "model.safetensors"}, {"config.json", "model-00001-of-00002.safetensors"}
    for names, beside in ((first, "tower_a"), (second, "tower_b"), (first, "tower_a")):
        exported = tmp_path / "export"
        shutil.rmtree(exported, ignore_errors=True)
        fill(exported, *(f"ensemble/{name}" for name in names), f"{beside}/config.json")
        push_folders([exported / "ensemble", exported / beside], HubTarget("me/x"))
        expected = {RECORD, f"{beside}/config.json", *names, *FOREIGN}
        assert {path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()} == expected


@pytest.mark.parametrize("card", [render_card(CardFacts(title="x", what="")), "made with cacse-trainer"])
def test_a_push_over_one_that_kept_no_list(repository, tmp_path, card):
    """Weights that would be loaded instead of the new ones go, where the card is ours; nothing else does."""
    fill(repository, *FOREIGN, "model.safetensors", "adapter_config.json", "2_Dense/config.json")
    (repository / "README.md").write_text(card)
    fill(tmp_path / "x", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json")
    push_folders([tmp_path / "x"], HubTarget("me/x"))
    left = {path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()}
    assert {"2_Dense/config.json", *FOREIGN} <= left
    stale = {"model.safetensors", "adapter_config.json"}
    assert stale & left == (set() if card.startswith("---") else stale)


def test_a_damaged_list_deletes_nothing(repository, tmp_path):
    fill(repository, "thesis.txt", RECORD)
    (repository / RECORD).write_text('["thesis')
    fill(tmp_path / "x", "config.json")
    push_folders([tmp_path / "x"], HubTarget("me/x"))
    assert (repository / "thesis.txt").is_file()
    write_json(repository / RECORD, ["../x", "gone.txt", "config.json"])
    push_folders([tmp_path / "x"], HubTarget("me/x"))


PUSHED_ADAPTER = """
import sys
import numpy as np
from cacse_trainer import SentenceEncoder
from cacse_trainer.cli import export
from cacse_trainer.cli.common import run as call
from peft import PeftModel
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
run, base, words = *sys.argv[1:], ["a man in the park", "the dog"]
push = ["--push_to_hub", "--hub_model_id", "me/adapter", "--hub_license", "mit"]
assert call(export.main, ["--folder", run, "--adapter", *push]) == 0
encoder, trained = SentenceEncoder("me/adapter", device="cpu"), SentenceEncoder(run, device="cpu")
assert np.abs(encoder.encode(words) - trained.encode(words)).max() < 1e-6
assert np.abs(encoder.encode(words) - SentenceEncoder(base, "mean", device="cpu").encode(words)).max() > 1e-3
model = encoder.model.config
print(encoder.pooling, model.bidirectional_start_layer, model.prompt_template)
rows = AutoTokenizer.from_pretrained("me/adapter")(words, return_tensors="pt", padding=True)
inputs = {name: rows[name] for name in ("input_ids", "attention_mask")}
bare = PeftModel.from_pretrained(AutoModel.from_pretrained(base), "me/adapter")(**inputs).last_hidden_state
whole = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), "me/adapter")
assert (whole(**inputs, output_hidden_states=True).hidden_states[-1] - bare).abs().max() < 1e-5
assert (AutoModel.from_pretrained(base)(**inputs).last_hidden_state - bare).abs().max() > 1e-3
"""


@pytest.mark.slow
def test_an_adapter_is_pushed_and_read_from_there(hub, shell, tmp_path):
    """What BeLLM's users share: weights, what says how they are read, the tokenizer with the prompt, and a card."""
    base, prompt = make_tiny_decoder(tmp_path, "llama"), "The word for {text} is:"
    flags = [
        *("--model", base, "--prompt_template", prompt, "--pooling", "mean", "--bidirectional_start_layer", "1"),
        *("--lora_r", "2", "--lora_target_modules", "q_proj", "--learning_rate", "1e-1", "--max_steps", "2"),
        *("--train_file", "sample:sentences.txt", "--dev_file", "sample=sample:dev.tsv", "--max_seq_length", "32"),
        *("--eval_steps", "2", "--per_device_train_batch_size", "8", "--bf16", "false", "--use_cpu", "true"),
        *("--lr_scheduler_type", "constant", "--disable_tqdm", "true", "--output_dir", str(tmp_path / "run")),
    ]
    assert run(train.main, [*flags, "--export", "false"]) == 0
    done = shell("-c", PUSHED_ADAPTER, str(tmp_path / "run"), base)
    assert done.returncode == 0 and "pushed: " in done.stdout, done.stderr[-2000:]
    assert done.stdout.split("\n")[-2] == f"mean 1 {prompt}"
    files = set(stored(hub)["me/adapter"]["main"])
    shared = tmp_path / "run" / "export" / "adapter"
    assert files == {".gitattributes", *(path.relative_to(shared).as_posix() for path in shared.rglob("*"))}
    assert {"adapter_model.safetensors", "adapter_config.json", "config.json", "tokenizer.json", "README.md"} <= files
    assert "model.safetensors" not in files
    with urllib.request.urlopen(f"{hub}/me/adapter/resolve/main/README.md") as answer:
        card = answer.read().decode()
    for words in ("license: mit", "| pooling | mean |", prompt, "from 1 on (from 0)", 'SentenceEncoder("me/adapter")'):
        assert words in card
    assert f"| base model | `{Path(base).name}` |" in card and "path/to/this/folder" not in card


TRAINING = """
import sys
from pathlib import Path
from transformers import AutoTokenizer, Trainer, TrainingArguments
from cacse_trainer import CacseTrainer, SentenceEmbeddingModel, load_sentences
from cacse_trainer.data import ContrastiveCollator
from cacse_trainer.models.adapters import LoraSettings

start, text, output, token = sys.argv[1:]
tokenizer, data = AutoTokenizer.from_pretrained(start), load_sentences(text)


def train(kind, name, strategy, limit, **settings):
    model = SentenceEmbeddingModel.from_encoder(start, pooling="mean", **settings)
    args = TrainingArguments(
        f"{output}/{name}", push_to_hub=True, hub_model_id=name, hub_strategy=strategy, hub_always_push=True,
        hub_token=token, max_steps=3, save_steps=1, save_total_limit=limit, per_device_train_batch_size=8,
        remove_unused_columns=False, report_to="none", use_cpu=True, disable_tqdm=True,
    )
    trainer = kind(model, args, ContrastiveCollator(tokenizer), data, processing_class=tokenizer)
    trainer.train()
    return trainer


for strategy in ("end", "every_save", "checkpoint", "all_checkpoints"):
    train(Trainer, f"slow-plain-{strategy}", strategy, None)  # its rotation takes from it what it uploads
    ours = train(CacseTrainer, f"slow-ours-{strategy}", strategy, 1)
    (left,) = Path(ours.args.output_dir).glob("checkpoint-*")
    assert token.encode() not in (left / "training_args.bin").read_bytes() and ours.args.hub_token == token
train(CacseTrainer, "me/slow-given", "checkpoint", 1, lora=LoraSettings(r=2, target_modules=["query"])).push_to_hub()
"""


@pytest.mark.slow
def test_checkpoints_are_pushed_as_by_plain_trainer(hub, shell, tiny_towers, text_file, tmp_path):
    """Of each ``hub_strategy`` at least the files of `Trainer`, though the hub is slow and checkpoints are rotated.

    Of the training model nothing is left when the export takes its place.
    """
    folder = tiny_towers("bert", layers=1)[0]
    done = shell("-c", TRAINING, folder, str(text_file), str(tmp_path), TOKEN)
    assert done.returncode == 0, done.stderr[-3000:]
    there = {name.removeprefix("me/slow-"): set(files["main"]) for name, files in stored(hub).items()}
    model = {"modules.json", "sentence_bert_config.json", RECORD}
    state = {"manifest.json", "settings.json", "pending_log.json", "modules.json", "sentence_bert_config.json"}
    beside = {"end": [], "every_save": [], "checkpoint": ["last-checkpoint"]}
    beside["all_checkpoints"] = [f"checkpoint-{step}" for step in (1, 2, 3)]
    for strategy, places in beside.items():
        plain, ours = there[f"plain-{strategy}"], there[f"ours-{strategy}"]
        expected = {f"{place}/{name}" for place in places for name in state} | (model if strategy != "end" else set())
        assert plain <= ours and ours - plain == expected, strategy
        assert (strategy == "end") == (plain == {".gitattributes"})
        assert all(f"{place}/optimizer.pt" in plain for place in places)
    root = {name for name in there["given"] if not name.startswith("last-checkpoint/")}
    exported = tmp_path / "me/slow-given" / "export" / "encoder"
    files = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert root == {".gitattributes", *files} and "last-checkpoint/adapter_model.safetensors" in there["given"]
