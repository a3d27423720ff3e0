"""The CACSE road with RoBERTa, end to end: SimCSE towers, joint training, distillation, evaluation of the exports.

There is no RoBERTa weight on the development machines: the towers are tiny and random, the tokenizer is a real
byte-level BPE, trained on Wikipedia text where it is at hand, else on the shipped sample.
"""

import json

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModel, AutoTokenizer, RobertaConfig, RobertaModel, RobertaTokenizer

from cacse_trainer import CacseRobertaModel, SentenceEncoder
from cacse_trainer.cli import distill, train
from cacse_trainer.cli.common import run
from cacse_trainer.settings.resources import resolve_resource
from tests.conftest import SHARED
from tests.tolerances import assert_near

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    """A few hundred sentences of Wikipedia, or of the sample."""
    wiki = SHARED / "data" / "wiki" / "wiki.txt"
    source = wiki if wiki.is_file() else resolve_resource("sample:sentences.txt")
    with open(source, encoding="utf-8") as lines:
        sentences = [line.strip() for _, line in zip(range(400), lines, strict=False)]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(sentences) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def roberta(tmp_path_factory, text) -> str:
    """A tiny random RoBERTa with 2 layers, laid out as roberta-base is: padding id 1, 514 positions."""
    folder = tmp_path_factory.mktemp("roberta")
    bpe = ByteLevelBPETokenizer()
    bpe.train([text], vocab_size=800, special_tokens=SPECIAL, show_progress=False)
    bpe.save_model(str(folder))
    tokenizer = RobertaTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=512
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=514,
        type_vocab_size=1,
        initializer_range=0.2,
    )
    RobertaModel(config).save_pretrained(folder)
    return str(folder)


def test_towers_joint_training_and_student(roberta, text, tmp_path):
    dev = tmp_path / "dev.tsv"
    with open(resolve_resource("sample:dev.tsv"), encoding="utf-8") as lines:
        dev.write_text("".join(line for _, line in zip(range(41), lines, strict=False)), encoding="utf-8")
    common = [
        *("--train_file", text, "--dev_file", f"stsb={dev}", "--max_steps", "3"),
        *("--eval_steps", "3", "--bf16", "false"),
        *("--per_device_train_batch_size", "16", "--learning_rate", "1e-3", "--max_seq_length", "32"),
        *("--report_to", "none", "--use_cpu", "true", "--disable_tqdm", "true"),
    ]
    towers = []
    for name, seed in (("tower_a", "1"), ("tower_b", "2")):
        single = ["--model", roberta, "--mlp_only_train", "true", "--seed", seed, "--output_dir", str(tmp_path / name)]
        assert run(train.main, [*common, *single]) == 0
        towers.append(str(tmp_path / name / "export" / "encoder"))
    joint = tmp_path / "joint"
    cascade = ["--cascade_start_layer", "1", "--constraint_layers", "1", "--tower_dropout", "0.10", "0.15"]
    pair = ["--tower_a", towers[0], "--tower_b", towers[1], "--constraint", roberta]
    assert run(train.main, [*common, *pair, *cascade, "--output_dir", str(joint)]) == 0
    assert type(AutoModel.from_pretrained(joint)) is CacseRobertaModel
    student = ["--student", roberta, "--teacher", str(joint / "export"), "--output_dir", str(tmp_path / "student")]
    assert run(distill.main, [*common, *student]) == 0
    report = json.loads((tmp_path / "student" / "training_report.json").read_text())
    joint_report = json.loads((joint / "training_report.json").read_text())
    assert report["teacher"]["scores"]["stsb"] == pytest.approx(joint_report["exported"]["ensemble"]["stsb"], abs=1e-3)

    sentences = ["A man is playing a guitar.", "naïve café – £5 \N{GRINNING FACE}", "", "word " * 600]
    for folder, model in (
        (joint / "export" / "ensemble", joint),
        (tmp_path / "student" / "export" / "student", tmp_path / "student"),
    ):
        trained = AutoModel.from_pretrained(model).eval()
        tokenizer = AutoTokenizer.from_pretrained(model)
        inputs = tokenizer(sentences, padding=True, truncation=True, max_length=512, return_tensors="pt")
        expected = trained.embed(**inputs).detach().numpy()
        found = SentenceEncoder(str(folder), device="cpu").encode(sentences, normalize=False)
        assert_near(found, expected)
