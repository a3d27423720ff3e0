"""The one road on which folders are read: what they state is kept whole, or refused with its mend."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    Qwen3Config,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    XLNetConfig,
)

from cacse_trainer import CacseBertModel, DiffcseModel, SentenceEmbeddingModel, SentenceEncoder
from cacse_trainer.cli.main import main
from cacse_trainer.encoding.members import load_members
from cacse_trainer.encoding.weighted import WeightedEncoders
from cacse_trainer.errors import UserError
from cacse_trainer.models import LoraSettings
from cacse_trainer.models.pretrained import is_decoder, load_encoder_model
from tests.conftest import tiny_config
from tests.tolerances import assert_near

SENTENCES = ["a man is playing guitar", "The Dog", "", "a woman with a blue flute in the park " * 3]


@pytest.fixture
def folder(tiny_towers, tmp_path) -> Path:
    """A copy of an encoder's folder, to spoil something in."""
    return Path(shutil.copytree(tiny_towers("bert", layers=2)[0], tmp_path / "folder"))


def rename(folder: Path, change) -> None:
    """Other names for the weights of a folder; None leaves one out."""
    file = folder / "model.safetensors"
    named = {change(name): tensor for name, tensor in load_file(file).items()}
    save_file({name: t for name, t in named.items() if name is not None}, file, metadata={"format": "pt"})


def change_json(file: Path, **fields) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "model.", "encoder.", "0.auto_model."]
)
def test_a_wrapper_s_prefix_is_taken_off(prefix, folder, tiny_towers, caplog):
    rename(folder, lambda name: prefix + name)
    expected = SentenceEncoder(tiny_towers("bert", layers=2)[0], "mean").vectors(SENTENCES)
    assert_near(SentenceEncoder(folder, "mean").vectors(SENTENCES), expected)
    assert f"begin with {prefix!r}" in caplog.text


def test_a_prefix_before_a_head_s_encoder(masked_lm, tmp_path):
    """Of a masked language model's file, for the encoder, the head, and the generator that must have one."""
    folder = Path(shutil.copytree(masked_lm, tmp_path / "folder"))
    rename(folder, lambda name: f"module.{name}")
    for path in (folder, masked_lm):
        model = DiffcseModel.from_pretrained_parts(str(path), str(path))
        headed = SentenceEmbeddingModel.from_encoder(str(path), mlm_weight=0.1)
        state = {**model.generator.state_dict(), **headed.state_dict()}
        if path == folder:
            first = state
    assert all(torch.equal(first[name], t) for name, t in state.items() if "lm_head" in name or name.startswith("cls"))
    assert all(torch.equal(first[name], t) for name, t in state.items() if "embeddings" in name)


