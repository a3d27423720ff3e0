"""What users of the original projects type: it works, or one line says what to type instead."""

import json
import re
import shutil
import subprocess

import pytest

from cacse_trainer import DiffCSE, SentenceEncoder, SimCSE, load_sentences
from cacse_trainer.cli import demo, distill, evaluate, import_reference, search, sweep, train
from cacse_trainer.cli.common import run
from cacse_trainer.errors import UserError
from cacse_trainer.models.bidirectional import tell_of_environment
from cacse_trainer.settings.old_names import COUNTERPARTS
from cacse_trainer.settings.recipes import find_recipe, parse_run, read_recipe
from tests.conftest import ROOT, write_sentences
from tests.tolerances import assert_near


@pytest.fixture
def small(masked_lm, text_file, dev_file, tmp_path):
    return [
        *("--model", masked_lm, "--train_file", str(text_file), "--dev_file", f"stsb={dev_file}", "--max_steps", "2"),
        *("--eval_steps", "2", "--per_device_train_batch_size", "8", "--bf16", "false", "--use_cpu", "true"),
        *("--disable_tqdm", "true", "--output_dir", str(tmp_path / "run")),
    ]


def test_group_by_length_reads_raw_text(small, tmp_path):
    assert run(train.main, [*small, "--train_sampling_strategy", "group_by_length"]) == 0
    report = json.loads((tmp_path / "run" / "training_report.json").read_text())
    assert report["steps"] == 2 and report["settings"]["train_sampling_strategy"] == "group_by_length"


def test_groups_are_of_similar_length(make_trainer, tmp_path):
    from cacse_trainer.settings.arguments import CacseTrainingArguments

    text = load_sentences(write_sentences(tmp_path / "more.txt", 640))
    trainer = make_trainer(kind=CacseTrainingArguments, text=text, train_sampling_strategy="group_by_length")
    order = list(trainer._get_train_sampler())
    lengths = [len("".join(trainer.train_dataset[i].values())) for i in order]
    assert sorted(order) == list(range(640)) and lengths != sorted(lengths, reverse=True)
    spread = sum(max(lengths[i : i + 8]) - min(lengths[i : i + 8]) for i in range(8, 640, 8))
    assert spread / 79 < (max(lengths) - min(lengths)) / 5


def test_sweep_takes_its_text_and_says_so_where_there_is_none(tmp_path, capsys):
    flags = ["--config", "simcse/minilm", "--seeds", "1", "2", "--output_dir", str(tmp_path / "sweep"), "--plan"]
    assert run(sweep.main, flags) == 2
    assert "recipe simcse/minilm names none; give --train_file FILE" in capsys.readouterr().err
    assert run(sweep.main, [*flags, "--train_file", "mine.txt"]) == 0
    assert capsys.readouterr().out.count("--train_file mine.txt") == 2


def test_a_training_of_this_package_is_not_imported_as_a_release(small, masked_lm, tmp_path, capsys):
    flags = ["--generator", masked_lm, "--export", "false", "--evaluation", "none", "--dev_file"]
    assert run(train.main, [*small[:4], *small[6:], *flags[:-1]]) == 0
    capsys.readouterr()
    where = ["--checkpoint", str(tmp_path / "run"), "--output_dir", str(tmp_path / "imported")]
    assert run(import_reference.main, [*where, "--head", "drop"]) == 2
    assert "is a training's own checkpoint (diffcse)" in capsys.readouterr().err
    assert run(import_reference.main, [*where, "--tower_a", masked_lm]) == 2
    told = capsys.readouterr()
    assert len(told.out) + len(told.err) < 3000


@pytest.mark.parametrize(
    "script",
    [
        *("scripts/download_nli.sh", "scripts/download_wiki.sh", "SentEval/data/downstream/download_dataset.sh"),
        "SentEval/data/probing/download_probing.sh",
    ],
)
def test_scripts_start_by_sh_too(script):
    """As the originals' pages have it: ``sh download_dataset.sh``."""
    place = (ROOT / script).parent
    done = subprocess.run(["sh", (ROOT / script).name, "--help"], cwd=place, capture_output=True, text=True, timeout=60)
    assert "Illegal option" not in done.stderr and "download" in done.stdout + done.stderr


def test_every_old_flag_has_its_row_and_its_answer(capsys):
    page = (ROOT / "docs" / "migrating.md").read_text()
    known = {
        flag for module in (train, evaluate, distill, demo, search) for flag in module.parser()._option_string_actions
    }
    for name, instead in COUNTERPARTS.items():
        assert f"| `--{name}` |" in page or f"`--{name} " in page or f"`--{name}`" in page, name
        for word in re.findall(r"(?<![\w-])--[a-z0-9_]+", instead):
            assert word in known | {"--checkpoint", "--revision"}, (name, word)


def test_what_pages_of_the_originals_write_behind_a_model(tiny_towers, monkeypatch):
    """``AnglE.from_pretrained(…).cuda()``, ``encode(…, to_numpy=True)``, and torch's ``eval``."""
    encoder = SentenceEncoder(tiny_towers("bert")[0], "mean", device="cpu")
    assert encoder.eval() is encoder and encoder.cpu() is encoder
    assert encoder.encode([{"text": "a man"}], to_numpy=True).shape == (1, 32)
    with pytest.raises(UserError, match="to_numpy=False is not supported; give convert_to_tensor=True"):
        encoder.encode(["a man"], to_numpy=False)
    monkeypatch.setattr(SentenceEncoder, "to", lambda self, device: device)
    assert encoder.cuda() == "cuda"


