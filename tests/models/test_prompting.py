"""A tokenizer with a prompt gives the whole string's tokens, keeps tail and EOS when it cuts, and survives saving."""

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from cacse_trainer.data import ContrastiveCollator
from cacse_trainer.models.prompting import give_padding, prepare_tokenizer, prompt_of
from tests.conftest import ROOT

BELLM = 'The representative word for sentence {text} is:"'
TEXTS = ("A man is playing.", "He said so", "9 lives", "the cat sat on the mat!", "x", "(brackets)")
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level(pre_tokenizer) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(backend, ["<eos>"], alphabet)


def trained(backend: Tokenizer, special: list[str], alphabet=()) -> Tokenizer:
    lines = (ROOT / "examples" / "sample" / "sentences.txt").read_text(encoding="utf-8").splitlines()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, initial_alphabet=list(alphabet), show_progress=False
    )
    backend.train_from_iterator([*lines, *['"It rains."'] * 200], trainer)  # so that `."` is a token
    return backend


def sentence_piece(normalizer=None, pre_tokenizer=None) -> Tokenizer:
    """As LLaMA's and Gemma's are: one vocabulary, three ways to put a space before a text."""
    source = Tokenizer(models.BPE(unk_token="<unk>"))
    source.pre_tokenizer = pre_tokenizers.Metaspace()
    backend = trained(source, ["<unk>", "<s>", "<eos>"])
    backend.pre_tokenizer = (
        pre_tokenizer if pre_tokenizer is not None else pre_tokenizers.Split("▁", "merged_with_next")
    )
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return backend


def legacy_llama() -> Tokenizer:
    return sentence_piece(normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]))


MAKERS = {
    "gpt2": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "qwen": lambda: byte_level(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(QWEN), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    ),
    "llama_legacy": legacy_llama,
    "llama": lambda: sentence_piece(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first")),
    "gemma": lambda: sentence_piece(normalizers.Replace(" ", "▁")),
}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    made = {}
    for name, make in MAKERS.items():
        backend = make()
        more = {"bos_token": "<s>", "unk_token": "<unk>"} if backend.token_to_id("<s>") is not None else {}
        made[name] = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", **more)
    return made


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("template", [BELLM, "query: {text}", "{text} summarised:", "Summarise {text}\n", "{text}"])
@pytest.mark.parametrize("append_eos", [False, True])
def test_the_whole_string(tokenizers, kind, template, append_eos, tmp_path):
    plain = tokenizers[kind]
    made = prepare_tokenizer(plain, template, append_eos)
    made.save_pretrained(tmp_path)
    LlamaConfig().save_pretrained(tmp_path)  # its own tokenizer class would build the parts anew
    again = AutoTokenizer.from_pretrained(tmp_path)
    closing = [plain.eos_token_id] if append_eos else []
    for text in TEXTS:
        expected = plain(template.format(text=text)).input_ids + closing
        assert made(text).input_ids == expected, text
        assert again(text).input_ids == expected, text
    assert prompt_of(again) == (template, append_eos)
    assert prepare_tokenizer(again, template, append_eos) is again
    with pytest.raises(ValueError, match="carries the prompt"):
        prepare_tokenizer(again, "other {text}", append_eos)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_long_text_is_cut_inside(tokenizers, kind):
    """Head, tail and EOS stay whole; only the text's own tokens go."""
    made = prepare_tokenizer(tokenizers[kind], BELLM, append_eos=True)
    around = made("").input_ids
    count = made.num_special_tokens_to_add()
    assert count == len(around)
    long = made("the cat sat on the mat " * 30).input_ids
    cut = made("the cat sat on the mat " * 30, truncation=True, max_length=count + 5).input_ids
    head = next(i for i, (a, b) in enumerate(zip(long, around, strict=False)) if a != b)
    tail = count - head
    assert len(cut) == count + 5
    assert cut[: head + 5] == long[: head + 5] and cut[-tail:] == around[-tail:]
    assert cut[-1] == made.eos_token_id


def test_quotes_beside_the_text_are_kept_apart(tokenizers, caplog):
    """BPE may join a full stop and a quote; then the boundary stays, and it is said."""
    caplog.set_level("INFO")
    made = prepare_tokenizer(tokenizers["gpt2"], 'This sentence : "{text}" means in one word:"')
    assert "kept apart" in caplog.text
    text = "".join(made.convert_ids_to_tokens(made("It rains.").input_ids)).replace("Ġ", " ")
    assert text == 'This sentence : "It rains." means in one word:"'


def test_padding_and_the_collator(tokenizers):
    """A missing padding token is the unknown one, else the EOS; the vocabulary stays."""
    gpt2, llama = (prepare_tokenizer(tokenizers[kind], "{text}", True) for kind in ("gpt2", "llama"))
    assert (gpt2.pad_token, llama.pad_token) == ("<eos>", "<unk>")
    assert len(gpt2) == len(tokenizers["gpt2"])
    batch = ContrastiveCollator(gpt2, 6)([{"anchor": "rain", "positive": "the cat sat on the mat again"}])
    lengths = batch["attention_mask"].sum(dim=-1)[0].tolist()
    assert lengths[1] == 6 and lengths[0] < 6
    ends = [batch["input_ids"][0, view, length - 1].item() for view, length in enumerate(lengths)]
    assert ends == [gpt2.eos_token_id] * 2


def test_bert_keeps_its_special_tokens(tiny_tokenizer):
    made = prepare_tokenizer(tiny_tokenizer, "the man {text} is big")
    assert made.convert_ids_to_tokens(made("red").input_ids) == ["[CLS]", "the", "man", "red", "is", "big", "[SEP]"]
    assert set(made("red")) == set(tiny_tokenizer("red"))
    appended = prepare_tokenizer(tiny_tokenizer, None, False)
    assert appended is tiny_tokenizer


def test_refusals(tokenizers, tiny_tokenizer):
    for template in ("no place", "{text} twice {text}", ""):
        with pytest.raises(ValueError, match="exactly once"):
            prepare_tokenizer(tokenizers["gpt2"], template)
    with pytest.raises(ValueError, match="has no EOS token"):
        prepare_tokenizer(tiny_tokenizer, None, append_eos=True)
    bare = PreTrainedTokenizerFast(tokenizer_object=MAKERS["gpt2"]())
    with pytest.raises(ValueError, match="no padding, unknown or EOS token"):
        give_padding(bare)
