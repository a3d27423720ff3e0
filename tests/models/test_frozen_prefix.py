"""Dev sentences through the frozen layers once: the same vectors, fewer layers run, dropped when something changes."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cacse_trainer.models.frozen_prefix import FrozenPrefixes
from tests.models.test_cacse import batch, build
from tests.tolerances import assert_near


@pytest.fixture(params=["bert", "roberta", "bert, padded"])
def model(request, tiny_towers):
    kind, _, padded = request.param.partition(", ")
    attention = "eager" if padded else "sdpa"
    return build(tiny_towers, kind, freeze_embeddings=True, attn_implementation=attention).eval()


def flat(seed=0):
    return {name: tensor.flatten(0, 1) for name, tensor in batch(seed=seed).items()}


def count_runs(model) -> list[int]:
    """Calls of each layer of tower B from now on."""
    runs = [0] * len(model.tower_b.encoder.layer)

    def count(number):
        def hook(module, given, output):
            runs[number] += 1

        return hook

    for number, layer in enumerate(model.tower_b.encoder.layer):
        layer.intermediate.register_forward_hook(count(number))
    return runs


@torch.inference_mode()
def test_equal_and_the_frozen_layers_run_once(model):
    embed = FrozenPrefixes().embed_of(model)
    expected = [model.embed(**flat(seed)) for seed in (0, 1)]
    runs = count_runs(model)
    for _ in range(3):
        for seed, vectors in enumerate(expected):
            assert torch.equal(embed(**flat(seed)), vectors)
    assert runs == [2, 2, 6, 6]
    assert len(model.tower_b.encoder.layer) == 4


def test_trained_layers_and_changed_frozen_ones_are_seen(model):
    embed = FrozenPrefixes().embed_of(model)
    with torch.no_grad():
        first = embed(**flat())
        model.tower_a.encoder.layer[3].output.dense.weight.mul_(1.5)
        trained = embed(**flat())
        assert torch.equal(trained, model.embed(**flat())) and not torch.equal(trained, first)
        model.tower_b.encoder.layer[0].output.dense.weight.mul_(1.5)
        changed = embed(**flat())
        assert torch.equal(changed, model.embed(**flat())) and not torch.equal(changed, trained)
        model.tower_a.embeddings.word_embeddings.weight.mul_(1.5)
        assert torch.equal(embed(**flat()), model.embed(**flat()))


@torch.no_grad()
def test_half_precision_and_the_limit(model):
    prefixes = FrozenPrefixes()
    embed = prefixes.embed_of(model)
    full = embed(**flat())
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            half, expected = embed(**flat()), model.embed(**flat())
        assert torch.equal(half, expected) and not torch.equal(half.float(), full)
    none_kept = FrozenPrefixes(most_bytes=0)
    runs = count_runs(model)
    for _ in range(2):
        assert torch.equal(none_kept.embed_of(model)(**flat()), full)
    assert runs == [2, 2, 2, 2]


@torch.inference_mode()
def test_in_two_threads_at_once(model):
    embed = FrozenPrefixes().embed_of(model)
    expected = [model.embed(**flat(seed)) for seed in range(4)]
    with ThreadPoolExecutor(2, initializer=lambda: torch.inference_mode().__enter__()) as pool:
        for _ in range(5):
            for found, vectors in zip(pool.map(lambda seed: embed(**flat(seed)), range(4)), expected, strict=True):
                assert_near(found, vectors)


def test_only_where_the_prefix_is_frozen(model, tiny_towers):
    prefixes = FrozenPrefixes()
    trained = build(tiny_towers).eval()
    assert prefixes.embed_of(trained) == trained.embed
    assert prefixes.embed_of(model.train()) == model.embed