def test_all_unknown_flags_are_answered_at_once(small, capsys):
    assert run(train.main, [*small, "--temp", "0.05", "--pooler_type=cls", "--learning_rat", "1e-5"]) == 2
    told = capsys.readouterr().err
    for words in (
        "'--temp', which is here --contrastive_temperature; ",
        "'--pooler_type', which is here --pooling; ",
        "'--learning_rat'; did you mean --learning_rate",
    ):
        assert words in told
    assert run(evaluate.main, ["--model", "x", "--task_set", "sts", "--pooler", "cls"]) == 2
    assert "--suite sts, transfer or full" in capsys.readouterr().err


def test_the_tools_by_their_own_names(tmp_path, tiny_towers):
    folder = tiny_towers("bert")[0]
    for name in ("unsup-mine", "sup-mine"):
        shutil.copytree(folder, tmp_path / name)
    read = {"raw": SentenceEncoder(folder, "cls_before_pooler"), "head": SentenceEncoder(folder, "cls_with_mlp")}
    expected = {name: encoder.encode(["a man"]) for name, encoder in read.items()}
    for made, how in (
        (SimCSE(str(tmp_path / "unsup-mine")), "raw"),
        (SimCSE(str(tmp_path / "sup-mine")), "head"),
        (SimCSE(folder, pooler="cls_before_pooler", num_cells=10), "raw"),
        (SimCSE(folder, "cpu", pooler="cls"), "head"),
        (DiffCSE(folder), "raw"),
    ):
        assert_near(made.encode(["a man"]), expected[how])
        assert_near(made.recipe()(device="cpu").encode(["a man"]), expected[how])


def test_faiss_is_used_by_itself_for_a_large_corpus(tiny_towers, monkeypatch):
    pytest.importorskip("faiss")
    encoder = SentenceEncoder(tiny_towers("bert")[0], "mean", "cpu")
    sentences = ["a man", "the red house", "a dog running"]
    encoder.build_index(sentences)
    assert encoder.index.kind == "exact"
    found = encoder.search("a red house", threshold=-1)
    monkeypatch.setattr("cacse_trainer.encoding.searching.FAISS_FROM", 3)
    encoder.build_index(sentences)
    assert encoder.index.kind == "flat"
    assert [text for text, _ in encoder.search("a red house", threshold=-1)] == [text for text, _ in found]
    encoder.build_index(sentences, use_faiss=False)
    assert encoder.index.kind == "exact"


def test_bare_mlp_only_train():
    parsed = parse_run(
        train.parser(), ["--mlp_only_train", "--pooling", "cls", "--output_dir", "x", "--use_cpu", "true"]
    )
    assert parsed.groups[0].mlp_only_train is True


def test_angles_way_of_encoding(tiny_towers):
    """BeLLM's page: ``set_prompt``, then rows with a ``text``."""
    folder, docs = tiny_towers("bert")[0], ["a man", "the red house", "a dog"]
    encoder = SentenceEncoder(folder, "mean")
    plain = encoder.encode(docs)
    assert_near(encoder.encode([{"text": doc} for doc in docs]), plain)
    assert_near(encoder.encode({"text": docs[0]}, keepdim=True)[0], plain[0])
    assert_near(encoder.encode({"text": doc} for doc in docs), plain)
    encoder.set_prompt(prompt="the {text} is big")
    prompted = SentenceEncoder(folder, "mean", prompt_template="the {text} is big")
    assert_near(encoder.encode([{"text": doc} for doc in docs]), prompted.encode(docs))
    assert encoder.settings() == prompted.settings()
    assert_near(encoder.recipe()(device="cpu").encode(docs), prompted.encode(docs))
    encoder.set_prompt(None)
    assert_near(encoder.encode(docs), plain)
    with pytest.raises(UserError, match="got the keys sentence"):
        encoder.encode([{"sentence": "a man"}])
    with pytest.raises(UserError, match="exactly once"):
        encoder.set_prompt("no place")


def test_billms_variable_is_told(monkeypatch, caplog):
    monkeypatch.setenv("BiLLM_START_INDEX", "31")
    tell_of_environment("A", "llama", None)
    assert "give bidirectional_start_layer 31" in caplog.text
    caplog.clear()
    tell_of_environment("A", "llama", 31)
    tell_of_environment("A", "bert", None)
    assert not caplog.text


def test_bellms_recipes_have_its_pages_values():
    first, second = (read_recipe(find_recipe(f"decoder/bellm_llama2_7b_stage{stage}")) for stage in (1, 2))
    assert first["model"] == "NousResearch/Llama-2-7b-chat-hf" and second["model"] == "NousResearch/Llama-2-7b-hf"
    for recipe in (first, second):  # 4 processes
        assert float(recipe["learning_rate"]) == 2e-4 and recipe["num_train_epochs"] == 3
        assert recipe["gradient_accumulation_steps"] * 4 == 32 and recipe["per_device_train_batch_size"] == 256
    assert second["eval_steps"] == 200 and "lora_r" not in second
