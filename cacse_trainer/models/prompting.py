"""A tokenizer that carries a prompt and an EOS: ``tokenizer(text)`` gives the tokens of the whole template.

The template's tokens are put around the text by the tokenizer's post-processor, as [CLS] and [SEP] are around BERT's.
So truncation cuts the text, never the prompt's tail nor the EOS; the tokenizer is saved with it; and training,
evaluation, transformers and sentence-transformers all see the same tokens without knowing of a prompt.

The tokens are those of the whole string, ``template.format(text=…)``, wherever the tokenizer sets a boundary between
prompt and text: always where a space stands between them. Where it may join them (a quote before or after ``{text}``)
the boundary is kept; that is logged.
"""

import itertools
import json
import logging
import tempfile
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from tokenizers.normalizers import Prepend, Sequence
from tokenizers.processors import TemplateProcessing
from transformers import PretrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cacse_trainer.models.pretrained import load_tokenizer
from cacse_trainer.models.tokenizer_bundle import unbound

logger = logging.getLogger(__name__)

PLACEHOLDER = "{text}"
# Beginnings and ends of many kinds: what all of their tokens have in common is the prompt's.
_PROBES = ("A man is playing.", "the end", "7 of 9", '"Yes," she said, "no"', "élan vital!", "(so it is)", "Zwei, 3")
_NAMES = {"bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "sep_token", "mask_token"}


def give_padding(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Where there is no padding token, the unknown or the EOS token pads: the mask hides it, no embedding is added.

    Raises:
        ValueError: there is neither.
    """
    if tokenizer.pad_token_id is None:
        chosen = tokenizer.unk_token or tokenizer.eos_token
        if chosen is None:
            raise ValueError(f"{type(tokenizer).__name__} has no padding, unknown or EOS token; set its pad_token")
        tokenizer.pad_token = chosen
        logger.info("the tokenizer has no padding token: %s pads (hidden by the mask)", chosen)
    return tokenizer


def prepare_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    prompt_template: str | None = None,
    append_eos: bool = False,
    config: PretrainedConfig | None = None,
) -> PreTrainedTokenizerBase:
    """A tokenizer that pads, puts the prompt around each text and an EOS at its end.

    Args:
        tokenizer: left as it is, but for a missing padding token.
        prompt_template: with ``{text}`` once, such as ``The representative word for sentence {text} is:"``.
        append_eos: the EOS token closes every text, unless the tokenizer puts one there already.
        config: of the model that it will be saved beside. For some kinds (Qwen2) transformers loads a class of its own
            that sets up everything but these tokens anew; then a space before ``{text}`` is a token by itself.

    Returns:
        The same tokenizer where neither is asked for; else one of the plain class for tokenizers of a file, which pads
        on the right. `prompt_of` tells what it carries.

    Raises:
        ValueError: a template without ``{text}``, no EOS token, a tokenizer that carries another prompt already, or
            one without a fast backend.
    """
    give_padding(tokenizer)
    carried = prompt_of(tokenizer)
    if (prompt_template, append_eos) == (None, False) or carried == (prompt_template, append_eos):
        return tokenizer
    if carried != (None, False):
        raise ValueError(f"the tokenizer carries the prompt {carried[0]!r} (EOS: {carried[1]}) already; leave it out")
    template = PLACEHOLDER if prompt_template is None else prompt_template
    if template.count(PLACEHOLDER) != 1:
        raise ValueError(f"prompt_template {prompt_template!r} must hold {PLACEHOLDER} exactly once")
    head, _, tail = template.partition(PLACEHOLDER)
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} has no fast backend (tokenizer.json): no prompt can be put in it")
    if append_eos and tokenizer.eos_token is None:
        raise ValueError(f"append_eos: {type(tokenizer).__name__} has no EOS token")

    plain = unbound(tokenizer.backend_tokenizer)
    before, after = _special_tokens(plain)
    if append_eos and after[-1:] != [tokenizer.eos_token_id]:
        after = [*after, tokenizer.eos_token_id]
    settings: dict[str, Any] = {name: token for name, token in tokenizer.special_tokens_map.items() if name in _NAMES}
    kind = config.model_type if config is not None else ""
    for parts in _ways(plain, head, tail):
        # The plain class takes tokenizer.json as it is; those of a kind (LlamaTokenizer, …) build their own parts anew.
        made = PreTrainedTokenizerFast(
            tokenizer_object=_with_template(parts, before, after),
            model_max_length=tokenizer.model_max_length,
            model_input_names=list(tokenizer.model_input_names),
            padding_side="right",
            prompt_template=prompt_template,
            append_eos=append_eos,
            **settings,
        )
        if config is None or _comes_back(made, config):
            break
    else:
        raise ValueError(
            f"prompt_template {prompt_template!r}: saved beside a {kind} model, the tokenizer would lose it"
        )
    if not parts.exact:
        logger.info(
            "prompt: this tokenizer may join %r, the text and %r to common tokens; here they are always kept apart "
            "(other programs that tokenise the whole string may differ by a token)",
            head[-8:],
            tail[:8],
        )
    return made


def prompt_of(tokenizer: Any) -> tuple[str | None, bool]:
    """The prompt template and whether an EOS is appended, of a tokenizer that `prepare_tokenizer` made."""
    carried = getattr(tokenizer, "init_kwargs", {})  # a bundle of tokenizers has none
    return carried.get("prompt_template"), bool(carried.get("append_eos", False))


def _ids(backend: Tokenizer, text: str) -> list[int]:
    return backend.encode(text, add_special_tokens=False).ids


def _special_tokens(backend: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after every text."""
    whole, inner = backend.encode(_PROBES[0]).ids, _ids(backend, _PROBES[0])
    start = next(i for i in range(len(whole) - len(inner) + 1) if whole[i : i + len(inner)] == inner)
    return whole[:start], whole[start + len(inner) :]


class _Parts(NamedTuple):
    """The tokenizer of the text, the ids before and after it, and whether the three are the whole string's."""

    text: Tokenizer
    head: list[int]
    tail: list[int]
    exact: bool


def _ways(plain: Tokenizer, head: str, tail: str) -> list[_Parts]:
    """The ways to take a string apart into head, text and tail, best first.

    Tokenizers differ in what they do at a text's beginning (a space that is put before it, or not), so the ways there
    are are compared with the whole string, by `_PROBES`: by its ids, then by its characters.
    """
    if not head and not tail:
        return [_Parts(plain, [], [], True)]
    whole = [_ids(plain, head + probe + tail) for probe in _PROBES]
    bare = _without_prefixes(plain)
    heads = _shared_prefix(whole), _ids(plain, head.rstrip(" ")), _ids(plain, head)
    tails = _shared_prefix([ids[::-1] for ids in whole])[::-1], _ids(bare, tail)
    texts = (plain, _with_space(plain)) if head.endswith(" ") else (plain, bare)

    def characters(ids: list[int]) -> str:
        return "".join(str(plain.id_to_token(i)) for i in ids)

    rated = []
    for text, before, after in itertools.product(texts, heads, tails):
        found = [[*before, *_ids(text, probe), *after] for probe in _PROBES]
        pairs = list(zip(found, whole, strict=True))
        same_ids = sum(one == other for one, other in pairs)
        same_text = sum(characters(one) == characters(other) for one, other in pairs)
        rated.append(((same_ids, same_text), _Parts(text, before, after, same_ids == len(_PROBES))))
    return [parts for _, parts in sorted(rated, key=lambda one: one[0], reverse=True)]  # of equals the first


def _with_template(parts: _Parts, before: list[int], after: list[int]) -> Tokenizer:
    """The text's tokenizer with a post-processor that puts special tokens, head and tail around it."""
    backend = unbound(parts.text)
    pieces = {"<before>": before, "<prompt>": parts.head, "<tail>": parts.tail, "<after>": after}
    special = [
        {"id": name, "ids": ids, "tokens": [backend.id_to_token(i) for i in ids]} for name, ids in pieces.items() if ids
    ]
    order = " ".join(name for name in ("<before>", "<prompt>", "$A", "<tail>", "<after>") if pieces.get(name, True))
    backend.post_processor = TemplateProcessing(single=order, pair=f"{order} $B:1", special_tokens=special)
    return backend


def _comes_back(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> bool:
    """Whether transformers gives the same tokens for a folder of a model of this kind."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        again = load_tokenizer(folder, config=config)
    return all(again(probe)["input_ids"] == tokenizer(probe)["input_ids"] for probe in _PROBES)


def _with_space(plain: Tokenizer) -> Tokenizer:
    """A copy of a tokenizer that puts a space before a text, too."""
    copied = unbound(plain)
    copied.normalizer = Sequence([Prepend(" "), *([plain.normalizer] if plain.normalizer is not None else [])])
    return copied


def _without_prefixes(plain: Tokenizer) -> Tokenizer:
    """A copy of a tokenizer that puts no space before a text."""
    fields = json.loads(plain.to_str())
    for name in ("normalizer", "pre_tokenizer"):
        fields[name] = _without_prefix(fields[name])
    return Tokenizer.from_str(json.dumps(fields))


def _without_prefix(part: Any) -> Any:
    """The fields of such a normalizer or pre-tokenizer; None: nothing is left of it."""
    if not isinstance(part, dict):
        return part
    if part["type"] == "Prepend":
        return None
    if part["type"] == "Metaspace":
        return {**part, "prepend_scheme": "never"}
    if part["type"] == "ByteLevel":
        return {**part, "add_prefix_space": False}
    for inner in ("normalizers", "pretokenizers"):
        if inner in part:
            changed = [_without_prefix(one) for one in part[inner]]
            return {**part, inner: [one for one in changed if one is not None]}
    return part


def _shared_prefix(rows: list[list[int]]) -> list[int]:
    columns = zip(*rows, strict=False)
    return [column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns)]
