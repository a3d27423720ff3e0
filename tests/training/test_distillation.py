"""`DistillationTrainer`: golden trajectories, the frozen teacher, kinds of teachers, cached vectors, refusals."""

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModel, set_seed

from cacse_trainer import CacseBertModel, DistillationTrainer, EnsembleModel, load_pairs, load_sentences
from cacse_trainer.encoding.embedder import Embedder
from cacse_trainer.encoding.members import load_ensemble, load_members
from cacse_trainer.errors import UserError
from cacse_trainer.losses import distillation_loss
from cacse_trainer.models import StudentModel
from cacse_trainer.settings.arguments import CacseTrainingArguments
from cacse_trainer.training.teacher_cache import cached_teacher_embeddings
from tests.conftest import GOLDEN, write_pairs, write_sentences
from tests.models.test_cacse_golden import load_case, relative
from tests.tolerances import GRADIENT, assert_near, noise

UC = GOLDEN / "cacse" / "bert_begin7_constraint4" / "constraint"  # the reference's stand-in for InfoCSE
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def arguments(folder, **changes) -> CacseTrainingArguments:
    """Arguments of a short run on the CPU."""
    settings = {
        "per_device_train_batch_size": 8,
        "max_steps": 4,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "length_buckets": "1",
        "lr_scheduler_type": "constant",
        **changes,
    }
    return CacseTrainingArguments(output_dir=str(folder), **settings)


@pytest.mark.parametrize(("case", "weight"), [("self", 0.01), ("uc", 0.1)])
@pytest.mark.parametrize(
    ("dtype", "prefix", "tolerance"), [(torch.float32, "", GRADIENT * noise(1.0)), (torch.float64, "float64.", 1e-9)]
)
def test_golden_trajectory(case, weight, dtype, prefix, tolerance, tmp_path, tiny_tokenizer, monkeypatch):
    """15 AdamW steps of the trainer itself on the reference's batches, with the reference's teacher."""
    golden = load_file(GOLDEN / "cacse" / "distill" / "tensors.safetensors")
    cacse, _, _ = load_case("bert_begin7_constraint4", dtype)
    encoders, weights = [cacse.tower_a, cacse.tower_b], [1.0, 1.0]
    if case == "uc":  # α·(h_A + h_B) + (1-α)·h_UC, α = 1/4
        encoders, weights = [*encoders, AutoModel.from_pretrained(UC, dtype=dtype)], [0.25, 0.25, 0.75]
    teacher = EnsembleModel.from_encoders(encoders, weights).to(dtype)
    student = StudentModel.from_encoder(str(GOLDEN / "cacse" / "distill" / "student"), dropout=0.0).to(dtype)

    losses, given = [], []
    record, teach = DistillationTrainer.record_loss, DistillationTrainer.teach
    monkeypatch.setattr(
        DistillationTrainer,
        "record_loss",
        lambda self, loss, parts: (losses.append(loss.item()), record(self, loss, parts)),
    )

    def spy(self, inputs):
        given.append(teach(self, inputs))
        return given[-1]

    monkeypatch.setattr(DistillationTrainer, "teach", spy)
    trainer = DistillationTrainer(
        model=student,
        teacher=teacher,
        args=arguments(
            tmp_path,
            max_steps=15,
            weight_decay=0.01,
            decay_all_parameters=True,
            max_grad_norm=0,
            save_strategy="no",
            train_sampling_strategy="sequential",
        ),
        train_dataset=Dataset.from_dict({"row": list(range(15 * 8))}),
        data_collator=lambda rows: {
            name: golden[f"batches.{name}"].flatten(0, 1)[[r["row"] for r in rows]] for name in INPUTS
        },
        processing_class=tiny_tokenizer,
        contrastive_weight=weight,
    )
    trainer.train()
    expected = golden[f"{prefix}traj_{case}.loss"].numpy()
    assert np.abs(np.array(losses) - expected).max() < tolerance * expected.max()
    if dtype == torch.float32:
        assert_near(torch.stack(given), golden[f"traj_{case}.teacher"])
    probe = student.eval().embed(**{name: golden[f"probe.{name}"] for name in INPUTS})
    assert relative(probe, golden[f"{prefix}traj_{case}.final_probe_embedding"]) < 2 * tolerance


@pytest.fixture
def make_trainer(tmp_path, tiny_towers, tiny_tokenizer):
    """``make_trainer(…)`` → a trainer; teacher: two tiny towers with dropout, student: a third model."""

    def make(output="run", teacher=None, student=None, rows=None, run=None, **settings):
        a, b, c = tiny_towers("bert", hidden_dropout_prob=0.2)
        torch.manual_seed(0)
        ensemble, tokenizer = load_ensemble([*load_members(a, "cls"), *load_members(b, "cls")])
        return DistillationTrainer(
            model=student or StudentModel.from_encoder(c, dropout=0.1),
            teacher=teacher or ensemble,
            args=arguments(tmp_path / output, **(run or {})),
            train_dataset=rows or load_sentences(write_sentences(tmp_path / "sentences.txt")),
            eval_dataset={"stsb": load_pairs(write_pairs(tmp_path / "dev.tsv"))},
            processing_class=tiny_tokenizer,
            **{"teacher_tokenizer": tokenizer, **settings},
        )

    return make


