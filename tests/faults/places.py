"""What the cases of wrong input are made of: good models, text and commands, and ways to spoil one of them."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, BertModel

from cacse_trainer.encoding.model_card import CardFacts, render_card
from cacse_trainer.files import take
from cacse_trainer.models.modeling_sentence_embedding import SentenceEmbeddingModel
from tests.conftest import make_tokenizer, tiny_config, write_pairs, write_sentences


class Place:
    """Folders with whole models, text and dev pairs; each case gets a folder of its own to spoil something in."""

    def __init__(self, folder: Path):
        self.root = folder
        parts = folder / "parts"
        parts.mkdir()
        self.tokenizer = make_tokenizer(parts)
        self.tower = self.model("tower")
        self.text, self.dev = write_sentences(parts / "text.txt"), write_pairs(parts / "dev.tsv")
        self.masked_lm = str(parts / "masked_lm")
        AutoModelForMaskedLM.from_config(tiny_config("bert", layers=2)).save_pretrained(self.masked_lm)
        self.tokenizer.save_pretrained(self.masked_lm)
        self.here = folder

    def model(self, name: str, **changes) -> str:
        """A tiny encoder with a tokenizer."""
        folder = self.root / "parts" / name
        torch.manual_seed(0)
        BertModel(tiny_config("bert", **{"layers": 2, **changes})).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return str(folder)

    def copy(self, name: str = "copy") -> Path:
        """A copy of the tower to spoil."""
        shutil.copytree(self.tower, self.here / name)
        return self.here / name

    def file(self, name: str, content: str | bytes) -> str:
        """A file of the case."""
        path = self.here / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def recipe(self, text: str) -> list[str]:
        """A recipe of the case, as a flag."""
        return ["--config", self.file("recipe.yaml", text)]

    def cacse(self, *more: str, **changes: str | None) -> list[str]:
        """A good CACSE run, with flags changed, added, or (None) left out."""
        return self._command({"tower_a": self.tower, "tower_b": self.tower, "cascade_start_layer": "1"}, more, changes)

    def simcse(self, *more: str, **changes: str | None) -> list[str]:
        """A good SimCSE run, likewise."""
        return self._command({"model": self.masked_lm}, more, changes)

    def distill(self, *more: str, **changes: str | None) -> list[str]:
        """A good distillation, likewise."""
        given = self._command({"student": self.tower, "teacher": self.tower}, more, changes)
        return ["distill", *given[1:]]

    def adapt(self, **changes: str | None) -> list[str]:
        """A good adaptation but for its text, which is to be given, with flags changed, added, or (None) left out."""
        own = {"model": self.tower, "text": None, "max_steps": "2", "use_cpu": "true", "bf16": "false"}
        flags = {**own, "output_dir": str(self.here / "run"), **changes}
        return ["adapt", *(f"--{name}={value}" for name, value in flags.items() if value is not None)]

    def _command(self, own: dict[str, str], more: tuple[str, ...], changes: dict[str, str | None]) -> list[str]:
        flags = {
            **own,
            "train_file": str(self.text),
            "dev_file": f"stsb={self.dev}",
            "max_steps": "2",
            "eval_strategy": "steps",
            "eval_steps": "1",
            "save_strategy": "steps",
            "save_steps": "1",
            "per_device_train_batch_size": "8",
            "report_to": "none",
            "use_cpu": "true",
            "disable_tqdm": "true",
            "output_dir": str(self.here / "run"),
            **changes,
        }
        if own.get("tower_a"):
            flags.setdefault("constraint_layers", "1")
        words = [
            word for name, value in flags.items() if value is not None for word in (f"--{name}", *value.split(" "))
        ]
        return ["train", *words, *more]


Make = Callable[[Place], list[str]]


@dataclass
class Case:
    """One wrong input.

    Args:
        what: for a person.
        make: writes the input, gives the command line.
        words: that the one line must hold.
        own_output: the output folder is the case's matter; else one that holds a run is given, to be overwritten.
    """

    what: str
    make: Make
    words: str
    own_output: bool = field(default=False)


def text(what: str, name: str, content: str | bytes, words: str, **changes: str) -> Case:
    """Training text that is wrong."""
    return Case(what, lambda place: place.cacse(train_file=place.file(name, content), **changes), words)


def dev(what: str, name: str, content: str | bytes, words: str) -> Case:
    """A dev file that is wrong."""
    return Case(what, lambda place: place.cacse(dev_file=f"stsb={place.file(name, content)}"), words)


def flag(what: str, words: str, **changes: str) -> Case:
    """A flag of a CACSE run that is wrong."""
    return Case(what, lambda place: place.cacse(**changes), words)


def simcse(what: str, words: str, *more: str, **changes: str) -> Case:
    """A flag of a SimCSE run that is wrong."""
    return Case(what, lambda place: place.simcse(*more, **changes), words)


def recipe(what: str, content: str, words: str) -> Case:
    """A recipe that is wrong."""
    return Case(what, lambda place: place.cacse(*place.recipe(content)), words)


def raw(what: str, name: str, content: str | bytes, words: str, **changes: str) -> Case:
    """Text of one's own that is wrong."""
    return Case(what, lambda place: place.adapt(text=place.file(name, content), **changes), words)


