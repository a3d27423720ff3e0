"""A guide in training: read as its folder states, leaving out what the formula says, and no part of the model."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertModel

from cacse_trainer import SentenceEmbeddingModel, SentenceEncoder
from cacse_trainer.cli import train
from cacse_trainer.cli.common import run
from cacse_trainer.encoding.loading import load_encoder
from cacse_trainer.errors import UserError
from cacse_trainer.losses import false_negatives, info_nce
from cacse_trainer.models.computing import ComputeSettings
from cacse_trainer.training.guide import GUIDE, Guide, GuidedCollator
from tests.conftest import WORDS, tiny_config

ROWS = [
    {
        "anchor": f"a {WORDS[i]} man",
        "positive": f"the {WORDS[i + 1]} man is",
        "negative_1": "a dog",
        "negative_2": "red",
    }
    for i in range(8)
]


@pytest.fixture(scope="module")
def guide_folder(tmp_path_factory, tiny_tokenizer) -> str:
    """A sentence-transformers folder of another width that states max pooling, a prompt and a length."""
    folder = tmp_path_factory.mktemp("guide")
    torch.manual_seed(5)
    BertModel(tiny_config("bert", layers=2, hidden_size=16)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    pooling = {"word_embedding_dimension": 16, "pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}
    files = {
        "modules.json": modules,
        "1_Pooling/config.json": pooling,
        "sentence_bert_config.json": {"max_seq_length": 7, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {"query": "big red "}, "default_prompt_name": "query"},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return str(folder)


def test_it_reads_as_its_folder_states_and_leaves_out_by_the_formula(guide_folder, tiny_tokenizer):
    guide = Guide(load_encoder(guide_folder, device="cpu"), 32, margin=0.05, margin_type="relative")
    batch = GuidedCollator(tiny_tokenizer, 32, guide.reader)(ROWS)
    assert batch[f"{GUIDE}input_ids"].shape[:2] == (8, 4) and batch[f"{GUIDE}input_ids"].shape[2] <= 7
    encoder = SentenceEncoder(guide_folder, device="cpu")
    assert encoder.pooling == "max"
    texts = [row[name] for row in ROWS for name in ("anchor", "positive", "negative_1", "negative_2")]
    expected = torch.from_numpy(encoder.encode(texts, normalize=False)).unflatten(0, (8, 4))
    for compute in (ComputeSettings(), ComputeSettings(None, 3)):
        found = guide.left_out(batch, compute, within_views=False)
        assert torch.equal(found, false_negatives(expected, 0.05, "relative")) and found.any()
    single = GuidedCollator(tiny_tokenizer, 32, guide.reader)([{"text": row["anchor"]} for row in ROWS])
    assert single["input_ids"].shape[1] == 2 and single[f"{GUIDE}input_ids"].shape[1] == 1
    views = expected[:, :1].repeat(1, 2, 1)
    found = guide.left_out(single, ComputeSettings(), within_views=True)
    assert torch.equal(found, false_negatives(views, 0.05, "relative", within_views=True))


@pytest.mark.parametrize(("margin", "kind"), [(2.5, "absolute"), (1.0, "relative")])
def test_a_margin_out_of_range(guide_folder, margin, kind):
    with pytest.raises(UserError, match=r"guide_margin .* is out of range"):
        Guide(load_encoder(guide_folder, device="cpu"), margin=margin, margin_type=kind)


@pytest.fixture
def command(tmp_path, masked_lm):
    rows = [",".join(row.values()) for row in ROWS] * 2
    (tmp_path / "rows.csv").write_text("\n".join([",".join(ROWS[0]), *rows]) + "\n")
    return [
        *(
            "--model",
            masked_lm,
            "--pooling",
            "mean",
            "--train_file",
            str(tmp_path / "rows.csv"),
            "--evaluation",
            "none",
        ),
        *("--max_steps", "2", "--save_steps", "2", "--per_device_train_batch_size", "8", "--learning_rate", "1e-3"),
        *("--bf16", "false", "--report_to", "none", "--use_cpu", "true", "--disable_tqdm", "true"),
        *("--logging_steps", "1", "--output_dir", str(tmp_path / "run")),
    ]


@pytest.mark.parametrize("which", ["start", "folder"])
def test_a_run_with_a_guide_logs_what_is_left_out_and_saves_the_model_alone(command, guide_folder, tmp_path, which):
    flags = ["--guide", "start" if which == "start" else guide_folder, "--guide_margin", "0.1"]
    flags += ["--within_view_negatives", "--matryoshka_dims", "32", "8"]
    assert run(train.main, [*command, *flags]) == 0
    report = json.loads((tmp_path / "run" / "training_report.json").read_text())
    shares = [entry["guide_left_out"] for entry in report["log_history"] if "guide_left_out" in entry]
    assert len(shares) == 2 and all(0 < share < 1 for share in shares)
    names = {name.split(".")[0] for name in load_file(tmp_path / "run" / "model.safetensors")}
    assert names == {"encoder"}
    card = (tmp_path / "run" / "export" / "encoder" / "README.md").read_text()
    assert "the first 32, 8 coordinates of its vectors serve by themselves" in card
    assert all(f"{cited}," in card for cited in ("gao2021simcse", "kusupati2022matryoshka", "solatorio2024gist"))


def test_the_step_is_the_plain_formula(guide_folder, masked_lm, make_trainer, tiny_tokenizer):
    """What the trainer's loss is, with a guide of another width, from the vectors of the model and of the guide."""
    torch.manual_seed(3)
    model = SentenceEmbeddingModel.from_encoder(masked_lm, pooling="mean")
    trainer = make_trainer(model=model, guide=Guide(load_encoder(guide_folder, device="cpu"), 64, 0.1))
    batch = trainer.data_collator(ROWS)
    before = {name: p.clone() for name, p in trainer.guide.model.named_parameters()}
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    loss.backward()
    guide = torch.from_numpy(
        SentenceEncoder(guide_folder, device="cpu").encode([text for row in ROWS for text in row.values()])
    ).unflatten(0, (8, 4))
    x = outputs.embeddings
    expected = info_nce(x[:, 0], x[:, 1], x[:, 2:], left_out=false_negatives(guide, 0.1))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in trainer.guide.model.named_parameters())
    with pytest.raises(UserError, match="make the batches by GuidedCollator"):
        trainer.compute_loss(trainer.model, {k: v for k, v in batch.items() if not k.startswith(GUIDE)})


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--guide", "start", "--objective", "cosent"], "guide has no effect with objective cosent"),
        (["--guide_margin", "0.1"], "guide_margin has no effect without a guide"),
        (["--guide", "nowhere/at/all"], "model nowhere/at/all: no such folder"),
        (["--guide", "start", "--guide_margin", "3"], "guide_margin 3 is out of range"),
        (["--guide", "start", "--guide_margin_type", "percent"], "guide_margin_type"),
        (["--matryoshka_dims", "64", "8"], "from 1 to the vectors' 32 dimensions"),
        (["--matryoshka_weights", "1"], "matryoshka_weights belong to matryoshka_dims"),
    ],
)
def test_wrong_settings(command, capsys, flags, words):
    assert run(train.main, [*command, *flags]) == 2
    assert words in capsys.readouterr().err
