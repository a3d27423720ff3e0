"""What a trainer gives away from Python: the folders of a run, its cards and pushes; its own model is never misread."""

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, Trainer, TrainerCallback

from cacse_trainer import CacseTrainer, SentenceEmbeddingModel, SentenceEncoder, load_pairs
from cacse_trainer.cli import export as command
from cacse_trainer.encoding.sentence_transformers import write_modules
from cacse_trainer.errors import UserError
from cacse_trainer.models.adapters import LoraSettings
from cacse_trainer.training import publishing
from tests.conftest import write_pairs

SENTENCES = ["a man is playing guitar", "the dog", "a woman and a cat are running in the big house"]
UNWATCHED = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
ELSEWHERE = """
import sys, numpy
from sentence_transformers import SentenceTransformer
vectors = SentenceTransformer(sys.argv[1], device="cpu").encode(sys.argv[3:])
assert "cacse_trainer" not in sys.modules
numpy.save(sys.argv[2], vectors)
"""


def single(tiny_towers, **settings) -> SentenceEmbeddingModel:
    return SentenceEmbeddingModel.from_encoder(tiny_towers("bert")[0], **{"pooling": "cls", **settings})


@pytest.fixture
def stated_start(tiny_towers, tiny_tokenizer, tmp_path) -> str:
    """A start whose folder states mean pooling."""
    folder = tmp_path / "start"
    AutoModel.from_pretrained(tiny_towers("bert")[0]).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    write_modules(folder, pooling="mean", hidden_size=32, max_seq_length=64)
    return str(folder)


def test_exported_as_by_a_run(make_trainer, tmp_path, caplog):
    """Of CACSE: both towers and the ensemble, scored beside the model before training."""
    trainer = make_trainer(max_steps=2)
    trainer.train()
    trainer.model.train()
    scores = trainer.export(data="sentences of a park", license="mit")
    assert trainer.model.training and list(scores) == ["tower_a", "tower_b", "ensemble"]
    folder = tmp_path / "run" / "export"
    assert scores["ensemble"]["stsb"] == pytest.approx(trainer.evaluate()["eval_stsb_spearman"], abs=1e-4)
    card = (folder / "ensemble" / "README.md").read_text()
    before = next(entry for entry in trainer.state.log_history if entry["step"] == 0)["eval_stsb_spearman"]
    assert f"| stsb | {scores['ensemble']['stsb']:.2f} | {before:.2f} |" in card
    lead = card.split("# run ensemble")[1].split("## Use")[0]
    assert "needs `cacse_trainer`, imported before" in lead and "`tower_a` and `tower_b`, beside it" in lead
    for words in ("sentences of a park, 64 rows", "license: mit", "| temperature | 0.05 |", "| batch | 8 |"):
        assert words in card
    assert card.count("@misc{cacse,") == card.count("```bibtex") == 1
    trainer.model.eval()
    for name, tower in (("tower_a", trainer.model.tower_a), ("tower_b", trainer.model.tower_b)):
        assert AutoModel.from_pretrained(folder / name).config.model_type == tower.config.model_type


def test_the_start_is_what_its_folder_states(make_trainer, stated_start, tmp_path):
    """Known by the model, and where several or others are named."""
    model = SentenceEmbeddingModel.from_encoder(stated_start, pooling="cls")
    trainer = make_trainer(
        model=model, max_steps=1, eval_strategy="no", save_strategy="no", load_best_model_at_end=False
    )
    trainer.train()
    dev = load_pairs(tmp_path / "dev.tsv")
    as_stated = publishing.read_stated([stated_start], publishing.as_dev_sets({"stsb": dev}), "cpu").scores["stsb"]
    for base in (None, stated_start, [stated_start]):
        trainer.export(tmp_path / "out", base_model=base, title="Tiny")
        card = (tmp_path / "out" / "encoder" / "README.md").read_text()
        assert "the start as it is, mean pooling" in card and f"| {as_stated:.2f} |" in card
        assert "| started from | start |" in card and "# Tiny" in card and "Pooling: **cls_with_mlp**" in card
    with pytest.raises(UserError, match="no-such"):
        trainer.export(tmp_path / "out", base_model="./no-such")


def test_a_start_that_has_gone_and_a_set_without_a_name(make_trainer, tiny_towers, tmp_path, caplog):
    model = single(tiny_towers)
    pairs = load_pairs(write_pairs(tmp_path / "unnamed.tsv"))
    trainer = make_trainer(model=model, pairs=pairs, max_steps=1, metric_for_best_model="spearman")
    trainer.train()
    model.encoder.config.name_or_path = str(tmp_path / "gone")
    model.encoder.name_or_path = str(tmp_path / "gone")
    with caplog.at_level(logging.WARNING, logger="cacse_trainer"):
        scores = trainer.export()
    assert "cannot be read" in caplog.text and list(scores["encoder"]) == ["dev"]
    assert "the start as it is" in (tmp_path / "run" / "export" / "encoder" / "README.md").read_text()