MISSING = {
    "a deeper config": lambda folder: change_json(folder / "config.json", num_hidden_layers=3),
    "a layer left out": lambda folder: rename(folder, lambda name: None if "layer.1." in name else name),
    "two encoders": lambda folder: save_file(
        {p + n: t.clone() for p in ("query.", "text.") for n, t in load_file(folder / "model.safetensors").items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    ),
}


@pytest.mark.parametrize("spoil", MISSING.values(), ids=MISSING)
def test_missing_weights_are_refused(spoil, folder, tiny_towers, masked_lm):
    """By every road; two loads would otherwise differ."""
    other = tiny_towers("bert", layers=2)[1]
    spoil(folder)
    bad = str(folder)
    for load in (
        lambda: SentenceEncoder(bad, "mean"),
        lambda: SentenceEmbeddingModel.from_encoder(bad),
        lambda: SentenceEmbeddingModel.from_encoder(bad, mlm_weight=0.1),
        lambda: DiffcseModel.from_pretrained_parts(other, bad),
        lambda: DiffcseModel.from_pretrained_parts(bad, masked_lm),
        lambda: load_members(bad, "cls"),
        lambda: CacseBertModel.from_towers(bad, other, cascade_start_layer=1, constraint_layers=1),
        lambda: CacseBertModel.from_towers(other, other, bad, cascade_start_layer=1, constraint_layers=2),
    ):
        with pytest.raises(ValueError, match=r"lack|agree in depth"):
            load()


def test_a_trained_checkpoint_is_whole(tiny_towers, tiny_tokenizer, tmp_path):
    model = SentenceEmbeddingModel.from_encoder(tiny_towers("bert", layers=2)[0], pooling="cls")
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    rename(tmp_path, lambda name: None if "projection_head" in name else name)
    with pytest.raises(UserError, match="lacks 2 weights"):
        SentenceEncoder(tmp_path)
    assert main(["export", "--checkpoint", str(tmp_path), "--output_dir", str(tmp_path / "out")]) == 2


def test_what_may_be_absent(folder, masked_lm, caplog):
    """A pooler that no pooling reads, heads that the encoder has not, a head that is trained from its beginning."""
    rename(folder, lambda name: None if name.startswith("pooler") else name)
    assert load_encoder_model(folder)[1] == {"pooler.dense.weight", "pooler.dense.bias"}
    SentenceEncoder(folder, "mean")
    SentenceEncoder(masked_lm, "mean")
    SentenceEmbeddingModel.from_encoder(masked_lm, mlm_weight=0.1)
    assert "a fresh one is trained" not in caplog.text
    SentenceEmbeddingModel.from_encoder(str(folder), mlm_weight=0.1)
    assert "a fresh one is trained" in caplog.text


def as_pickle(folder: Path) -> Path:
    """The weights in a .bin file instead."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
DAMAGES = {
    "a pointer": (lambda f: (f / "model.safetensors").write_text(POINTER), "model.safetensors is a pointer of Git LFS"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors is empty; download"),
    "half": (lambda f: cut(f / "model.safetensors"), r"model.safetensors is damaged .*; download it anew"),
    "half a pickle": (lambda f: cut(as_pickle(f)), "pytorch_model.bin breaks off; download"),
    "an empty pickle": (lambda f: as_pickle(f).write_bytes(b""), "pytorch_model.bin is empty"),
    "a pickle's pointer": (lambda f: as_pickle(f).write_text(POINTER), "pytorch_model.bin is a pointer"),
    "none": (lambda f: (f / "model.safetensors").unlink(), "no file named model.safetensors"),
    "another width": (
        lambda f: change_json(f / "config.json", intermediate_size=48),
        r"\(64,\) in its file, and \(48,\) by its config.json",
    ),
    "a tokenizer's pointer": (lambda f: (f / "tokenizer.json").write_text(POINTER), "tokenizer.json is a pointer"),
    "half a tokenizer": (lambda f: cut(f / "tokenizer.json"), "folder"),
    "modules of no kind": (
        lambda f: (f / "modules.json").write_text('{"0": "Transformer"}'),
        "modules.json is no list of modules",
    ),
    "a config's pointer": (lambda f: (f / "config.json").write_text(POINTER), "config.json is a pointer"),
}


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(("spoil", "said"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_files_are_named(spoil, said, folder):
    spoil(folder)
    with pytest.raises(UserError, match=said) as told:
        SentenceEncoder(folder, "mean")
    assert "\n" not in str(told.value)


def test_a_damaged_layer_and_a_damaged_adapter_are_named(library, tiny_towers, tmp_path):
    base = tiny_towers("bert")[0]
    folder = written(library, base, tmp_path / "a", library.base.modules.Dense(32, 8))
    cut(folder / "2_Dense" / "model.safetensors")
    with pytest.raises(UserError, match=r"2_Dense/model.safetensors is damaged .*; download it anew"):
        SentenceEncoder(folder)
    change_json(folder / "2_Dense" / "config.json", in_features=16)
    save_file({"linear.weight": torch.ones(8, 32)}, folder / "2_Dense" / "model.safetensors")
    with pytest.raises(UserError, match=r"Dense module 2_Dense|size mismatch"):
        SentenceEncoder(folder)
    lora = LoraSettings(r=2, target_modules=["query"])
    SentenceEmbeddingModel.from_encoder(base, pooling="mean", lora=lora).save_pretrained(tmp_path / "b")
    (tmp_path / "b" / "adapter_model.safetensors").write_text(POINTER)
    with pytest.raises(UserError, match=r"adapter_model.safetensors is a pointer of"):
        SentenceEncoder(base, "mean", adapter=str(tmp_path / "b"))


def test_pickled_tensors_are_read(folder, tiny_towers):
    as_pickle(folder)
    expected = SentenceEncoder(tiny_towers("bert", layers=2)[0], "mean").vectors(SENTENCES)
    assert_near(SentenceEncoder(folder, "mean").vectors(SENTENCES), expected)


@pytest.mark.parametrize(
    ("config", "decoder"),
    [
        *((kind(architectures=[name]), True) for kind, name in ((GPT2Config, "GPT2LMHeadModel"), (LlamaConfig, ""))),
        (LlamaConfig(architectures=["LlamaModel"]), True),
        (Qwen3Config(architectures=["Qwen3Model"]), True),
        (Qwen3Config(is_causal=False), False),
        *((kind(), False) for kind in (BertConfig, XLNetConfig, ModernBertConfig, T5Config)),
    ],
)
def test_which_kinds_are_read_at_their_last_token(config, decoder):
    assert is_decoder(config) == decoder


def test_one_guess_on_all_roads(tiny_towers, caplog):
    folder = tiny_towers("bert")[0]
    with caplog.at_level(logging.WARNING):
        ((part, _),) = load_members(folder)
    assert part.pooling == SentenceEncoder(folder).pooling == "mean" and caplog.text.count("GUESSED mean") == 2


@pytest.fixture
def library():
    return pytest.importorskip("sentence_transformers")


def written(library, base: str, path: Path, *above, pooling: str = "mean", **more) -> Path:
    """A folder as sentence-transformers writes it."""
    transformer = library.sentence_transformer.modules.Transformer(base, max_seq_length=12)
    modules = [transformer, library.sentence_transformer.modules.Pooling(32, pooling), *above]
    library.SentenceTransformer(modules=modules, device="cpu", **more).save(str(path))
    return path


def cosine(found: np.ndarray, expected: np.ndarray) -> float:
    """The smallest over the rows, and 0 where the lengths differ."""
    lengths = [np.linalg.norm(table, axis=1) for table in (found, expected)]
    return float(((found * expected).sum(1) / lengths[0] / lengths[1]).min()) * np.allclose(*lengths, rtol=1e-4)


@pytest.mark.parametrize("order", ["normalize dense", "dense normalize", "normalize dense normalize"])
def test_modules_keep_their_order(order, library, tiny_towers, tmp_path):
    torch.manual_seed(0)
    dense = library.base.modules.Dense(32, 32, activation_function=torch.nn.Tanh())
    kinds = {"dense": dense, "normalize": library.sentence_transformer.modules.Normalize()}
    folder = written(library, tiny_towers("bert")[0], tmp_path, *(kinds[name] for name in order.split()))
    expected = library.SentenceTransformer(str(folder), device="cpu").encode(SENTENCES)
    encoder = SentenceEncoder(folder, device="cpu")
    assert cosine(encoder.encode(SENTENCES, normalize=order.endswith("normalize")), expected) > 0.9999
    with pytest.raises(UserError, match="a dense layer follows"):
        load_members(str(folder))


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "xlm-roberta", "camembert", "albert", "xlnet"])
def test_every_name_of_the_length_file(kind, library, tiny_towers, tmp_path):
    folder = written(library, tiny_towers("bert")[0], tmp_path)
    (folder / "sentence_bert_config.json").unlink()
    (folder / f"sentence_{kind}_config.json").write_text('{"max_seq_length": 7, "do_lower_case": true}')
    encoder = SentenceEncoder(folder, device="cpu")
    expected = library.SentenceTransformer(str(folder), device="cpu")
    assert encoder.max_seq_length == 7 == expected.max_seq_length
    assert cosine(encoder.vectors(SENTENCES), expected.encode(SENTENCES)) > 0.9999


def test_prompts(library, tiny_towers, tmp_path):
    """A default prompt is lower-cased with its sentence; one that is not there is refused; the two known are empty."""
    folder = written(
        library, tiny_towers("bert")[0], tmp_path, prompts={"q": "The Big house "}, default_prompt_name="q"
    )
    for lower in (True, False):
        change_json(folder / "sentence_bert_config.json", do_lower_case=lower)
        expected = library.SentenceTransformer(str(folder), device="cpu").encode(SENTENCES)
        assert cosine(SentenceEncoder(folder, device="cpu").vectors(SENTENCES), expected) > 0.9999
    change_json(folder / "config_sentence_transformers.json", prompts={})
    with pytest.raises(UserError, match="default prompt 'q'"):
        SentenceEncoder(folder)
    change_json(folder / "config_sentence_transformers.json", prompts=None, default_prompt_name="query")
    SentenceEncoder(folder)


@pytest.mark.parametrize(
    ("file", "fields", "said"),
    [
        ("sentence_bert_config.json", {"config_args": {"is_decoder": True}}, "config_args is_decoder"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task fill-mask"),
        ("2_Normalize/config.json", {"module_input_name": "token_embeddings"}, "works on"),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "cls"]}, "pooling is mean"),
    ],
)
def test_what_cannot_be_kept_is_refused(file, fields, said, library, tiny_towers, tmp_path):
    folder = written(library, tiny_towers("bert")[0], tmp_path, library.sentence_transformer.modules.Normalize())
    change_json(folder / file, **fields)
    with pytest.raises(UserError, match=said):
        SentenceEncoder(folder)


def test_an_ensemble_of_one_is_the_model(library, tiny_towers, tmp_path):
    """Pooling, Normalize, prompt and length limit go with it: in memory, exported, and in a sum of encoders."""
    folder = written(
        *(library, tiny_towers("bert")[0], tmp_path / "folder", library.sentence_transformer.modules.Normalize()),
        **{"prompts": {"q": "the big "}, "default_prompt_name": "q"},
    )
    one = SentenceEncoder(folder, device="cpu").encode(SENTENCES)
    summed = tmp_path / "sum" / "ensemble"
    assert main(["export", "--encoders", str(folder), "--output_dir", str(summed.parent)]) == 0
    assert cosine(SentenceEncoder(summed, device="cpu").encode(SENTENCES, normalize=False), one) > 0.9999
    theirs = library.SentenceTransformer(str(summed), device="cpu", trust_remote_code=True)
    assert cosine(theirs.encode(SENTENCES), one) > 0.9999
    both = WeightedEncoders([SentenceEncoder(folder, device="cpu")] * 2)
    assert cosine(both.vectors(SENTENCES), 2 * one) > 0.9999


def test_each_encoder_of_an_ensemble_keeps_its_length(library, tiny_towers, tmp_path):
    short, longer = written(library, tiny_towers("bert")[0], tmp_path / "a"), tiny_towers("bert")[1]
    folder = tmp_path / "sum" / "ensemble"
    choices = [str(short), f"path={longer},pooling=mean"]
    assert main(["export", "--encoders", *choices, "--output_dir", str(folder.parent)]) == 0
    parts = [SentenceEncoder(short, device="cpu"), SentenceEncoder(longer, "mean", device="cpu")]
    assert [part.max_seq_length for part in parts] == [12, 64]
    expected = parts[0].vectors(SENTENCES) + parts[1].vectors(SENTENCES)
    assert_near(SentenceEncoder(folder, device="cpu").vectors(SENTENCES), expected)
    theirs = library.SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)
    assert_near(theirs.encode(SENTENCES), expected)


@pytest.fixture
def nested(library, tiny_towers, tmp_path) -> Path:
    """A folder as early versions wrote it: the transformer in a subfolder of its own."""
    folder = written(library, tiny_towers("bert", layers=2)[0], tmp_path / "nested")
    (folder / "0_Transformer").mkdir()
    for file in folder.iterdir():
        if file.is_file() and file.name not in ("modules.json", "config_sentence_transformers.json", "README.md"):
            file.rename(folder / "0_Transformer" / file.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def test_a_transformer_in_a_subfolder(nested, library, tmp_path, text_file, dev_file):
    """Encodes, trains, teaches and is exported."""
    expected = library.SentenceTransformer(str(nested), device="cpu").encode(SENTENCES)
    assert cosine(SentenceEncoder(nested, device="cpu").vectors(SENTENCES), expected) > 0.9999
    flags = ["--train_file", str(text_file), "--evaluation", "none", "--max_steps", "1", "--use_cpu", "true"]
    flags += ["--bf16", "false", "--max_seq_length", "16", "--output_dir", str(tmp_path / "run")]
    assert (
        main(["train", "--model", str(nested), "--pooling", "mean", "--per_device_train_batch_size", "8", *flags]) == 0
    )
    assert main(["export", "--encoders", str(nested), "--output_dir", str(tmp_path / "sum")]) == 0
    summed = SentenceEncoder(tmp_path / "sum" / "ensemble", device="cpu")
    assert cosine(summed.vectors(SENTENCES), expected) > 0.9999


@pytest.mark.slow
def test_a_transformer_in_a_subfolder_as_a_graph(nested):
    pytest.importorskip("onnxscript")
    assert main(["export", "--folder", str(nested), "--format", "onnx"]) == 0
    from cacse_trainer.encoding.onnx import OnnxEncoder

    expected = SentenceEncoder(nested, device="cpu").vectors(SENTENCES)
    assert np.abs(OnnxEncoder(nested).vectors(SENTENCES) - expected).max() < 1e-4


@pytest.mark.parametrize("kind", [T5EncoderModel, T5ForConditionalGeneration])
def test_t5_is_read_by_its_encoder(kind, library, tiny_tokenizer, tmp_path, text_file):
    """As sentence-transformers reads it, whatever ``is_encoder_decoder`` says; it trains and is exported, too."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    kind(T5Config(vocab_size=len(tiny_tokenizer), initializer_factor=3.0, **sizes)).save_pretrained(tmp_path / "t5")
    tiny_tokenizer.save_pretrained(tmp_path / "t5")
    expected = library.SentenceTransformer(str(tmp_path / "t5"), device="cpu").encode(SENTENCES)
    assert cosine(SentenceEncoder(tmp_path / "t5", device="cpu").vectors(SENTENCES), expected) > 0.9999
    twice = [f"path={tmp_path / 't5'},pooling={pooling}" for pooling in ("mean", "max")]  # its tied weights, too
    assert main(["export", "--encoders", *twice, "--output_dir", str(tmp_path / "sum")]) == 0
    summed = expected + SentenceEncoder(tmp_path / "t5", "max", device="cpu").vectors(SENTENCES)
    theirs = library.SentenceTransformer(str(tmp_path / "sum" / "ensemble"), device="cpu", trust_remote_code=True)
    for encoded in (theirs.encode(SENTENCES), SentenceEncoder(tmp_path / "sum" / "ensemble").vectors(SENTENCES)):
        assert cosine(encoded, summed) > 0.9999
    run = tmp_path / "run"
    flags = ["--train_file", str(text_file), "--evaluation", "none", "--max_steps", "1", "--use_cpu", "true"]
    flags += ["--bf16", "false", "--max_seq_length", "16", "--output_dir", str(run), "--pooling", "mean"]
    flags += ["--per_device_train_batch_size", "8", "--disable_tqdm", "true"]
    assert main(["train", "--model", str(tmp_path / "t5"), *flags]) == 0
    theirs = library.SentenceTransformer(str(run / "export" / "encoder"), device="cpu").encode(SENTENCES)
    for path in (run, run / "export" / "encoder"):
        assert cosine(SentenceEncoder(path, device="cpu").vectors(SENTENCES), theirs) > 0.9999


def test_other_encoder_decoders_are_refused(tiny_tokenizer, tmp_path):
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    BartModel(BartConfig(vocab_size=len(tiny_tokenizer), **sizes, **heads)).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    for load in (SentenceEncoder, SentenceEmbeddingModel.from_encoder, load_members):
        with pytest.raises(UserError, match=r"encoder-decoder \(bart\)"):
            load(str(tmp_path))


def test_a_relative_base_of_an_adapter_is_found(tiny_tokenizer, tmp_path, monkeypatch):
    """From elsewhere, too, as long as both lie where they lay to each other; else it is said how to give it."""
    BertModel(tiny_config("bert", layers=1)).save_pretrained(tmp_path / "bases" / "mine")
    tiny_tokenizer.save_pretrained(tmp_path / "bases" / "mine")
    monkeypatch.chdir(tmp_path)
    lora = LoraSettings(r=2, target_modules=["query"])
    model = SentenceEmbeddingModel.from_encoder("bases/mine", pooling="mean", lora=lora)
    run = tmp_path / "runs" / "one"
    model.save_pretrained(run)
    tiny_tokenizer.save_pretrained(run)
    assert json.loads((run / "adapter_config.json").read_text())["base_model_name_or_path"] == "bases/mine"
    here = SentenceEncoder(run, device="cpu").vectors(SENTENCES)
    monkeypatch.chdir("/")
    assert_near(SentenceEncoder(run, device="cpu").vectors(SENTENCES), here)
    assert type(AutoModel.from_pretrained(run)) is SentenceEmbeddingModel
    (tmp_path / "bases").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"adapter of bases/mine, .*base_model_name_or_path in its adapter_config.json"):
        SentenceEncoder(run)
