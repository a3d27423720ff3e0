"""A static table of an encoder: a vector for each token, many times as fast to encode with as the encoder.

Each entry of the vocabulary goes through the encoder by itself, between its special tokens; the vectors are reduced by
a principal component analysis, and weighted by frequency (Arora et al. 2017, smooth inverse frequency):

    row(t) = a / (a + p(t)) · (v(t) − v̄) W        p(t): the token's share of a text, or by Zipf's law of its rank

A sentence's vector is the mean of its tokens' rows. The recipe and the form of the folder are model2vec's; that
library and sentence-transformers load it, and so does `SentenceEncoder`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from cacse_trainer.encoding.base import BaseEncoder
from cacse_trainer.encoding.embedder import progress_bar
from cacse_trainer.encoding.lineage import known_of
from cacse_trainer.encoding.model_card import LOCAL_PATH, PLAIN_USAGE, CardFacts, render_card
from cacse_trainer.encoding.sentence_transformers import list_modules
from cacse_trainer.encoding.vectors.precision import truncated
from cacse_trainer.errors import UserError
from cacse_trainer.files import write_json, writing_folder
from cacse_trainer.models.modeling_static import LONGEST, OURS, TOKENIZER, WEIGHTS
from cacse_trainer.models.pretrained import STATIC
from cacse_trainer.models.tokenizer_bundle import unbound

DIMS, SIF = 256, 1e-4
TEXTS_AT_ONCE = 4_096
NEVER_READ = re.compile(r"\[unused\d+\]")
"""Tokens that no text has."""
WORD = re.compile(r"\w{2,}(?:[-.+]\w+)*")


def export_static(
    encoder: BaseEncoder,
    output_dir: str | Path,
    *,
    dims: int = DIMS,
    text: Iterable[str] | None = None,
    words: int = 0,
    sif: float = SIF,
    show_progress_bar: bool = False,
) -> dict[str, Any]:
    """Write an encoder's static table.

    Args:
        encoder: with one fast tokenizer.
        output_dir: becomes the folder; one that is there is replaced, if this program wrote it.
        dims: of the table's vectors; at most those of the encoder.
        text: texts like those that will be encoded, gone through twice: tokens are weighted by how often they are in
            it. Default: by Zipf's law, in the order of the vocabulary.
        words: so many of the text's most frequent words that are several tokens get a row of their own.
        sif: a of the weights; a smaller one weighs frequent tokens down more.
        show_progress_bar: on standard error.

    Returns:
        ``vocabulary`` (tokens with a row), ``words``, ``dims``, ``explained_variance`` and ``megabytes``.

    Raises:
        UserError: a number is out of its range, words without a text, an encoder with another kind of tokenizer, or a
            folder that this program did not write.
    """
    tokenizer, prepare = encoder.tokenizer, encoder.embedder.prepare
    if dims < 1 or words < 0 or not 0 < sif < 1:
        raise UserError(f"dims {dims}, words {words}, sif {sif}: from 1, from 0, and between 0 and 1")
    if words and text is None:
        raise UserError(f"words {words}: are taken from a text; give one (--text)")
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"model {encoder.name}: a static table needs one fast tokenizer (tokenizer.json); it has not")
    if prepare is not None and prepare("A").endswith("a"):
        raise UserError(
            f"model {encoder.name}: its do_lower_case lower-cases the text, which a static table does not; let its "
            "tokenizer do it (a Lowercase normalizer in tokenizer.json)"
        )
    if Path(encoder.name).exists() and Path(encoder.name).resolve().is_relative_to(Path(output_dir).resolve()):
        raise UserError(f"output_dir {output_dir} holds the model itself, {encoder.name}; choose another folder")
    backend = unbound(tokenizer.backend_tokenizer)
    special = set(tokenizer.all_special_ids)
    kept = [i for token, i in backend.get_vocab().items() if i not in special and not NEVER_READ.fullmatch(token)]
    kept = sorted(kept)
    with progress_bar(len(kept), show_progress_bar, "Encoding the vocabulary") as bar:
        table = encoder.embedder.of_rows(_rows_of(tokenizer, kept), advance=bar.update)
    added = _frequent_words(text, words, backend) if text is not None and words else []
    if added:
        table = np.concatenate([table, encoder.embedder.vectors(added)])
        # in a text these match before the tokens that they are made of, where no word goes on around them
        backend.add_tokens([AddedToken(word, single_word=True, lstrip=True, normalized=True) for word in added])
        vocabulary = backend.get_vocab()
        kept += [vocabulary[word] for word in added]
    reduced, explained = reduce(truncated(table, encoder.truncate_dim), dims)
    rows = np.zeros((max(backend.get_vocab().values()) + 1, reduced.shape[1]), dtype=np.float32)
    shares = zipf(len(kept)) if text is None else _shares(text, backend, len(rows))[kept]
    rows[kept] = reduced * (sif / (sif + shares))[:, None]
    with writing_folder(Path(output_dir)) as staged:
        _write(staged, rows, backend, encoder, sif)
        size = sum(file.stat().st_size for file in staged.iterdir()) / 1e6
    return {
        "vocabulary": len(kept),
        "words": len(added),
        "dims": rows.shape[1],
        "explained_variance": explained,
        "megabytes": size,
    }


def reduce(table: np.ndarray, dims: int) -> tuple[np.ndarray, float]:
    """Rows in the directions of their largest variance, (n, dim) → (n, min(dims, dim)), and the share that is kept.

    A direction's sign is that with which its largest entry is positive.
    """
    centred = table.astype(np.float64) - table.mean(axis=0, dtype=np.float64)
    variances, directions = np.linalg.eigh(centred.T @ centred)  # the smallest first
    found = centred @ directions[:, ::-1][:, :dims]
    largest = found[np.abs(found).argmax(axis=0), np.arange(found.shape[1])]
    kept = variances[::-1][:dims].sum() / max(variances.sum(), np.finfo(np.float64).tiny)
    return (found * np.where(largest < 0, -1, 1)).astype(np.float32), float(kept)


def zipf(count: int) -> np.ndarray:
    """(count,) shares by Zipf's law: p of rank r, from 1, is as 1 / (r + 1), as model2vec has it."""
    inverse = 1 / np.arange(2, count + 2)
    return inverse / inverse.sum()