def test_cards_and_pushes_are_of_that_folder(make_trainer, tiny_towers, tmp_path, monkeypatch):
    """A push takes the last export while the weights are the same; never the training model, nor a checkpoint."""
    pushed = []
    monkeypatch.setattr(publishing, "prepare_repo", lambda target: None)
    monkeypatch.setattr(publishing, "push_folders", lambda *what: pushed.append(what) or "there")
    trainer = make_trainer(model=single(tiny_towers), max_steps=2, hub_model_id="me/tiny", hub_token="hf_x")
    trainer.train()
    trainer.export(tmp_path / "given", data="mine")
    assert trainer.push_to_hub("first", private=True) == "there"
    folders, target, message = pushed.pop()
    assert folders == [tmp_path / "given" / "encoder"] and message == "first"
    assert (target.repo_id, target.private, target.token) == ("me/tiny", True, "hf_x")

    trainer.create_model_card(license="mit", model_name="Tiny", dataset=["one", "two"])
    card = (tmp_path / "run" / "export" / "encoder" / "README.md").read_text()
    assert "license: mit" in card and "# Tiny" in card and "one, two, 64 rows" in card
    assert not (tmp_path / "run" / "README.md").exists()
    trainer.model.encoder.embeddings.word_embeddings.weight.data += 0.1
    trainer.push_to_hub()  # of other weights than what was exported
    assert pushed.pop()[0] == [tmp_path / "run" / "export" / "encoder"]
    table = AutoModel.from_pretrained(tmp_path / "run" / "export" / "encoder").embeddings.word_embeddings.weight
    assert table.equal(trainer.model.encoder.embeddings.word_embeddings.weight)
    with pytest.raises(UserError, match="takes no language, tags"):
        trainer.create_model_card(language="en", tags="x")
    trainer.args.hub_model_id = None
    with pytest.raises(UserError, match="hub_model_id='OWNER/NAME'"):
        trainer.push_to_hub()


def test_a_checkpoint_on_its_way_is_whole_and_stays(make_trainer, tiny_towers, tmp_path, monkeypatch, caplog):
    """The hub takes nothing until step 3; what it has not read by then is not rotated away. A failure is a warning."""
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda self: setattr(self, "hub_model_id", "me/tiny"))
    may_go, pushed = threading.Event(), []

    def upload(folder, target, message, left_out, beside):
        may_go.wait(60)
        assert manifest_of(folder) == sorted(path.name for path in folder.iterdir() if path.name != "manifest.json")
        pushed.append((folder.name, target.repo_id, message, beside))
        if folder.name == "checkpoint-2":
            raise OSError("the line is dead")

    class Release(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                assert {"checkpoint-1", "checkpoint-2"} <= set(os.listdir(tmp_path / "run"))
                may_go.set()

    monkeypatch.setattr(publishing, "push_checkpoint", upload)
    settings = {"push_to_hub": True, "hub_strategy": "all_checkpoints", "hub_always_push": True, "save_steps": 1}
    settings |= {"eval_strategy": "no", "load_best_model_at_end": False, "max_steps": 3, "callbacks": [Release()]}
    make_trainer(model=single(tiny_towers), **settings).train()
    assert pushed == [
        (f"checkpoint-{step}", "me/tiny", f"Training in progress, step {step}", f"checkpoint-{step}")
        for step in (1, 2, 3)
    ]
    assert os.listdir(tmp_path / "run") == ["checkpoint-3"]
    assert "checkpoint-2 was not pushed: the line is dead" in caplog.text


def manifest_of(folder: Path) -> list[str]:
    return sorted(json.loads((folder / "manifest.json").read_text()))


@pytest.mark.parametrize("kind", ["cls", "head", "two_towers", "adapter"])
def test_a_saved_training_model_is_never_read_by_a_guessed_pooling(make_trainer, tiny_towers, tmp_path, kind):
    """sentence-transformers reads it as it pools, where this package is imported; one with an adapter not at all."""
    lora = LoraSettings(r=2, target_modules=["query"])
    settings = {"cls": {}, "head": {"mlp_only_train": False}, "adapter": {"lora": lora, "pooling": "last_token"}}
    model = single(tiny_towers, **settings[kind]) if kind in settings else None
    trainer = make_trainer(
        model=model, max_steps=1, eval_strategy="no", save_strategy="no", load_best_model_at_end=False
    )
    trainer.query_prompt = "the red "
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    ours = SentenceEncoder(tmp_path / "saved", device="cpu").encode(SENTENCES)
    with pytest.raises(UserError, match="is a training model; give --checkpoint"):
        command.main(["--folder", str(tmp_path / "saved"), "--push_to_hub", "--hub_model_id", "me/x"])
    if kind == "adapter":
        with pytest.raises(OSError, match="no file named model"):
            SentenceTransformer(str(tmp_path / "saved"), device="cpu")
        return
    theirs = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert np.abs(theirs.encode(SENTENCES, normalize_embeddings=True) - ours).max() < 1e-5
    assert theirs.max_seq_length == 64 and theirs.prompts["query"] == "the red "


@pytest.mark.slow
def test_what_the_guide_says_in_twelve_lines(tiny_towers, tmp_path, text_file, dev_file):
    """Data, training, export; then the folder in a process that knows nothing of this package: the same vectors."""
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "python.md").read_text()
    script = guide.split("```python\n")[1].split("```")[0]
    assert len([line for line in script.splitlines() if line.strip()]) <= 12
    for name, path in (("bert-base-uncased", tiny_towers("bert")[0]), ("my_sentences.txt", text_file)):
        script = script.replace(name, str(path))
    script = script.replace("sts-dev.csv", str(dev_file)).replace("runs/mine", str(tmp_path / "mine"))
    script = script.replace("max_steps=200", "max_steps=2")
    names: dict = {}
    exec(script, names)
    folder, found = tmp_path / "mine" / "export" / "encoder", tmp_path / "vectors.npy"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", ELSEWHERE, str(folder), str(found), *SENTENCES]
    subprocess.run(command, env=environment, check=True, capture_output=True, cwd=tmp_path)
    trainer: CacseTrainer = names["trainer"]
    trainer.model.eval()
    assert np.allclose(np.load(found), trainer.embedder.vectors(SENTENCES), atol=1e-5)
    assert json.loads((folder / "1_Pooling" / "config.json").read_text())["pooling_mode_cls_token"]