def test_the_teacher_stays_frozen(make_trainer, tmp_path):
    """In eval mode with dropout in its config, unchanged, in no parameter list and no file; the student moves."""
    trainer = make_trainer(run={"save_steps": 2})
    before = copy.deepcopy(trainer.teacher.state_dict())
    start = copy.deepcopy(trainer.model.state_dict())
    modes = []
    for part in trainer.teacher.modules():
        part.register_forward_hook(lambda module, _i, output: modes.append(module.training))
    trainer.train()
    assert modes and not any(modes)
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.teacher.state_dict().items())
    teacher_ids = {id(p) for p in trainer.teacher.parameters()}
    assert not teacher_ids & {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not any(p.requires_grad or p.grad is not None for p in trainer.teacher.parameters())
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(start[name], parameter) != parameter.requires_grad, name
    saved = load_file(tmp_path / "run" / "checkpoint-4" / "model.safetensors")
    assert saved.keys() == trainer.model.state_dict().keys()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry in logged:
        assert entry["loss"] == pytest.approx(
            0.01 * entry["loss_contrastive"] + 0.99 * entry["loss_distance"], rel=noise(1.0, terms=8)
        )
    assert trainer.describe()["effective_negatives"] == 14


def test_one_step_by_hand(make_trainer):
    trainer = make_trainer(contrastive_weight=0.3, temperature=0.1)
    batch = next(iter(trainer.get_train_dataloader()))
    model = trainer.model.eval()
    loss = trainer.compute_loss(model, batch)
    del batch["text_ids"]
    towers = [encoder(**batch).last_hidden_state[:, 0] for encoder in trainer.teacher.encoders]
    assert_near(loss, distillation_loss(model.embed(**batch), sum(towers), 0.1, 0.3))
    loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_length_buckets_and_bf16(make_trainer):
    plain, bucketed = make_trainer(), make_trainer("b", run={"length_buckets": "4"})
    batch = next(iter(plain.get_train_dataloader()))
    values = []
    for trainer in (plain, bucketed):
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            elif hasattr(module, "dropout_prob"):
                module.dropout_prob = 0.0
        trainer.model.train()
        values.append(trainer.compute_loss(trainer.model, batch).item())
    assert_near(values[0], values[1])
    half = make_trainer("h", teacher_bf16=True)
    exact, rounded = plain.teach(batch), half.teach(batch).float()
    assert 0 < (exact - rounded).abs().max() < 0.1 * exact.abs().max()
    with torch.autocast("cpu", dtype=torch.bfloat16):  # the student's precision is not the teacher's
        assert torch.equal(plain.teach(batch), exact)


@pytest.mark.parametrize("width", [32, 48])
def test_widths(make_trainer, tiny_towers, tmp_path, width):
    """A narrower or wider student: refused as it is, trained with a projection, exported without it."""
    folder = tiny_towers("bert", layers=2, hidden_size=width)[0]
    wide = load_ensemble(load_members(tiny_towers("bert", layers=2, hidden_size=16)[0]))[0]
    with pytest.raises(UserError, match=rf"student's vectors have {width} dimensions, the teacher's 16.*project_to"):
        make_trainer(teacher=wide, student=StudentModel.from_encoder(folder))
    student = StudentModel.from_encoder(folder, teacher_size=16)
    start = student.teacher_projection.weight.clone()
    trainer = make_trainer(teacher=wide, student=student, run={"save_strategy": "no"})
    trainer.train()
    assert not torch.equal(start, student.teacher_projection.weight)
    assert trainer.evaluate()["eval_stsb_spearman"] == trainer.evaluate()["eval_stsb_spearman"]
    student.save_pretrained(tmp_path / "student")
    again = AutoModel.from_pretrained(tmp_path / "student")
    assert isinstance(again, StudentModel) and torch.equal(
        again.teacher_projection.weight, student.teacher_projection.weight
    )


def test_cached_vectors_equal_the_online_teacher(make_trainer, tmp_path):
    run = {"save_strategy": "no", "optim": "sgd"}  # Adam makes whole steps of a gradient that is rounding only
    online = make_trainer("online", run=run)
    rows = load_sentences(write_sentences(tmp_path / "sentences.txt"))
    embedder = Embedder(online.teacher.embed, online.teacher_tokenizer, 64, "cpu")
    vectors = cached_teacher_embeddings(tmp_path / "cache", online.teacher, embedder, rows)
    assert isinstance(vectors, np.memmap) and vectors.shape == (64, 32)
    (kept,) = (tmp_path / "cache").glob("*.npy")
    written = kept.stat().st_mtime_ns
    again = cached_teacher_embeddings(tmp_path / "cache", online.teacher, embedder, rows)
    assert kept.stat().st_mtime_ns == written and np.array_equal(vectors, again)
    for damage in (b"", kept.read_bytes()[:-8], kept.read_bytes()[:-8] + bytes(8)):  # is found, and made good
        kept.unlink()
        kept.write_bytes(damage)
        mended = cached_teacher_embeddings(tmp_path / "cache", online.teacher, embedder, rows)
        assert np.array_equal(vectors, mended)
    cached = make_trainer("cached", run=run, teacher_vectors=vectors)
    cached.teacher.register_forward_pre_hook(lambda *_: pytest.fail("the teacher ran"))
    for trainer in (online, cached):
        set_seed(0)  # the student's dropout
        trainer.train()
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (online, cached)]
    assert_near(losses[0], losses[1])
    assert_near(*(torch.cat([p.flatten() for p in trainer.model.parameters()]) for trainer in (online, cached)))