def documents(count: int) -> str:
    """Documents with a title each, one a line."""
    return "".join(
        json.dumps({"title": f"thing {i}", "body": f"The thing {i} is red. It has {i} wheels."}) + "\n"
        for i in range(count)
    )


def pipe(place: Place) -> list[str]:
    os.mkfifo(place.here / "pipe.txt")
    return place.adapt(text=str(place.here / "pipe.txt"))


def link_to_nothing(place: Place) -> list[str]:
    (place.here / "texts").mkdir()
    (place.here / "texts" / "gone.txt").symlink_to(place.here / "nowhere.txt")
    return place.adapt(text=str(place.here / "texts"))


def no_hits(place: Place) -> list[str]:
    folder = place.here / "beir"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "1", "text": "a"}\n{"_id": "2", "text": "b"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "1", "text": "a?"}\n')
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\t1\t0\n")
    return place.adapt(text=place.file("a.jsonl", documents(120)), dev_queries=str(folder))


def table_onto_its_encoder(place: Place) -> list[str]:
    folder = place.copy()
    (folder / "README.md").write_text(render_card(CardFacts("tower", "An encoder.")))
    return ["export-static", "--model", str(folder), "--pooling", "mean", "--output_dir", str(folder)]


HEAD = "sentence1\tsentence2\tscore\n"
PAIR_ROWS = "a man\tthe man\t{}\na dog\tthe cat\t1\n"
CSV_ROWS = "a man,the man\nblue cat,big cat\n" * 8


def no_start(place: Place) -> list[str]:
    """Chinese text, whose start is on the hub."""
    text = "".join(f"今天天气很好，我们去公园散步{number}。\n" for number in range(64))
    return place.simcse(model=None, train_file=place.file("chinese.txt", text))


def numbers_in_parquet(place: Place) -> list[str]:
    path = place.here / "numbers.parquet"
    pq.write_table(pa.table({"text": [1, 2, 3]}), path)
    return place.cacse(train_file=str(path))


def spoiled(change: Callable[[Path], None], flag_name: str = "tower_b") -> Make:
    def make(place: Place) -> list[str]:
        folder = place.copy()
        change(folder)
        return place.cacse(**{flag_name: str(folder)})

    return make


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:3000])


def nan_weights(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["encoder.layer.1.output.dense.weight"][0, 0] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("*"):
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()


def pickled_weights(folder: Path) -> None:
    import pickle

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Payload(folder / "touched")))


class _Payload:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def other_vocabulary(place: Place) -> list[str]:
    folder = Path(shutil.copytree(place.masked_lm, place.here / "generator"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["man"], vocabulary["dog"] = vocabulary["dog"], vocabulary["man"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return place.simcse(generator=str(folder))


def fill_with_a_run(folder: Path) -> None:
    """What a finished run leaves, in small."""
    for name in ("checkpoint-2", "export/tower_a"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")
        (folder / name / "model.safetensors").write_bytes(b"weights")
    (folder / "checkpoint-2" / "trainer_state.json").write_text('{"global_step": 2}')
    (folder / "export" / "tower_a" / "README.md").write_text(render_card(CardFacts("run tower_a", "An encoder.")))
    (folder / "training_report.json").write_text("{}")
    (folder / "notes.md").write_text("mine")


def finished(place: Place) -> list[str]:
    fill_with_a_run(place.here / "run")
    return place.cacse()


def unfinished(place: Place) -> list[str]:
    fill_with_a_run(place.here / "run")
    (place.here / "run" / "training_report.json").unlink()
    return place.cacse()


def foreign(place: Place) -> list[str]:
    (place.here / "run").mkdir()
    (place.here / "run" / "thesis.txt").write_text("years of work")
    return place.cacse("--overwrite_output_dir")


def occupied(place: Place) -> list[str]:
    (place.here / "run").mkdir()
    HELD.append(take(place.here / "run" / ".lock"))
    return place.cacse()


HELD: list = []  # locks of a running run


def damaged_checkpoint(place: Place) -> list[str]:
    fill_with_a_run(place.here / "run")
    (place.here / "run" / "training_report.json").unlink()
    (place.here / "run" / "checkpoint-2" / "trainer_state.json").write_text('{"global_st')
    return place.cacse(resume_from_checkpoint="last")


def half_an_output(place: Place) -> list[str]:
    place.file("file", "")
    return place.cacse(output_dir=str(place.here / "file" / "run"))


def own_checkpoint(place: Place) -> str:
    """What a training saves of itself, with its tokenizer."""
    folder = place.here / "own_checkpoint"
    SentenceEmbeddingModel.from_encoder(place.masked_lm, pooling="mean").save_pretrained(folder)
    place.tokenizer.save_pretrained(folder)
    return str(folder)
