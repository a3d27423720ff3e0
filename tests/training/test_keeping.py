"""Not forgetting: the drift of general sentences' cosines, drawn by the step, and its part in the loss."""

import json

import pytest
import torch
from datasets import Dataset
from torch.nn.parallel import DistributedDataParallel

from cacse_trainer import SentenceEmbeddingModel, SentenceEncoder, load_sentences
from cacse_trainer.cli import train
from cacse_trainer.cli.common import run
from cacse_trainer.compute import distributed
from cacse_trainer.encoding.loading import load_encoder
from cacse_trainer.errors import UserError
from cacse_trainer.losses import cosine_drift
from cacse_trainer.models.computing import ComputeSettings
from cacse_trainer.models.tokenizer_bundle import load_tokenizer_of
from cacse_trainer.training.keeping import Keeping
from tests.conftest import write_sentences
from tests.distributed.processes import run_processes


def test_drift_is_the_mean_over_the_pairs():
    generator = torch.Generator().manual_seed(0)
    own, old = torch.randn(5, 4, generator=generator), torch.randn(5, 7, generator=generator)
    cos = torch.nn.functional.cosine_similarity
    squares = [
        (cos(own[i], own[j], dim=0) - cos(old[i], old[j], dim=0)) ** 2 for i in range(5) for j in range(5) if i != j
    ]
    assert cosine_drift(own, old).item() == pytest.approx((sum(squares) / 20).item(), rel=1e-5)
    assert cosine_drift(own, own).item() == 0 == cosine_drift(own[:1], old[:1]).item()
    with pytest.raises(ValueError, match=r"got \(5, 4\) and \(4, 7\)"):
        cosine_drift(own, old[:4])


def make_keeping(folder: str, sentences: Dataset) -> Keeping:
    model = load_encoder(folder, pooling="mean", device="cpu")
    tokenizer = load_tokenizer_of(folder, model.model.config)
    return Keeping(model, sentences, tokenizer, max_seq_length=12)


def test_draws_hang_on_the_numbers_alone_and_are_dealt_out(masked_lm, tmp_path, monkeypatch):
    sentences = load_sentences(write_sentences(tmp_path / "general.txt", 40))
    keeping = make_keeping(masked_lm, sentences)
    whole = keeping.draw(8, 7, 3, 0)["kept"]["input_ids"]
    torch.manual_seed(5)
    assert torch.equal(whole, keeping.draw(8, 7, 3, 0)["kept"]["input_ids"])
    assert not torch.equal(whole, keeping.draw(8, 7, 4, 0)["kept"]["input_ids"])
    monkeypatch.setattr("cacse_trainer.training.keeping.world_size", lambda: 2)
    parts = []
    for number in range(2):
        monkeypatch.setattr("cacse_trainer.training.keeping.rank", lambda number=number: number)
        parts += [row[row != 0].tolist() for row in keeping.draw(4, 7, 3, 0)["kept"]["input_ids"]]
    assert parts == [row[row != 0].tolist() for row in whole]
    with pytest.raises(UserError, match="keep_file has 40 rows, fewer than a batch of 64"):
        keeping.check_size(64)
    with pytest.raises(UserError, match=r"keep_file holds single sentences \(a column text\), it has anchor"):
        make_keeping(masked_lm, sentences.rename_column("text", "anchor"))


def step(folder: str, sentences: Dataset, mini_batch_size: int | None = None) -> dict[str, torch.Tensor]:
    """One step of a model that has moved away from its start, on this process's part of 8 rows and 8 sentences."""
    keeping = make_keeping(folder, sentences)
    torch.manual_seed(3)
    model = SentenceEmbeddingModel.from_encoder(folder, pooling="mean", keep_weight=5.0).double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    model.use(ComputeSettings(None, mini_batch_size))
    world, rank = distributed.world_size(), distributed.rank()
    ids = torch.randint(5, 27, (8, 2, 6), generator=torch.Generator().manual_seed(0)).chunk(world)[rank]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **keeping.draw(8 // world, 7, 3, 0)}
    batch = keeping.with_start(batch, model.compute)
    batch["kept"]["start_vectors"] = batch["kept"]["start_vectors"].double()
    wrapped = DistributedDataParallel(model) if world > 1 else model
    output = wrapped(**batch)
    output.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    parts = {f"part.{name}": value for name, value in output.losses.items()}
    return {**gradients, **parts, "loss": output.loss.detach()}


def work(rank: int, folder: str, general: str, results: str) -> None:
    torch.save(step(folder, load_sentences(general), mini_batch_size=3), f"{results}/{rank}")


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-6 * value.abs().max().clamp(min=1e-3), name


@pytest.mark.slow
def test_gradient_cache_and_two_processes_equal_the_plain_step(masked_lm, tmp_path):
    general = write_sentences(tmp_path / "general.txt", 40)
    expected = step(masked_lm, load_sentences(general))
    drift = expected["part.drift"]
    assert drift > 1e-4 and expected["loss"] == pytest.approx(expected["part.contrastive"] + 5 * drift)
    assert_same(step(masked_lm, load_sentences(general), mini_batch_size=3), expected)
    run_processes(work, 2, str(tmp_path), masked_lm, str(general), str(tmp_path))
    for rank in range(2):
        assert_same(torch.load(tmp_path / str(rank), weights_only=True), expected)


@pytest.fixture
def command(tmp_path, masked_lm, text_file):
    return [
        *("--model", masked_lm, "--pooling", "mean", "--train_file", str(text_file), "--evaluation", "none"),
        *("--max_steps", "4", "--save_steps", "4", "--per_device_train_batch_size", "8", "--learning_rate", "1e-2"),
        *("--bf16", "false", "--report_to", "none", "--use_cpu", "true", "--disable_tqdm", "true"),
        *("--logging_steps", "1", "--warmup_steps", "0", "--dropout", "0.1"),
        *("--output_dir", str(tmp_path / "run"), "--overwrite_output_dir"),
    ]


def test_a_run_forgets_less(command, masked_lm, text_file, tmp_path):
    general = [line.strip() for line in text_file.read_text().splitlines()[:16]]
    start = torch.from_numpy(SentenceEncoder(masked_lm, pooling="mean", device="cpu").encode(general))
    drifts = {}
    for weight in ("0", "1000"):
        flags = ["--keep_weight", weight, *(["--keep_file", str(text_file)] if weight != "0" else [])]
        assert run(train.main, [*command, *flags]) == 0
        folder = tmp_path / "run" / "export" / "encoder"
        found = torch.from_numpy(SentenceEncoder(folder, device="cpu").encode(general))
        drifts[weight] = cosine_drift(found, start).item()
    assert drifts["1000"] < drifts["0"] / 2
    history = json.loads((tmp_path / "run" / "training_report.json").read_text())["log_history"]
    assert sum("loss_drift" in entry for entry in history) == 4


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--keep_weight", "1"], "give them with keep_file"),
        (["--keep_file", "x.txt"], "keep_file has no effect with keep_weight 0"),
        (["--keep_weight", "1", "--keep_file", "nowhere.txt"], "nowhere.txt: no such file"),
        (["--keep_weight", "-1", "--keep_file", "x.txt"], "keep_weight must not be negative"),
    ],
)
def test_wrong_settings(command, capsys, flags, words):
    assert run(train.main, [*command, *flags]) == 2
    assert words in capsys.readouterr().err