def test_cache_sees_every_change(make_trainer, tmp_path):
    """Other text, other weights, another length: other files."""
    trainer = make_trainer()
    teacher, tokenizer = trainer.teacher, trainer.teacher_tokenizer
    rows = Dataset.from_dict({"text": ["a man", "the dog", "a cat"]})

    def keep(teacher=teacher, rows=rows, length=64):
        embedder = Embedder(teacher.embed, tokenizer, length, "cpu")
        cached_teacher_embeddings(tmp_path / "cache", teacher, embedder, rows)
        return len(list((tmp_path / "cache").glob("*.npy")))

    assert keep() == 1 and keep() == 1
    assert keep(rows=Dataset.from_dict({"text": ["a man", "the dog", "a man"]})) == 2
    assert keep(length=32) == 3
    other = copy.deepcopy(teacher)
    other.encoders[0].embeddings.LayerNorm.bias.data[0] += 1e-3
    assert keep(teacher=other) == 4
    assert not list((tmp_path / "cache").glob("*.partial*"))


def test_refusals(make_trainer, tmp_path):
    with pytest.raises(UserError, match="within"):
        make_trainer(contrastive_weight=1.5)
    with pytest.raises(UserError, match="temperature must be positive"):
        make_trainer(temperature=0)
    with pytest.raises(UserError, match="64 rows, the teacher's vectors 3"):
        make_trainer(teacher_vectors=np.zeros((3, 32), dtype=np.float32))
    pairs = Dataset.from_dict({"anchor": ["a man"] * 8, "positive": ["the man"] * 8})
    with pytest.raises(UserError, match=r"reads single sentences.*has anchor, positive"):
        make_trainer(rows=pairs).train()


def test_resume_equals_an_uninterrupted_run(make_trainer, tmp_path):
    run = {"max_steps": 6, "save_steps": 2, "save_total_limit": None, "load_best_model_at_end": False}
    whole = make_trainer("whole", run=run)
    whole.train()
    resumed = make_trainer("resumed", run=run)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for ours, theirs in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_kinds_of_teachers(tiny_towers, tiny_tokenizer, tmp_path):
    """A CACSE checkpoint, two towers in a folder, an ensemble and a weighted list give the sums they stand for."""
    a, b, c = tiny_towers("bert")
    inputs = tiny_tokenizer(["a man in the park", "dog"], padding=True, return_tensors="pt")
    mask = inputs["attention_mask"].unsqueeze(-1)
    states = [AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state for folder in (a, b, c)]
    both = states[0][:, 0] + states[1][:, 0]

    def vectors(*members):
        teacher, tokenizer = load_ensemble([member for group in members for member in group])
        assert tokenizer.get_vocab() == tiny_tokenizer.get_vocab()
        return teacher.embed(**inputs)

    CacseBertModel.from_towers(a, b, c, cascade_start_layer=2, constraint_layers=1).save_pretrained(tmp_path / "cacse")
    tiny_tokenizer.save_pretrained(tmp_path / "cacse")
    for name, folder in (("tower_a", a), ("tower_b", b)):
        AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "two" / name)
        tiny_tokenizer.save_pretrained(tmp_path / "two" / name)
    for path in ("cacse", "two"):
        assert_near(vectors(load_members(str(tmp_path / path), "cls")), both)
    mean = (states[2] * mask).sum(1) / mask.sum(1)
    mixed = vectors(load_members(str(tmp_path / "cacse"), None, 0.25), load_members(c, "mean", 0.75))
    assert_near(mixed, 0.25 * both + 0.75 * mean)
    with pytest.raises(UserError, match="no-such"):
        load_members("no-such/model")
    with pytest.raises(UserError, match="pooling 'first'"):
        load_members(a, "first")
    with pytest.raises(UserError, match="was trained with pooling cls"):
        load_members(str(tmp_path / "cacse"), "mean")
