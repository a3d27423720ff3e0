"""Distilling a ranking: one step by hand, teachers and their weights, gradient caching, cached vectors, resuming."""

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import BertTokenizerFast

from cacse_trainer import DistillationTrainer, load_pairs, load_sentences
from cacse_trainer.encoding.embedder import Embedder
from cacse_trainer.encoding.members import load_members, load_similarities
from cacse_trainer.errors import UserError
from cacse_trainer.losses import cosines, info_nce, js_consistency, listmle_loss, listnet_loss
from cacse_trainer.models import StudentModel
from cacse_trainer.models.computing import ComputeSettings
from cacse_trainer.settings.arguments import CacseTrainingArguments
from cacse_trainer.training.ranking import Ranking
from cacse_trainer.training.teacher_cache import cached_teacher_embeddings
from tests.conftest import write_pairs, write_sentences
from tests.tolerances import assert_near


@pytest.fixture
def make_trainer(tmp_path, tiny_towers, tiny_tokenizer):
    """``make_trainer(…)`` → a trainer; teachers: a sum of two towers (¾) and a wider encoder (¼), student: a third."""

    def make(output="run", ranking=None, rows=None, dropout=0.1, run=None, student=None, **settings):
        a, b, c = tiny_towers("bert")
        wide = tiny_towers("bert", layers=2, hidden_size=48)[0]
        sums = [[*load_members(a, "cls"), *load_members(b, "cls")], load_members(wide, "mean")]
        teacher, tokenizer = load_similarities(sums, [3.0, 1.0])
        torch.manual_seed(0)
        steps = {"max_steps": 6, "eval_steps": 2, "save_steps": 2, "save_total_limit": None, "logging_steps": 1}
        steps |= {"per_device_train_batch_size": 8, "learning_rate": 1e-3, "load_best_model_at_end": False, "seed": 7}
        return DistillationTrainer(
            model=student or StudentModel.from_encoder(c, dropout=dropout, pooling="cls", mlp_only_train=True),
            teacher=teacher,
            args=CacseTrainingArguments(
                output_dir=str(tmp_path / output),
                use_cpu=True,
                bf16=False,
                report_to="none",
                disable_tqdm=True,
                metric_for_best_model="stsb_spearman",
                **{**steps, **(run or {})},
            ),
            train_dataset=rows or load_sentences(write_sentences(tmp_path / "sentences.txt")),
            eval_dataset={"stsb": load_pairs(write_pairs(tmp_path / "dev.tsv"))},
            processing_class=tiny_tokenizer,
            ranking=ranking or Ranking("listmle"),
            **{"teacher_tokenizer": tokenizer, **settings},
        )

    return make


def first_batch(trainer) -> dict[str, torch.Tensor]:
    return next(iter(trainer.get_train_dataloader()))


