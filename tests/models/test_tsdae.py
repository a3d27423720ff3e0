"""TSDAE: the loss spelled out, a decoder that sees the one vector and the past alone, and how words are deleted."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModel, DistilBertConfig, DistilBertModel

from cacse_trainer.cli import train
from cacse_trainer.cli.common import run
from cacse_trainer.compute.distributed import rank, world_size
from cacse_trainer.data.deletion import Deletion, RawCollator, delete_words
from cacse_trainer.errors import UserError
from cacse_trainer.models import TsdaeModel
from cacse_trainer.models.computing import ComputeSettings
from tests.distributed.processes import run_processes


def make_model(folder: str, **settings) -> TsdaeModel:
    torch.manual_seed(3)
    model = TsdaeModel.from_encoder(folder, pooling="mean", tsdae_layers=2, **settings).double().train()
    torch.nn.init.normal_(model.word_bias)
    return model


def make_batch(rows: int = 8) -> dict[str, torch.Tensor]:
    """Whole sentences of several lengths and damaged ones."""
    generator = torch.Generator().manual_seed(0)
    batch = {}
    for prefix, width in (("", 9), ("damaged_", 5)):
        lengths = torch.randint(3, width + 1, (rows,), generator=generator)
        lengths[0] = width
        mask = (torch.arange(width) < lengths[:, None]).long()
        ids = torch.randint(5, 27, (rows, width), generator=generator) * mask
        batch.update({f"{prefix}input_ids": ids, f"{prefix}attention_mask": mask})
    return batch


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_loss_spelled_out(tiny_towers, kind):
    """Each sentence by itself and each token from those before it, by a decoder run anew for every token."""
    model, batch = make_model(tiny_towers(kind)[0]), make_batch()
    entropies = []
    for i in range(8):
        left = batch["damaged_input_ids"][i, : batch["damaged_attention_mask"][i].sum()]
        vector = model.encoder(left[None]).last_hidden_state.mean(dim=1)
        whole = batch["input_ids"][i, : batch["attention_mask"][i].sum()]
        for place in range(1, len(whole)):
            words = model.encoder.get_input_embeddings()(whole[None, :place])
            states = model.decoder(inputs_embeds=words, encoder_hidden_states=vector[:, None]).last_hidden_state
            hidden = model.norm(F.gelu(model.transform(states[0, -1])))
            logits = hidden @ model.encoder.get_input_embeddings().weight.T + model.word_bias
            entropies.append(F.cross_entropy(logits, whole[place]))
    output = model(**batch)
    assert output.loss.item() == pytest.approx(torch.stack(entropies).mean().item(), rel=1e-10)
    assert set(output.losses) == {"rebuilding"} and output.embeddings.shape == (8, 32)


def step(model, batch, **compute) -> dict[str, torch.Tensor]:
    model.use(ComputeSettings(**compute))
    model.zero_grad()
    torch.manual_seed(11)
    wrapped = DistributedDataParallel(model) if world_size() > 1 else model
    output = wrapped(**batch)
    output.loss.backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    return {**gradients, "loss": output.loss.detach()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name != "loss" or world_size() == 1:
            assert (found[name] - value).abs().max() <= 1e-10 * max(1.0, value.abs().max().item()), name


@pytest.mark.parametrize("compute", [(1, 3), (2, None), (None, None), (None, 3)])
def test_parts_and_gradient_caching_equal_the_plain_step(tiny_towers, compute):
    model, batch = make_model(tiny_towers("bert")[0]), make_batch()
    expected = step(model, batch)
    assert_same(step(model, batch, length_buckets=compute[0], mini_batch_size=compute[1]), expected)


def work(number: int, folder: str, results: str) -> None:
    batch = {name: tensor.chunk(2)[rank()] for name, tensor in make_batch().items()}
    torch.save(step(make_model(folder), batch, length_buckets=None, mini_batch_size=3), f"{results}/{number}")


@pytest.mark.slow
def test_two_processes_equal_one(masked_lm, tmp_path):
    """Each holds its share of the loss, by the number of its tokens; their mean is the loss."""
    expected = step(make_model(masked_lm), make_batch())
    run_processes(work, 2, str(tmp_path), masked_lm, str(tmp_path))
    found = [torch.load(tmp_path / str(number), weights_only=True) for number in range(2)]
    mean = {name: (found[0][name] + found[1][name]) / 2 for name in expected}
    assert_same(mean, expected)
    assert all(torch.equal(found[0][name], found[1][name]) for name in expected if name != "loss")


def test_where_the_decoder_starts_and_what_is_saved(masked_lm, tmp_path):
    model = TsdaeModel.from_encoder(masked_lm, pooling="mean", tsdae_layers=1)
    own, start = model.decoder.state_dict(), model.encoder.state_dict()
    assert torch.equal(own["encoder.layer.0.output.dense.weight"], start["encoder.layer.0.output.dense.weight"])
    assert any("crossattention" in name for name in own) and not any("layer.1." in name for name in own)
    assert model.decoder.get_input_embeddings().weight.shape[0] == 1
    model.save_pretrained(tmp_path)
    reloaded = AutoModel.from_pretrained(tmp_path)
    assert type(reloaded) is TsdaeModel
    assert [p.requires_grad for p in reloaded.parameters()] == [p.requires_grad for p in model.parameters()]
    batch = make_batch()
    assert torch.equal(model.eval()(**batch).loss, reloaded(**batch).loss)


def test_kinds_without_cross_attention_and_wrong_settings(tmp_path, masked_lm):
    DistilBertModel(DistilBertConfig(vocab_size=40, dim=24, n_layers=1, n_heads=2, hidden_dim=32)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match="decoder with cross-attention, which distilbert has not"):
        TsdaeModel.from_encoder(str(tmp_path), pooling="mean")
    for settings, words in (
        ({"tsdae_layers": 0}, "tsdae_layers must be a number from 1, got 0"),
        ({"tsdae_deletion": 1.0}, "tsdae_deletion must be from 0 to below 1"),
        ({"pooling": "cls"}, "TSDAE has no projection"),
    ):
        with pytest.raises(ValueError, match=words):
            TsdaeModel.from_encoder(masked_lm, **settings)


def test_six_words_of_ten_are_deleted():
    text = " ".join(f"w{i}" for i in range(1000))
    kept = delete_words(text, 0.6, np.random.default_rng(0)).split()
    assert 350 < len(kept) < 450 and kept == sorted(kept, key=lambda word: int(word[1:]))
    for seed in range(20):
        assert delete_words("one two", 0.99, np.random.default_rng(seed)) in ("one", "two")
        assert set(delete_words("我们去公园 now", 0.5, np.random.default_rng(seed)).split()) <= {*"我们去公园", "now"}
    assert delete_words("a b", 0.0, np.random.default_rng(0)) == "a b"
    assert delete_words(" ", 0.6, np.random.default_rng(0)) == " "


def test_deletions_hang_on_the_step_and_the_text(tiny_tokenizer):
    rows = [{"text": "a man is playing guitar in the big red park"}, {"text": "the dog is running and the cat is not"}]
    batch, deletion = RawCollator(tiny_tokenizer, 16, with_text_ids=True)(rows), Deletion(tiny_tokenizer, 16, 0.6)
    assert batch["input_ids"].dim() == 2 and batch["raw_text"] == [row["text"] for row in rows]
    first = deletion(batch, 7, 1, 0)
    assert "raw_text" not in first and first["damaged_input_ids"].shape[1] < batch["input_ids"].shape[1]
    turned = {**batch, "raw_text": batch["raw_text"][::-1]}
    assert torch.equal(deletion(turned, 7, 1, 0)["damaged_input_ids"], first["damaged_input_ids"].flip(0))
    assert any(
        deletion(batch, 7, n, 0)["damaged_input_ids"].tolist() != first["damaged_input_ids"].tolist() for n in (2, 3, 4)
    )
    with pytest.raises(UserError, match=r"TSDAE reads single sentences \(a column text\), a row has anchor, positive"):
        RawCollator(tiny_tokenizer, 16)([{"anchor": "a", "positive": "b"}])


@pytest.fixture
def command(tmp_path, masked_lm, text_file, dev_file):
    return [
        *(
            "--model",
            masked_lm,
            "--train_file",
            str(text_file),
            "--dev_file",
            f"stsb={dev_file}",
            "--tsdae_layers",
            "1",
        ),
        *("--max_steps", "4", "--eval_steps", "2", "--per_device_train_batch_size", "8", "--learning_rate", "1e-3"),
        *("--bf16", "false", "--report_to", "none", "--use_cpu", "true", "--disable_tqdm", "true"),
        *("--logging_steps", "1", "--output_dir", str(tmp_path / "run")),
    ]


def test_a_run_exports_its_encoder(command, tmp_path):
    assert run(train.main, command) == 0
    report = json.loads((tmp_path / "run" / "training_report.json").read_text())
    assert {key for entry in report["log_history"] for key in entry if key.startswith("loss_")} == {"loss_rebuilding"}
    assert report["exported"]["encoder"]["stsb"] == pytest.approx(report["best"], abs=1e-4)
    exported = AutoModel.from_pretrained(tmp_path / "run" / "export" / "encoder")
    assert type(exported).__name__ == "BertModel" and exported.config.is_decoder is False


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--objective", "nt_xent"], "objective has no effect with TSDAE"),
        (["--guide", "start"], "guide has no effect with TSDAE"),
        (["--mask_duplicates"], "mask_duplicates has no effect with TSDAE"),
        (["--generator", "x"], "tsdae_layers has no effect with DiffCSE"),
        (["--tsdae_layers", "0"], "tsdae_layers must be a number from 1"),
    ],
)
def test_wrong_flags(command, capsys, flags, words):
    assert run(train.main, [*command, *flags]) == 2
    assert words in capsys.readouterr().err
