"""Code that comes with a model runs where the user asks for it, nowhere else: a "y" on standard input is no request.

transformers asks on standard input whoever does not say ``trust_remote_code=False``; `yes |` before a command, or a
line of a script, would answer.
"""

import ast
import builtins
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cacse_trainer import load_reference_checkpoint
from cacse_trainer.cli.main import main
from cacse_trainer.errors import UserError
from cacse_trainer.instruct.arguments import InstructModelArguments
from cacse_trainer.instruct.training import load_causal_lm, load_tokenizer
from tests.conftest import ROOT
from tests.faults.places import Place

CLASSES = ["AutoConfig", "AutoModel", "AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"]
CODE = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\npathlib.Path({marker!r}).touch()\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return Place(tmp_path_factory.mktemp("evil"))


@pytest.fixture
def marker(tmp_path, monkeypatch) -> Path:
    """A file that is there once the code has run, or somebody was asked whether it may."""
    marker = tmp_path / "ran"

    def answer(*question: str) -> str:
        marker.touch()
        return "y"

    monkeypatch.setattr(builtins, "input", answer)
    return marker


def evil_model(place: Place, marker: Path) -> str:
    """A folder of a kind that only its own code knows."""
    folder = Path(shutil.copytree(place.masked_lm, marker.parent / "model"))
    (folder / "evil.py").write_text(CODE.format(marker=str(marker)))
    config = json.loads((folder / "config.json").read_text())
    config.update(model_type="evil", auto_map={name: "evil.Evil" for name in CLASSES}, architectures=["Evil"])
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def evil_tokenizer(place: Place, marker: Path) -> str:
    """A plain encoder whose tokenizer is of a class that only its own code knows."""
    folder = Path(shutil.copytree(place.masked_lm, marker.parent / "tokenizer"))
    (folder / "evil.py").write_text(CODE.format(marker=str(marker)))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.update(tokenizer_class="EvilTokenizer", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").unlink()
    return str(folder)


def inside(evil: str, place: Place, kind: str) -> str:
    """A checkpoint of ours whose encoder's config names the code."""
    fields = json.loads((Path(evil) / "config.json").read_text())
    folder = Path(evil).parent / kind
    shutil.copytree(place.masked_lm, folder)
    configs = {"cacse_ensemble": {"encoder_configs": [fields]}, "sentence_embedding": {"encoder_config": fields}}
    (folder / "config.json").write_text(json.dumps({"model_type": kind, **configs[kind]}))
    return str(folder)


ROADS = {
    "train": lambda place, evil: place.simcse(model=evil, overwrite_output_dir="true"),
    "train with a head": lambda place, evil: place.simcse(model=evil, mlm_weight="0.1", overwrite_output_dir="true"),
    "a generator": lambda place, evil: place.simcse(generator=evil, overwrite_output_dir="true"),
    "tower a": lambda place, evil: place.cacse(tower_a=evil, overwrite_output_dir="true"),
    "tower b": lambda place, evil: place.cacse(tower_b=evil, overwrite_output_dir="true"),
    "a teacher": lambda place, evil: place.distill(teacher=evil, overwrite_output_dir="true"),
    "a student": lambda place, evil: place.distill(student=evil, overwrite_output_dir="true"),
    "encode": lambda place, evil: ["encode", "--model", evil, "--input", str(place.text), "--output", f"{evil}/v.npy"],
    "evaluate": lambda place, evil: ["evaluate", "--model", evil, "--tasks", "STS12"],
    "export a checkpoint": lambda place, evil: ["export", "--checkpoint", evil, "--output_dir", f"{evil}/out"],
    "export a sum": lambda place, evil: ["export", "--encoders", evil, "--output_dir", f"{evil}/out"],
    "import": lambda place, evil: ["import", "--checkpoint", evil, "--head", "drop", "--output_dir", f"{evil}/out"],
    "pairs": lambda place, evil: [
        *("pairs", "--input", str(place.text), "--there", evil, "--back", evil, "--output_dir", f"{evil}/out")
    ],
}


@pytest.mark.parametrize("make", [evil_model, evil_tokenizer])
@pytest.mark.parametrize("road", ROADS.values(), ids=ROADS)
def test_no_command_runs_it(road, make, place, marker, tmp_path, capsys):
    place.here = tmp_path
    code = main([str(word) for word in road(place, make(place, marker))])
    assert code == 2 and not marker.exists(), capsys.readouterr().err
    assert capsys.readouterr().err.count("error: ") <= 1


@pytest.mark.parametrize("kind", ["sentence_embedding", "cacse_ensemble"])
def test_no_checkpoint_of_ours_runs_it(kind, place, marker):
    folder = inside(evil_model(place, marker), place, kind)
    for words in (
        ["encode", "--model", folder, "--input", str(place.text), "--output", f"{folder}/v.npy"],
        ["export", "--checkpoint", folder, "--output_dir", f"{folder}/out"],
    ):
        assert main(words) == 2 and not marker.exists()


def test_instruct_does_not_run_it(place, marker):
    for make, load in (
        (evil_tokenizer, load_tokenizer),
        (evil_model, lambda args: load_causal_lm(args.model, "float32", args)),
    ):
        with pytest.raises(UserError, match=r"custom code|backend tokenizer"):
            load(InstructModelArguments(model=make(place, marker)))
    assert not marker.exists()


def test_the_release_s_towers_do_not_run_it(place, marker, tmp_path):
    torch.save(load_file(Path(place.masked_lm) / "model.safetensors"), tmp_path / "pytorch_model.bin")
    evil = evil_model(place, marker)
    for tower, other in ((evil, place.tower), (place.tower, evil)):
        with pytest.raises(ValueError, match="custom code"):
            load_reference_checkpoint(tmp_path / "pytorch_model.bin", tower_a=tower, tower_b=other, constraint=other)
    assert not marker.exists()


READERS = {"from_pretrained", "from_config"}
THE_ONE_PLACE = {"cacse_trainer/models/pretrained.py", "cacse_trainer/export/ensemble_module.py"}
"""The second is copied into exported folders, whose code a user has asked for when it runs."""


@pytest.mark.parametrize("path", sorted((ROOT / "cacse_trainer").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_transformers_auto_classes_are_called_in_one_place(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Attribute)
            and node.attr in READERS
            and str(path.relative_to(ROOT)) not in THE_ONE_PLACE
        ):
            assert not ast.unparse(node.value).startswith("Auto"), f"{path}:{node.lineno}: by models/pretrained.py"
