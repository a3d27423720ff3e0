"""A ranking beside a single tower's own loss: by hand, gradient caching, two processes, cached vectors, resuming."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel
from transformers import BertTokenizerFast

from cacse_trainer import CacseTrainer, SentenceEmbeddingModel, load_sentences
from cacse_trainer.cli import train
from cacse_trainer.cli.common import run
from cacse_trainer.compute.distributed import rank, world_size
from cacse_trainer.encoding.members import load_members, load_similarities
from cacse_trainer.errors import UserError
from cacse_trainer.losses import cosines, info_nce, js_consistency, listmle_loss, listnet_loss
from cacse_trainer.models.computing import ComputeSettings
from cacse_trainer.settings.arguments import CacseTrainingArguments
from cacse_trainer.training.ranking import Ranking, RankingTerm
from tests.conftest import WORDS, write_sentences
from tests.distributed.processes import run_processes


def make_trainer(folders, masked_lm, output, ranking, **settings) -> CacseTrainer:
    """A SimCSE trainer whose teachers are two towers, in double precision; its head serves the training alone."""
    teacher, tokenizer = load_similarities([load_members(path, "cls") for path in folders[:2]], [0.3, 0.7])
    torch.manual_seed(3)
    own = {"dropout": 0.0, "mlp_only_train": True, "mlm_weight": 0.0, **settings}
    return CacseTrainer(
        model=SentenceEmbeddingModel.from_encoder(masked_lm, **own).double().train(),
        args=CacseTrainingArguments(output, use_cpu=True, bf16=False, per_device_train_batch_size=8 // world_size()),
        train_dataset=load_sentences(write_sentences(output / "sentences.txt")),
        processing_class=BertTokenizerFast.from_pretrained(folders[0]),
        ranking_term=RankingTerm(ranking, teacher.double(), tokenizer),
    )


def step(trainer, mini_batch_size=None) -> dict[str, torch.Tensor]:
    """Loss, its parts and gradients of this process's share of the first 8 rows."""
    trainer.model.use(ComputeSettings(None, mini_batch_size))
    rows = [trainer.train_dataset[i] for i in range(8)]
    batch = trainer.data_collator(rows[rank() * 8 // world_size() : (rank() + 1) * 8 // world_size()])
    wrapped = DistributedDataParallel(trainer.model) if world_size() > 1 else trainer.model
    loss = trainer.compute_loss(wrapped, batch)
    loss.backward()
    found = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    return {**found, "loss": loss.detach(), **{f"part.{k}": v for k, v in trainer._part_sums.items()}}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-8 * value.abs().max().clamp(min=1e-3), name


def test_the_weights_of_two_different_views():
    first, second, teacher = torch.randn(3, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ranking = Ranking("listnet", 0.7, 0.06, 0.03, 0.4, 0.08)
    parts = ranking.parts(first, second, teacher)
    consistency = js_consistency(cosines(first, second), cosines(second, first), 0.08)
    expected = listnet_loss(cosines(first, second), cosines(teacher, teacher), 0.06, 0.03)
    assert consistency > 0.01 and torch.allclose(parts["consistency"], consistency, rtol=1e-12)
    total = ranking.added_to(torch.tensor(2.0, dtype=torch.float64), parts)
    assert torch.allclose(total, 2 + 0.4 * consistency + 0.7 * expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["listnet", "listmle"])
def test_one_step_by_hand_and_with_gradient_caching(tiny_towers, masked_lm, tmp_path, kind):
    trainer = make_trainer(tiny_towers("bert"), masked_lm, tmp_path, Ranking(kind, 0.7, 0.06, 0.03, 0.4, 0.08))
    found = step(trainer)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    inputs = {name: batch[name][:, 0] for name in ("input_ids", "attention_mask")}
    given = 0.0
    for one, share in zip(trainer.ranking_term.teacher.teachers, (0.3, 0.7), strict=True):
        vectors = one.encoders[0](**inputs).last_hidden_state[:, 0]
        given = given + share * cosines(vectors, vectors)
    vectors = trainer.model.projection_head(trainer.model.encoder(**inputs).last_hidden_state[:, 0])
    own = cosines(vectors, vectors)
    ranked = listnet_loss(own, given, 0.06, 0.03) if kind == "listnet" else listmle_loss(own, given, 0.06)
    consistency = js_consistency(own, own.T, 0.08)
    total = info_nce(vectors, vectors) + 0.4 * consistency + 0.7 * ranked
    assert found["loss"].item() == pytest.approx(total.item(), rel=1e-8)
    assert found["part.ranking"].item() == pytest.approx(ranked.item(), rel=1e-8)
    assert all(p.grad is None for p in trainer.ranking_term.teacher.parameters())
    cached = make_trainer(tiny_towers("bert"), masked_lm, tmp_path, trainer.ranking_term.ranking)
    assert_same(step(cached, mini_batch_size=3), found)
    with pytest.raises(UserError, match="give no data_collator"):
        trainer.compute_loss(trainer.model, inputs)
    with pytest.raises(UserError, match=r"a row has anchor, positive; name one column"):
        trainer.data_collator([{"anchor": "a man", "positive": "the dog"}])


SETTINGS = {"listnet": {"projection": "batch_norm"}, "listmle": {}}


def work(number: int, folders: list[str], masked_lm: str, results) -> None:
    for kind, settings in SETTINGS.items():
        trainer = make_trainer(folders, masked_lm, results / str(number), Ranking(kind), **settings)
        torch.save(step(trainer, mini_batch_size=3), results / f"{kind}.{number}")


@pytest.mark.slow
def test_two_processes_equal_one(tiny_towers, masked_lm, tmp_path):
    """Behind a head of batch statistics, too."""
    for number in range(2):
        (tmp_path / str(number)).mkdir()
    run_processes(work, 2, str(tmp_path), tiny_towers("bert"), masked_lm, tmp_path)
    for kind, settings in SETTINGS.items():
        expected = step(make_trainer(tiny_towers("bert"), masked_lm, tmp_path, Ranking(kind), **settings))
        for number in range(2):
            found = torch.load(tmp_path / f"{kind}.{number}", weights_only=True)
            own = [name for name in found if name.startswith("part.duplicate")]
            assert_same(*({k: v for k, v in one.items() if k not in own} for one in (found, expected)))


@pytest.fixture
def command(tmp_path, masked_lm, tiny_towers, text_file):
    return [
        *("--model", masked_lm, "--pooling", "cls", "--mlp_only_train", "--train_file", str(text_file)),
        *("--evaluation", "none", "--max_steps", "4", "--save_steps", "2", "--save_total_limit", "2", "--dropout=0.1"),
        *("--per_device_train_batch_size", "8", "--learning_rate", "1e-3", "--bf16", "false", "--use_cpu", "true"),
        *("--disable_tqdm", "true", "--logging_steps", "1", "--report_to", "none"),
        *("--teachers", *(f"path={path},pooling=cls,weight=0.5" for path in tiny_towers("bert")[:2])),
    ]


def test_a_run_resumed_and_one_with_cached_vectors(command, tmp_path):
    """Equal bit by bit; the model alone is saved, and what taught it is in report and card."""
    whole, other = tmp_path / "whole", tmp_path / "other"
    assert run(train.main, [*command, "--output_dir", str(whole)]) == 0
    weights = load_file(whole / "model.safetensors")
    assert {name.split(".")[0] for name in weights} == {"encoder", "projection_head"}
    report = json.loads((whole / "training_report.json").read_text())
    logged = [entry for entry in report["log_history"] if "loss" in entry]
    assert len(logged) == 4 and {"loss_contrastive", "loss_consistency", "loss_ranking"} <= set(logged[0])
    assert len(report["teacher"]["encoders"]) == 2 and "weight=0.5" in report["settings"]["teachers"][0]
    card = (whole / "export" / "encoder" / "README.md").read_text()
    assert all(f"{cited}," in card for cited in ("gao2021simcse", "liu2023rankcse", "xu2023distillcse"))

    (whole / "checkpoint-2").rename(tmp_path / "kept")
    flags = ["--output_dir", str(other), "--resume_from_checkpoint", str(tmp_path / "kept")]
    assert run(train.main, [*command, *flags]) == 0
    resumed = load_file(other / "model.safetensors")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in weights.items())

    flags = ["--output_dir", str(other), "--teacher_cache", str(tmp_path / "cache"), "--overwrite_output_dir"]
    assert run(train.main, [*command, *flags]) == 0
    again = json.loads((other / "training_report.json").read_text())["log_history"]
    for entry, old in zip([entry for entry in again if "loss" in entry], logged, strict=True):
        assert entry["loss_ranking"] == pytest.approx(old["loss_ranking"], rel=1e-4)
    assert list((tmp_path / "cache").glob("teacher_*.npy"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--ranking_weight", "-1"], "ranking_weight must not be negative"),
        (["--teachers", "path=nowhere/at/all"], "encoder nowhere/at/all"),
        (["--teachers", "weight=1"], "an encoder of a list is path="),
        (["--ranking_loss", "listmle", "--teacher_temperature", "0.1"], "no effect with ranking_loss listmle"),
        (["--teacher_cache", "here/cache", "--output_dir", "here"], "lies in output_dir"),
        (["--train_file", "PAIRS"], "teachers rank single sentences, got the columns anchor, positive"),
        (["--generator", "g"], "teachers has no effect with DiffCSE"),
    ],
)
def test_wrong_settings(command, tmp_path, capsys, flags, words):
    rows = [f"a {word} man,the {word} dog" for word in WORDS[:16]]
    (tmp_path / "pairs.csv").write_text("\n".join(["anchor,positive", *rows]) + "\n")
    flags = [str(tmp_path / "pairs.csv") if flag == "PAIRS" else flag for flag in flags]
    assert run(train.main, [*command, "--output_dir", str(tmp_path / "run"), *flags]) == 2
    assert words in capsys.readouterr().err


def test_settings_of_a_ranking_without_teachers(command, capsys):
    assert run(train.main, [*command[: command.index("--teachers")], "--ranking_weight", "2"]) == 2
    assert "ranking_weight has no effect without teachers: give teachers, too" in capsys.readouterr().err
