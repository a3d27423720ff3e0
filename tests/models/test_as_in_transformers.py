"""What every model of transformers takes: its layers shown, a vocabulary of another size, a tuple; in every family."""

import copy

import pytest
import torch

from cacse_trainer.models import (
    ComputeSettings,
    EnsembleConfig,
    EnsembleModel,
    LoraSettings,
    SentenceEmbeddingConfig,
    SentenceEmbeddingModel,
)
from tests.conftest import tiny_config
from tests.peers.families import FAMILIES, HEADS, LAYERS, LENGTH, SUMS, VOCABULARY, WIDTH, encoder
from tests.tolerances import assert_near

EVERY = pytest.mark.parametrize("name", FAMILIES)
TRAINED = pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.loss_inputs])
RESIZED = pytest.mark.parametrize("name", [name for name in FAMILIES if "LoRA" not in name])


def built(name: str, **settings):
    """A model of the family with random weights, in eval mode."""
    if "LoRA" in name:
        pytest.importorskip("peft")
    torch.manual_seed(0)
    config = FAMILIES[name].config()
    config._attn_implementation = "eager"
    for key, value in settings.items():
        setattr(config, key, value)
    return FAMILIES[name].model(config).eval()


def rows():
    """(3, L) inputs with padding."""
    torch.manual_seed(1)
    ids = torch.randint(5, VOCABULARY, (3, LENGTH))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@EVERY
def test_layers_of_sentences(name):
    model, inputs = built(name), rows()
    with torch.no_grad():
        plain = model(**inputs)
        shown = model(**inputs, output_hidden_states=True, output_attentions=True)
        chosen = model(**inputs, output_hidden_states=[0, -1])
    assert plain.hidden_states is None and plain.attentions is None
    heads = 2 * HEADS if name in SUMS else HEADS
    assert [layer.shape for layer in shown.hidden_states] == [(3, LENGTH, WIDTH)] * (LAYERS + 1)
    assert [layer.shape for layer in shown.attentions] == [(3, heads, LENGTH, LENGTH)] * LAYERS
    assert torch.equal(shown.hidden_states[-1], shown.last_hidden_state)
    assert torch.equal(shown.sentence_embedding, plain.sentence_embedding)
    sums = shown.attentions[0].sum(dim=-1)
    assert_near(sums, torch.ones_like(sums))
    assert [layer is None for layer in chosen.hidden_states] == [False, True, False]
    assert torch.equal(chosen.hidden_states[0], shown.hidden_states[0])
    as_tuple = model(**inputs, output_hidden_states=True, return_dict=False)
    assert isinstance(as_tuple, tuple) and isinstance(as_tuple[-1], tuple)


@EVERY
def test_the_config_asks_as_well(name):
    model = built(name, output_hidden_states=True, output_attentions=True, return_dict=False)
    found = model(**rows())
    assert isinstance(found, tuple) and [len(part) for part in found[-2:]] == [LAYERS + 1, LAYERS]
    assert model(**rows(), output_hidden_states=False, output_attentions=False, return_dict=True).hidden_states is None


@TRAINED
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_layers_beside_a_loss(name, attention):
    """In training they are padded, whatever way the rows are encoded by, and loss and gradient are the same."""
    family, model = FAMILIES[name], built(name, _attn_implementation=attention).double().train()
    model.use(ComputeSettings(length_buckets=None if attention == "sdpa" else 2, mini_batch_size=2))
    inputs = family.loss_inputs(rows())
    plain, shown = copy.deepcopy(model), model
    torch.manual_seed(2)  # of the cascade's dropout
    expected = plain(**inputs)
    expected.loss.backward()
    torch.manual_seed(2)
    found = shown(**inputs, output_hidden_states=True, output_attentions=attention == "eager")
    found.loss.backward()
    assert expected.hidden_states is None
    assert_near(found.loss, expected.loss)
    gradients = [[p.grad.flatten() for p in one.parameters() if p.grad is not None] for one in (shown, plain)]
    assert_near(*map(torch.cat, gradients))
    length = LENGTH // 2 if name == "Tsdae" else LENGTH
    lead = (3,) if name == "Tsdae" else (3, 2)
    assert [layer.shape for layer in found.hidden_states] == [(*lead, length, WIDTH)] * (LAYERS + 1)
    if attention == "eager":
        assert len(found.attentions) == LAYERS and found.attentions[0].shape[:-3] == lead


