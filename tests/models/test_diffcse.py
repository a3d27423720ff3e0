"""DiffCSE: the generator stays as it is, the discriminator is told the sentence, reference bugs are not copied."""

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoModelForMaskedLM

from cacse_trainer.compute import packing
from cacse_trainer.models import DiffcseModel
from cacse_trainer.models.computing import ComputeSettings
from cacse_trainer.models.conditioning import condition_on
from tests.conftest import tiny_config
from tests.models.test_sentence_embedding import KINDS, make_batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``folder(kind)`` → folder of a tiny random masked language model."""
    made: dict[str, str] = {}

    def make(kind: str) -> str:
        if kind not in made:
            torch.manual_seed(0)
            path = tmp_path_factory.mktemp(kind)
            AutoModelForMaskedLM.from_config(KINDS[kind]()).save_pretrained(path)
            made[kind] = str(path)
        return made[kind]

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_any_encoder(folder, kind, tmp_path):
    model = DiffcseModel.from_pretrained_parts(folder(kind), folder(kind), dropout=0.0).train()
    batch = make_batch()
    output = model(**batch)
    output.loss.backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all(p.grad is None for p in model.generator.parameters())
    assert set(output.losses) == {"contrastive", "rtd", "rtd_accuracy_replaced", "rtd_accuracy_kept"}
    model.save_pretrained(tmp_path)
    reloaded = AutoModel.from_pretrained(tmp_path)
    assert type(reloaded) is DiffcseModel
    assert not any(p.requires_grad for p in reloaded.generator.parameters())
    assert torch.equal(model.eval()(**batch).loss, reloaded(**batch).loss)


def test_one_step_moves_what_is_trained_and_nothing_else(folder):
    torch.manual_seed(1)
    model = DiffcseModel.from_pretrained_parts(folder("bert"), folder("bert"), rtd_loss_weight=1.0).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(**make_batch()).loss.backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        frozen = name.startswith("generator.") or "pooler" in name
        assert torch.equal(parameter, before[name]) == frozen, name


def test_generator_is_never_in_train_mode(folder):
    model = DiffcseModel.from_pretrained_parts(folder("bert"), folder("bert"))
    assert model.train().training and not model.generator.training
    assert model.discriminator.training


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_edited_copy(folder, kind):
    """First token and padding keep the ids of the input; every other token is the generator's best guess."""
    model = DiffcseModel.from_pretrained_parts(folder(kind), folder(kind)).eval()
    flat = {name: tensor.flatten(0, 1) for name, tensor in make_batch().items()}
    filled, replaced = model._edit(flat)
    best = model.generator(input_ids=flat["mlm_input_ids"], attention_mask=flat["attention_mask"]).logits.argmax(-1)
    mask = flat["attention_mask"].bool()
    assert torch.equal(filled[:, 0], flat["input_ids"][:, 0])
    assert torch.equal(filled[~mask], flat["input_ids"][~mask])
    assert torch.equal(filled[:, 1:][mask[:, 1:]], best[:, 1:][mask[:, 1:]])
    assert torch.equal(replaced.bool(), filled != flat["input_ids"])
    model.config.reference_padding = True
    assert not model._edit(flat)[0][~mask].any()  # the release: id 0, RoBERTa's <s>


@pytest.mark.parametrize("positions", ["all", "tokens"])
def test_rtd_loss_is_the_mean_over_the_positions(folder, positions):
    model = DiffcseModel.from_pretrained_parts(folder("bert"), folder("bert"), rtd_positions=positions).double().eval()
    batch = make_batch()
    flat = {name: tensor.flatten(0, 1) for name, tensor in batch.items()}
    filled, replaced = model._edit(flat)
    output = model(**batch)
    mask = flat["attention_mask"]
    with condition_on(model.discriminator, output.embeddings.flatten(0, 1), mask):
        states = model.discriminator(filled, mask, flat["token_type_ids"]).last_hidden_state
    logits = model.rtd_head(states)
    counted = mask.bool() if positions == "tokens" else torch.ones_like(mask, dtype=torch.bool)
    assert output.losses["rtd"].item() == pytest.approx(
        F.cross_entropy(logits[counted], replaced[counted]).item(), rel=1e-10
    )
    right = logits.argmax(-1) == replaced
    changed, kept = replaced.bool(), mask.bool() & ~replaced.bool()
    assert output.losses["rtd_accuracy_replaced"].item() == pytest.approx(right[changed].float().mean().item())
    assert output.losses["rtd_accuracy_kept"].item() == pytest.approx(right[kept].float().mean().item())