@pytest.mark.parametrize("kind", ["listnet", "listmle"])
def test_one_step_by_hand(make_trainer, kind):
    """S^T is ¾ of the sum's cosines and ¼ of the wider encoder's; the student is compared behind its head."""
    ranking = Ranking(kind, 0.7, 0.06, 0.03, 0.4, 0.08)
    trainer = make_trainer(ranking=ranking, dropout=0.0, temperature=0.1)
    batch, model = first_batch(trainer), trainer.model.train()
    loss = trainer.compute_loss(model, batch)
    del batch["text_ids"]
    both, wide = trainer.teacher.teachers
    pair = sum(encoder(**batch).last_hidden_state[:, 0] for encoder in both.encoders)
    mask = batch["attention_mask"][:, :, None]
    mean = (wide.encoders[0](**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
    given = 0.75 * cosines(pair, pair) + 0.25 * cosines(mean, mean)
    vectors = model.projection_head(model.encoder(**batch).last_hidden_state[:, 0])
    own = cosines(vectors, vectors)
    ranked = listnet_loss(own, given, 0.06, 0.03) if kind == "listnet" else listmle_loss(own, given, 0.06)
    expected = {"contrastive": info_nce(vectors, vectors, temperature=0.1), "ranking": ranked}
    expected["consistency"] = js_consistency(own, own.T, 0.08)
    assert trainer._part_sums["ranking"].item() == pytest.approx(ranked.item(), rel=1e-4)
    total = expected["contrastive"] + 0.4 * expected["consistency"] + 0.7 * ranked
    assert loss.item() == pytest.approx(total.item(), rel=1e-4)
    loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    assert trainer.effective_negatives(8) == 7


def test_the_views_are_two_dropouts_of_one_sentence(make_trainer):
    trainer = make_trainer(dropout=0.3)
    batch, seen = first_batch(trainer), []
    trainer.model.register_forward_hook(lambda _m, _i, output: seen.append(output.embeddings))
    trainer.compute_loss(trainer.model.train(), batch)
    (vectors,) = seen
    assert vectors.shape == (16, 32) and not torch.equal(vectors[::2], vectors[1::2])
    assert trainer._part_sums["consistency"] > 0


def test_the_head_serves_the_loss_alone(make_trainer):
    trainer = make_trainer()
    model, inputs = trainer.model.eval(), {"input_ids": torch.tensor([[2, 7, 8, 3]])}
    assert_near(model.embed(**inputs), model.encoder(**inputs).last_hidden_state[:, 0])
    (export,) = model.exports("x")
    assert export.pooling == "cls" and export.dense is None
    assert trainer.sources == ["rankcse"]  # of listmle, what the card cites


@pytest.mark.parametrize("kind", ["listnet", "listmle"])
def test_gradient_caching_equals_the_plain_step(make_trainer, kind):
    found = []
    for size in (None, 3):
        trainer = make_trainer(ranking=Ranking(kind), dropout=0.0)
        batch, model = first_batch(trainer), trainer.model.double().train()
        trainer.teacher.double()
        model.use(ComputeSettings(None, size))
        trainer.compute_loss(model, batch).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert (found[1][name] - value).abs().max() <= 1e-10 * max(1.0, value.abs().max().item()), name


def test_teachers_with_tokenizers_of_their_own(tiny_towers, tmp_path):
    """Two sums of encoders whose tokenizers differ: the same mean of cosines as each by itself."""
    a, b, c = tiny_towers("bert")
    other = BertTokenizerFast.from_pretrained(a)
    vocabulary = sorted(other.get_vocab(), key=other.get_vocab().get)
    (tmp_path / "vocab.txt").write_text("\n".join([*vocabulary[:5], *vocabulary[5:][::-1]]) + "\n")
    turned = BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"), model_max_length=64)
    second = [(part, turned) for part, _ in load_members(c, "cls")]
    sums = [[*load_members(a, "cls"), *load_members(b, "cls")], second]
    teacher, tokenizer = load_similarities(sums, [1.0, 3.0])
    sentences = ["a man in the park", "the dog", "a red house and a cat"]
    found = torch.from_numpy(Embedder(teacher.embed, tokenizer, 64, "cpu").vectors(sentences))
    expected = 0.0
    for members, weight in zip(sums, (0.25, 0.75), strict=True):
        alone, own = load_similarities([members], [1.0])
        vectors = torch.from_numpy(Embedder(alone.embed, own, 64, "cpu").vectors(sentences))
        expected = expected + weight * cosines(vectors, vectors)
    assert_near(found @ found.T, expected)
    assert_near(found.norm(dim=1), torch.ones(3))


def test_cached_vectors_equal_the_online_teacher(make_trainer, tmp_path):
    online = make_trainer("online")
    rows = load_sentences(write_sentences(tmp_path / "sentences.txt"))
    embedder = Embedder(online.teacher.embed, online.teacher_tokenizer, 64, "cpu")
    vectors = cached_teacher_embeddings(tmp_path / "cache", online.teacher, embedder, rows)
    assert vectors.shape == (64, 32 + 48)
    cached = make_trainer("cached", teacher_vectors=vectors)
    losses = []
    for trainer in (online, cached):
        torch.manual_seed(5)
        losses.append(trainer.compute_loss(trainer.model.train(), first_batch(trainer)).item())
    assert_near(losses[:1], losses[1:])


def test_resume_equals_an_uninterrupted_run(make_trainer, tmp_path):
    whole = make_trainer("whole")
    whole.train()
    resumed = make_trainer("resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for ours, theirs in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    logged = [entry for entry in whole.state.log_history if "loss" in entry]
    assert {"loss_contrastive", "loss_consistency", "loss_ranking"} <= set(logged[0])


def test_equal_sentences_may_be_no_negatives(make_trainer):
    rows = Dataset.from_dict({"text": ["a man", "the dog", "a man", "a cat"] * 4})
    losses = {}
    for masked in (False, True):
        trainer = make_trainer(str(masked), rows=rows, dropout=0.0, run={"mask_duplicates": masked})
        trainer.compute_loss(trainer.model.train(), first_batch(trainer))
        losses[masked] = {name: trainer._part_sums[name].item() for name in ("contrastive", "ranking")}
    assert losses[True]["contrastive"] < losses[False]["contrastive"]
    assert losses[True]["ranking"] == losses[False]["ranking"]


def test_a_plain_teacher_is_read_by_its_cosines(make_trainer, tiny_towers):
    """From Python any model with ``embed`` teaches; the length of its vectors does not count."""
    teacher = load_similarities([load_members(tiny_towers("bert")[0], "cls")], [1.0])[0]
    trainer = make_trainer(dropout=0.0)
    trainer.teacher = teacher.teachers[0]
    batch = first_batch(trainer)
    losses = [trainer.compute_loss(trainer.model.train(), batch).item()]
    trainer.teacher = teacher
    losses.append(trainer.compute_loss(trainer.model, batch).item())
    assert_near(losses[:1], losses[1:])
    assert F.normalize(trainer.teach(batch), dim=-1).shape == (8, 32)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Ranking("rank"), "objective 'rank' is no ranking; choose listnet or listmle"),
        (lambda: Ranking("listnet", weight=-1.0), "ranking_weight must not be negative"),
        (lambda: Ranking("listnet", temperature=0.0), "ranking_temperature must be positive"),
        (lambda: Ranking("listmle", teacher_temperature=0.0), "teacher_temperature must be positive"),
        (lambda: Ranking("listmle", consistency_weight=float("nan")), "consistency_weight must not be negative"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(UserError, match=words):
        call()


def test_weights_of_similarities(tiny_towers):
    members = [load_members(tiny_towers("bert")[0], "cls")] * 2
    for weights in ([1.0, -1.0], [0.0, 0.0]):
        with pytest.raises(UserError, match="weighed by numbers from 0 on"):
            load_similarities(members, weights)