def test_layers_of_a_student_in_training():
    model = built("Student").train()
    model.use(ComputeSettings(length_buckets=None))
    found = model(**rows(), output_hidden_states=True)
    assert found.hidden_states[-1].shape == (3, LENGTH, WIDTH)
    assert_near(found.sentence_embedding, model(**rows()).sentence_embedding)


def test_layers_where_the_pooling_averages_two():
    config = SentenceEmbeddingConfig(encoder(), pooling="avg_first_last")
    found = SentenceEmbeddingModel(config).eval()(**rows())
    assert found.hidden_states is None  # the encoder gave them to the pooling, nobody else asked


def test_layers_that_no_sum_has():
    deep = tiny_config("bert", layers=LAYERS + 1, hidden_size=WIDTH, vocab_size=VOCABULARY)
    for config in (EnsembleConfig([encoder(), deep]), EnsembleConfig([encoder()] * 2, poolings=["cls", "mean"])):
        model = EnsembleModel(config).eval()
        assert model(**rows()).sentence_embedding.shape == (3, WIDTH)
        with pytest.raises(ValueError, match="no layers in common"):
            model(**rows(), output_hidden_states=True)


def tables(model) -> list[int]:
    """The rows of every table of words in a model."""
    return [
        module.num_embeddings
        for key, module in model.named_modules()
        if key.endswith("word_embeddings") and not key.startswith("decoder.")
    ]


@RESIZED
@pytest.mark.parametrize("size", [VOCABULARY + 10, VOCABULARY - 15])
def test_another_size_of_the_vocabulary(name, size, tmp_path):
    """Every table of every encoder is resized, old words keep their vectors, and a saved model is read as it is."""
    model, inputs = built(name), rows()
    inputs["input_ids"] = inputs["input_ids"].clamp(max=VOCABULARY - 16)
    with torch.no_grad():
        before = model(**inputs).sentence_embedding
    table = model.resize_token_embeddings(size)
    assert table is model.get_input_embeddings() and set(tables(model)) == {size}
    assert model.config.vocab_size == model.vocab_size == size
    with torch.no_grad():
        assert torch.equal(model(**inputs).sentence_embedding, before)
        inputs["input_ids"][:, -1] = size - 1
        after = model(**inputs).sentence_embedding
    family = FAMILIES[name]
    if family.loss_inputs is not None:
        model.train()(**family.loss_inputs(inputs)).loss.backward()
    model.eval().save_pretrained(tmp_path)
    again = family.model.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.no_grad():
        assert_near(again(**inputs).sentence_embedding, after)
    assert set(tables(again)) == {size} and again.config.vocab_size == size


def test_the_words_of_a_head_and_of_a_generator_are_resized_too():
    masked = built("SentenceEmbedding, MLM")
    masked.resize_token_embeddings(VOCABULARY, pad_to_multiple_of=64)
    assert masked.get_output_embeddings() is masked.lm_head.decoder
    assert masked.lm_head.decoder.weight.shape == (64, WIDTH) and masked.lm_head.decoder.bias.shape == (64,)
    edits = built("Diffcse")
    edits.resize_token_embeddings(VOCABULARY + 3)
    decoder = edits.generator.get_output_embeddings()
    assert decoder.weight is edits.generator.get_input_embeddings().weight and len(decoder.bias) == VOCABULARY + 3
    assert len(built("Tsdae").word_bias) == VOCABULARY


def test_what_cannot_be_resized_is_refused_before_anything_is_changed(tiny_towers):
    pytest.importorskip("peft")
    adapted = SentenceEmbeddingModel.from_encoder(tiny_towers("bert")[0], pooling="mean", lora=LoraSettings(r=2))
    bundle = EnsembleModel(EnsembleConfig([encoder(), encoder("roberta")], own_tokenizers=True))
    for model, told in ((adapted, "adapter's checkpoint"), (bundle, "tokenizers of their own")):
        sizes, size = tables(model), model.config.vocab_size
        with pytest.raises(ValueError, match=told):
            model.resize_token_embeddings(size + 8)
        assert tables(model) == sizes and model.config.vocab_size == size


@pytest.mark.parametrize("asked", [{"dtype": "bfloat16"}, {"torch_dtype": torch.bfloat16}, {"dtype": "auto"}])
def test_an_adapter_in_a_dtype_by_its_name(asked, tmp_path):
    built("SentenceEmbedding, LoRA").save_pretrained(tmp_path)
    again = FAMILIES["SentenceEmbedding, LoRA"].model.from_pretrained(tmp_path, **asked)
    expected = torch.float32 if "auto" in asked.values() else torch.bfloat16
    assert again.get_input_embeddings().weight.dtype == expected