def _rows_of(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[dict[str, list[int]]]:
    """Each token by itself between what the tokenizer puts around every text."""
    first, second = (tokenizer(text)["input_ids"] for text in ("a", "b"))
    before = next(i for i, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
    after = next(i for i, (one, other) in enumerate(zip(first[::-1], second[::-1], strict=False)) if one != other)
    head, tail = first[:before], first[len(first) - after :]
    length = len(head) + 1 + len(tail)
    same = {name: [value[0]] * length for name, value in tokenizer("a").items() if name != "input_ids"}
    return [{"input_ids": [*head, i, *tail], **same} for i in ids]


def _frequent_words(text: Iterable[str], count: int, backend: Tokenizer) -> list[str]:
    """The most frequent words that the tokenizer cuts, as its normalizer writes them."""
    normalize = backend.normalizer.normalize_str if backend.normalizer is not None else str
    found = Counter(word for line in text for word in WORD.findall(normalize(line)))
    ranked = (word for word, _ in found.most_common())
    return list(islice((word for word in ranked if len(backend.encode(word, add_special_tokens=False)) > 1), count))


def _shares(text: Iterable[str], backend: Tokenizer, size: int) -> np.ndarray:
    """(size,) share of each token in a text."""
    counts = np.zeros(size)
    for block in _blocks(text):
        for encoding in backend.encode_batch_fast(block, add_special_tokens=False):
            np.add.at(counts, encoding.ids, 1)
    if not counts.any():
        raise UserError("text: holds no token; give texts like those that will be encoded")
    return counts / counts.sum()


def _blocks(text: Iterable[str]) -> Iterator[list[str]]:
    lines = iter(text)
    while block := list(islice(lines, TEXTS_AT_ONCE)):
        yield block


def _write(folder: Path, rows: np.ndarray, backend: Tokenizer, encoder: BaseEncoder, sif: float) -> None:
    save_file({OURS: torch.from_numpy(rows)}, folder / WEIGHTS)
    backend.save(str(folder / TOKENIZER), pretty=False)
    config = {
        "model_type": "model2vec",
        "architectures": ["StaticModel"],
        "tokenizer_name": Path(encoder.name).name,
        "apply_pca": rows.shape[1],
        "sif_coefficient": sif,
        "hidden_dim": rows.shape[1],
        "max_length": None,
        "normalize": False,
        "embedding_dtype": "float32",
    }
    write_json(folder / "config.json", config)
    list_modules(folder, {".": STATIC}, LONGEST)
    card = CardFacts(
        title="Static table of a sentence encoder",
        what=f"A vector for each token, from {Path(encoder.name).name} ({encoder.pooling}); a sentence is their mean.",
        pooling="mean of static vectors",
        base_models=[encoder.name],
        **known_of([encoder.name]),
        usage=PLAIN_USAGE.format(path=LOCAL_PATH),
    )
    (folder / "README.md").write_text(render_card(card), encoding="utf-8")
