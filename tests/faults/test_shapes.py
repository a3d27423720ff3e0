"""JSON of a wrong shape, numbers that are none, rows without text: one line that names the file, and exit code 2."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from cacse_trainer.encoding.sentence_transformers import write_modules
from tests.faults.fuzz import own_models, quietly
from tests.faults.places import Place


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """A folder of each kind, to be copied and spoiled."""
    place = Place(tmp_path_factory.mktemp("shapes"))
    folders = {"plain": Path(place.tower), "text": place.text, **own_models(place, place.root)}
    folders["modules"] = Path(shutil.copytree(place.tower, place.root / "modules"))
    torch.manual_seed(0)
    settings = {"pooling": "mean", "hidden_size": 32, "max_seq_length": 64}
    write_modules(folders["modules"], **settings, dense=nn.Linear(32, 16))
    return folders


def encode(models: dict[str, Path], folder: Path) -> tuple[int, str]:
    """Exit code and all that is said of an encoding with a folder."""
    vectors = folder.parent / "vectors.npy"
    return quietly(["encode", "--model", str(folder), "--input", str(models["text"]), "--output", str(vectors)])


def refused(found: tuple[int, str]) -> str:
    """The one line of a refusal."""
    errors = [line for line in found[1].splitlines() if line.startswith("error: ")]
    assert (found[0], len(errors)) == (2, 1), found
    return errors[0]


ROOTS = [([1, 2], "plain"), ("x", "plain"), (5, "plain"), ([], "cacse"), (None, "modules")]


@pytest.mark.parametrize(("root", "kind"), ROOTS, ids=str)
def test_a_config_that_is_no_object(root, kind, models, tmp_path):
    folder = Path(shutil.copytree(models[kind], tmp_path / "folder"))
    (folder / "config.json").write_text(json.dumps(root))
    assert "config.json" in refused(encode(models, folder))


ENTRIES = [
    *[("cacse", "config.json", {name: value}) for name in ("cascade_start_layer", "constraint_layers")
      for value in ("x", None, [])],
    *[("cacse", "config.json", {name: 5}) for name in ("tower_a_config", "constraint_config", "original_dropout")],
    ("cacse", "config.json", {"tower_b_config": {"hidden_size": 32}}),
    ("cacse", "config.json", {"tower_b_config": {"model_type": [1]}}),
    ("cacse", "config.json", {"contrastive_temperature": "x"}),
    ("simcse", "config.json", {"encoder_config": 5}),
    ("simcse", "config.json", {"encoder_config": [1]}),
    ("simcse", "config.json", {"pooling": [1]}),
    ("simcse", "config.json", {"model_type": 5}),
    ("ensemble", "config.json", {"encoder_configs": 5}),
    ("ensemble", "config.json", {"encoder_configs": [5, 5]}),
    ("ensemble", "config.json", {"weights": None}),
    ("ensemble", "config.json", {"weights": 5}),
    ("ensemble", "config.json", {"weights": [1, "x"]}),
    ("ensemble", "config.json", {"poolings": [["cls"], "cls"]}),
    ("ensemble", "config.json", {"normalized": 5}),
    ("modules", "config_sentence_transformers.json", {"prompts": {"where": 5}, "default_prompt_name": "where"}),
    ("modules", "sentence_bert_config.json", {"config_args": 5}),
    ("modules", "sentence_bert_config.json", {"max_seq_length": 0}),
    ("modules", "sentence_bert_config.json", {"max_seq_length": -3}),
    ("modules", "1_Pooling/config.json", {"pooling_mode": [1, 2]}),
    ("modules", "1_Pooling/config.json", {"pooling_mode": [[]]}),
    ("modules", "2_Dense/config.json", {"module_input_name": [1]}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "file", "entry"), ENTRIES, ids=str)
def test_an_entry_of_a_wrong_type(kind, file, entry, models, tmp_path):
    folder = Path(shutil.copytree(models[kind], tmp_path / "folder"))
    settings = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**settings, **entry}))
    said = refused(encode(models, folder))
    assert str(folder) in said and (file in said or "Dense module" in said), said


@pytest.mark.parametrize("kind", ["cacse", "simcse", "ensemble", "modules"])
def test_good_folders_are_read(kind, models, tmp_path):
    assert encode(models, Path(shutil.copytree(models[kind], tmp_path / "folder")))[0] == 0


@pytest.mark.parametrize("spoilt", ['{"a": 1 "b": 2}', "[" * 100_000], ids=["comma", "deep"])
def test_a_json_file_that_does_not_parse_is_named(spoilt, models, tmp_path):
    for file in ("tokenizer.json", "config.json", "modules.json", "1_Pooling/config.json"):
        folder = Path(shutil.copytree(models["modules"], tmp_path / file.replace("/", "_") / "folder"))
        (folder / file).write_text(spoilt)
        said = refused(encode(models, folder))
        assert f"{file} is no JSON" in said and "download it anew" in said, said


@pytest.mark.parametrize("content", [5, [1], {"peft_type": "LORA", "base_model_name_or_path": 5}], ids=str)
def test_an_adapter_s_config_of_a_wrong_shape(content, models, tmp_path):
    pytest.importorskip("peft")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(content))
    assert str(folder) in refused(encode(models, folder))


@pytest.mark.parametrize(
    "report", [{"card": {"base_models": 5}}, {"card": {"data": 5}}, {"settings": {"dev_file": 5}}], ids=str
)
def test_a_report_of_a_wrong_shape(report, models, tmp_path):
    folder = Path(shutil.copytree(models["simcse"], tmp_path / "folder"))
    (folder / "training_report.json").write_text(json.dumps(report))
    said = refused(quietly(["export", "--checkpoint", str(folder), "--output_dir", str(tmp_path / "out")]))
    assert "training_report.json" in said


NUMBERS = [
    ["encode", "--input", "text.txt", "--output", "v.npy", "--shard_rows", "9" * 23],
    ["encode", "--input", "text.txt", "--output", "v.npy", "--tokens_per_batch", "0"],
    ["encode", "--input", "text.txt", "--output", "v.npy", "--truncate_dim", "0"],
    ["search", "--corpus", "text.txt", "--threshold", "nan"],
    ["search", "--corpus", "text.txt", "--top_k", "0"],
    ["search", "--corpus", "text.txt", "--top_k", "9" * 23],
    ["doctor", "--timeout", "nan"],
    ["compare", "a", "b", "--draws", "9" * 23],
    ["evaluate", "--weights", "nan"],
    *[["train", f"--{name}", value] for name, value in (("weight_decay", "inf"), ("learning_rate", "inf"))],
    *[["train", f"--{name}", "nan"] for name in ("max_grad_norm", "cascade_loss_weight", "tower_dropout")],
    ["distill", "--teachers", "path=a,weight=inf"],
]


@pytest.mark.parametrize("words", NUMBERS, ids=" ".join)
def test_numbers_that_are_none_are_refused_with_the_command_line(words, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["--model", str(models["plain"])] if words[0] in ("encode", "search", "evaluate", "train") else []
    assert "command line: argument" in refused(quietly([words[0], *given, *words[1:]]))
    assert not list(tmp_path.iterdir())