def test_loss_over_tokens_does_not_depend_on_padding_or_buckets(folder):
    model = DiffcseModel.from_pretrained_parts(folder("roberta"), folder("roberta"), rtd_positions="tokens")
    model = model.double().eval()
    batch = make_batch()
    plain = model(**batch).loss
    model.use(ComputeSettings(3))
    fill = {"input_ids": 0, "mlm_input_ids": 0, "mlm_labels": -100}
    longer = {name: F.pad(tensor, (0, 3), value=fill.get(name, 0)) for name, tensor in batch.items()}
    assert model(**longer).loss.item() == pytest.approx(plain.item(), rel=1e-10)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize(("positions", "packed"), [("tokens", 3), ("all", 2)])
def test_padding_is_left_out(folder, kind, positions, packed):
    """By encoder and generator, and by the discriminator where no padding is judged; loss and gradients stay."""
    model = DiffcseModel.from_pretrained_parts(
        folder(kind), folder(kind), dropout=0.0, rtd_positions=positions, rtd_loss_weight=1.0
    )
    model, batch = model.double().train(), make_batch()
    found = []
    for buckets in (1, None):
        model.use(ComputeSettings(buckets))
        model.zero_grad()
        with patch.object(packing, "PackedRows", wraps=packing.PackedRows) as runs:
            output = model(**batch)
        output.loss.backward()
        found.append(
            torch.cat([output.loss[None], *(p.grad.flatten() for p in model.parameters() if p.grad is not None)])
        )
        assert runs.call_count == (packed if buckets is None else 0)
    assert torch.allclose(*found, rtol=1e-9, atol=1e-12)


def test_detection_reaches_the_encoder_through_the_vector(folder):
    model = DiffcseModel.from_pretrained_parts(folder("bert"), folder("bert"), dropout=0.0).train()
    batch = make_batch()
    flat = {name: tensor.flatten(0, 1) for name, tensor in batch.items()}
    pooled = torch.randn(8, 32, requires_grad=True)
    model._auxiliary_loss(flat, pooled, pooled)[0].backward()
    assert pooled.grad.abs().sum() > 0


def test_condition_takes_the_first_tokens_place(folder):
    """Only the first token's embedding is replaced, wherever padding puts it, and only within the context."""
    encoder = AutoModel.from_pretrained(folder("bert")).eval()
    ids, mask = torch.tensor([[2, 6, 7, 3, 0], [0, 0, 2, 6, 3]]), torch.tensor([[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]])
    vectors = torch.randn(2, 32)
    plain = encoder.embeddings(ids)
    with condition_on(encoder, vectors, mask):
        told = encoder.embeddings(ids)
    assert torch.equal(told[0, 0], vectors[0]) and torch.equal(told[1, 2], vectors[1])
    assert ((told != plain).any(dim=-1).nonzero() == torch.tensor([[0, 0], [1, 2]])).all()
    assert torch.equal(encoder.embeddings(ids), plain)


def test_weight_zero_is_simcse(folder):
    model = DiffcseModel.from_pretrained_parts(folder("bert"), folder("bert"), rtd_loss_weight=0.0).train()
    output = model(**{name: tensor for name, tensor in make_batch().items() if not name.startswith("mlm")})
    assert set(output.losses) == {"contrastive"} and not model.needs_masked_copies
    assert not any(p.requires_grad for p in model.discriminator.parameters())


def test_what_does_not_fit(folder, tmp_path):
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(tiny_config("bert", vocab_size=50)).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="encoder has 27 words, the generator 50"):
        DiffcseModel.from_pretrained_parts(folder("bert"), str(tmp_path / "other"))
    AutoModel.from_config(tiny_config("bert")).save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match="lacks weights of a masked language model"):
        DiffcseModel.from_pretrained_parts(folder("bert"), str(tmp_path / "headless"))
    with pytest.raises(ValueError, match=r"use data\.Masking"):
        model = DiffcseModel.from_pretrained_parts(folder("bert"), folder("bert")).train()
        model(**{name: tensor for name, tensor in make_batch().items() if not name.startswith("mlm")})
    with pytest.raises(ValueError, match="rtd_positions 'padding' is unknown; choose one of all, tokens"):
        DiffcseModel.from_pretrained_parts(folder("bert"), folder("bert"), rtd_positions="padding")


def test_detection_can_be_learned(folder):
    """On one batch, trained for a while, replaced and kept tokens are both told apart."""
    torch.manual_seed(0)
    model = DiffcseModel.from_pretrained_parts(folder("bert"), folder("bert"), rtd_loss_weight=1.0, projection="tanh")
    model.train()
    batch = make_batch()
    batch["mlm_input_ids"] = batch["input_ids"].clone()
    first = model(**batch).losses
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        output = model(**batch)
        output.loss.backward()
        optimizer.step()
    assert output.losses["rtd"] < 0.3 * first["rtd"]
    assert min(output.losses["rtd_accuracy_replaced"], output.losses["rtd_accuracy_kept"]) > 0.9
