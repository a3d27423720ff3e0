"""Hard negatives: for each (anchor, positive) the texts of a corpus that an encoder takes for near the anchor.

For every row the corpus is ranked by its cosine to the anchor. Left out are the positive, what says the same (equal but
for white space and case), every other positive of an equal anchor, and the anchor itself. Of what is left those count
that stand in the rank range and whose score is at most

    min(ceiling, s⁺ − margin, s⁺ − relative_margin · |s⁺|)        s⁺: the positive's own score

and the best K of them are the negatives. Texts that score above it are more likely positives that nobody has marked.
The corpus is encoded once, to the disk, and compared in blocks: no table of rows × corpus is ever made.
"""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np

from cacse_trainer.adaptation.candidates import Candidates
from cacse_trainer.adaptation.miner import RANK_RANGE, RELATIVE_MARGIN, Choice, Mined, Miner, column_of
from cacse_trainer.data import load_sentences
from cacse_trainer.data.blocks import Part, file_of, fill, gathered, writing_block
from cacse_trainer.data.corpus import Corpus
from cacse_trainer.encoding.base import BaseEncoder
from cacse_trainer.encoding.embedder import progress_bar
from cacse_trainer.encoding.encoder import SentenceEncoder
from cacse_trainer.encoding.loading import fingerprint
from cacse_trainer.encoding.vectors.index import EXACT, check_kind, check_text, read_encoded
from cacse_trainer.encoding.vectors.precision import check_precision
from cacse_trainer.encoding.vectors.tables import hash_of_rows
from cacse_trainer.errors import UserError
from cacse_trainer.files import crc32_of, plain, private_folder
from cacse_trainer.models.cross_encoder import CrossEncoder

FAISS, FAISS_KIND = "faiss", "ivf"
SUMS = ("rows", "mined", "dropped", "above_limit", "by_cross_encoder")
MEANS = ("positive_score", "negative_score")
PAIRS_A_BLOCK = 4_096
SUFFIX = ".arrow"

Rows: TypeAlias = datasets.Dataset | Sequence[Mapping[str, str]] | str | os.PathLike[str]


def mine_hard_negatives(
    encoder: BaseEncoder | str | os.PathLike[str],
    rows: Rows,
    corpus: Iterable[str] | str | os.PathLike[str] | None = None,
    *,
    negatives: int = 1,
    rank_range: tuple[int, int] = RANK_RANGE,
    ceiling: float | None = None,
    margin: float | None = None,
    relative_margin: float | None = RELATIVE_MARGIN,
    sampling: str = "top",
    seed: int = 0,
    query_prompt: str = "",
    document_prompt: str = "",
    index: str = EXACT,
    search_effort: int | None = None,
    precision: str = "float32",
    cross_encoder: CrossEncoder | str | None = None,
    cross_margin: float = 0.0,
    scores: bool = False,
    batch_size: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    vectors: str | os.PathLike[str] | None = None,
    shard: tuple[int, int] | None = None,
    output: str | os.PathLike[str] | None = None,
    show_progress_bar: bool = False,
) -> Mined:
    """Find hard negatives for (anchor, positive) rows; rows for which there are not enough are dropped and counted.

    Args:
        encoder: a `SentenceEncoder`, or the folder or hub id of one.
        rows: with the columns ``anchor`` and ``positive``: a data set, a list of dicts, or a file as for
            `load_sentences`.
        corpus: texts, or a file of them, one a row; default: the distinct positives.
        negatives: how many a row, K.
        rank_range: first and last rank, from 1, that a negative may have among the texts that are not left out.
        ceiling: a negative's score is at most this.
        margin: and so far below the positive's.
        relative_margin: and below it by this share of it; None: no such limit.
        sampling: ``top`` takes the best-ranked, ``random`` any of those that may be taken.
        seed: of the random ones.
        query_prompt, document_prompt: put before every anchor, and before every positive and text of the corpus.
        index: ``exact`` compares everything; ``faiss`` (ivf), or flat, ivf, hnsw or a faiss factory string, is faster
            and holds the vectors in memory.
        search_effort: of the faiss index, see `Searching.build_index`.
        precision: of the corpus's vectors on the disk: float32, float16, int8 or binary.
        cross_encoder: folder or hub id of a sequence classifier with one label. It scores the texts that may be taken;
            those above the positive's own score minus ``cross_margin`` are left out, and ``top`` goes by its scores.
        cross_margin: in its logits.
        scores: a column ``scores``, the positive's and then each negative's: cosines, or the cross-encoder's logits.
        batch_size: as for `SentenceEncoder.encode`.
        folder: where the corpus's vectors lie meanwhile; default: the system's place for temporary files.
        vectors: the corpus's, of `encode_corpus` or of the finished shards of `encode_shard`, with ``document_prompt``
            as their prompt; they are read where they lie, and ``precision`` is theirs. ``corpus`` is a file then.
        shard: i and n, i from 1: mine only the i-th of n parts of the rows, in blocks of `PAIRS_A_BLOCK` rows, a file a
            block in the folder ``output``; see `finish_mining`. What a block's rows become does not depend on n.
        output: this folder.
        show_progress_bar: on standard error.

    Returns:
        ``rows``: anchor, positive and ``hard_negative``, or ``negative_1`` … ``negative_K`` for K > 1, in the order of
        the rows. ``counts``: ``rows``; ``corpus`` (distinct texts), ``corpus_repeated``, ``corpus_blank``; ``mined``,
        ``dropped``; ``above_limit`` and ``by_cross_encoder`` (texts in the rank range that were left out); and the mean
        ``positive_score`` and ``negative_score``.

    Raises:
        UserError: a setting is out of its range, there is no anchor or positive column, the corpus is empty, vectors of
            another text or encoder; or, of a shard, what `fill` refuses.
    """
    choice = Choice(negatives, rank_range, ceiling, margin, relative_margin, sampling, seed, cross_margin)
    index = FAISS_KIND if index == FAISS else index
    check_precision(precision)
    check_kind(index, precision, search_effort)
    pairs = _pairs(rows)
    if not isinstance(encoder, BaseEncoder):
        encoder = SentenceEncoder(encoder)
    if isinstance(cross_encoder, str):
        cross_encoder = CrossEncoder(cross_encoder, encoder.device)
    if isinstance(corpus, (str, os.PathLike)):
        corpus = Corpus(os.fspath(corpus))
    if folder is not None and not Path(folder).is_dir():
        raise UserError(f"folder {folder}: no such folder; make it, or leave it out")
    place = Path(tempfile.mkdtemp(dir=_workspace(Path(folder).resolve() if folder is not None else None)))
    encoded = None
    if vectors is not None:
        if not isinstance(corpus, Corpus):
            raise UserError("vectors: belong to a corpus; give its file, too")
        prompted = encoder.prompt_facts(document_prompt or None)
        encoded = read_encoded(Path(vectors), {**encoder.described(), **prompted})
        check_text(Path(vectors), encoded, corpus, corpus)
    candidates = Candidates(column_of(pairs, "positive") if corpus is None else corpus, place)
    miner = Miner(encoder, pairs, candidates, choice, (query_prompt, document_prompt), cross_encoder, batch_size)

    def encode() -> None:
        if encoded is not None:
            candidates.take(encoded, index, search_effort)
            return
        candidates.encode(
            encoder,
            prompt=document_prompt,
            precision=precision,
            index=index,
            search_effort=search_effort,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
        )

    if shard is None:
        encode()
        with progress_bar(len(pairs), show_progress_bar, "Mining") as bar:
            found = miner.mine(np.arange(len(pairs)), place / "rows.arrow", scores, bar.update)
        found.counts["rows"] = len(pairs)
    else:
        if output is None:
            raise UserError("shard: give the folder that all shards write into, as output")
        facts = {
            **encoder.described(),
            **encoder.settings(),
            **asdict(choice),
            "input": Path(str(rows)).name if isinstance(rows, (str, os.PathLike)) else "rows",
            "pairs": miner.identity,
            "corpus": candidates.identity(),
            "prompts": [query_prompt, document_prompt],
            "index": index,
            "search_effort": search_effort,
            "precision": precision if encoded is None else encoded.precision,
            "cross_encoder": cross_encoder and fingerprint(cross_encoder.model),
            "scores": scores,
            "batch_size": batch_size,
            "tokens_per_batch": encoder.tokens_per_batch,
        }
        found = _mine_shard(miner, Path(output), plain(facts), shard, encode, scores, show_progress_bar)
    candidates.close()
    counts = {
        "corpus": len(candidates),
        "corpus_repeated": candidates.lines - candidates.blank - len(candidates),
        "corpus_blank": candidates.blank,
    }
    return Mined(found.rows, {**counts, **found.counts})


def _mine_shard(
    miner: Miner,
    folder: Path,
    facts: dict[str, Any],
    shard: tuple[int, int],
    encode: Callable[[], None],
    scores: bool,
    shown: bool,
) -> Mined:
    pairs = miner.pairs
    blocks = [range(start, min(start + PAIRS_A_BLOCK, len(pairs))) for start in range(0, len(pairs), PAIRS_A_BLOCK)]

    def text_hash(block: int) -> str:
        texts = pairs[list(blocks[block])]
        return hash_of_rows([*texts["anchor"], *texts["positive"]])[1]

    def make(missing: list[int]) -> Iterator[tuple[int, Part]]:
        if missing:
            encode()
        with progress_bar(sum(len(blocks[block]) for block in missing), shown, "Mining") as bar:
            for block in missing:
                path = file_of(folder, SUFFIX, block)
                with writing_block(path) as staged:
                    found = miner.mine(np.array(blocks[block]), staged, scores, bar.update)
                    part = {"rows": len(found.rows), "crc32": crc32_of(staged), "rows_sha256": text_hash(block)}
                yield block, {**part, "counts": {**found.counts, "rows": len(blocks[block])}}

    filled = fill(folder, SUFFIX, {**facts, "blocks": len(blocks)}, shard, text_hash, make)
    told = {"blocks": len(blocks), "of_shard": filled.of_shard, "made": filled.made}
    return Mined(_rows_in(folder, filled.parts), {**_summed(filled.parts), **told})


def finish_mining(folder: str | os.PathLike[str]) -> Mined:
    """Find all blocks of all shards there, and equal in encoder and settings.

    Args:
        folder: the ``output`` of `mine_hard_negatives` with a ``shard``.

    Returns:
        All rows in order, mapped from the files where they lie, and the counts.

    Raises:
        UserError: see `data.blocks.gathered`.
    """
    _, parts = gathered(Path(folder), SUFFIX, "mine")
    return Mined(_rows_in(Path(folder), parts), _summed(parts))


def _rows_in(folder: Path, parts: dict[str, Part]) -> datasets.Dataset:
    found = [datasets.Dataset.from_file(str(folder / name)) for name in sorted(parts)]
    return datasets.concatenate_datasets(found) if found else datasets.Dataset.from_dict({})


def _summed(parts: dict[str, Part]) -> dict[str, Any]:
    every = [part["counts"] for part in parts.values()]
    counts: dict[str, Any] = {name: sum(one[name] for one in every) for name in SUMS}
    for name in MEANS:
        told = [(one[name], one["mined"]) for one in every if one["mined"]]
        counts[name] = sum(mean * mined for mean, mined in told) / counts["mined"] if told else None
    return counts


_workspace = cache(partial(private_folder, "cacse-trainer-mine-"))
"""This process's private folder in a place, or among the temporary ones."""


def _pairs(rows: Rows) -> datasets.Dataset:
    if isinstance(rows, (str, os.PathLike)):
        rows = load_sentences(os.fspath(rows))
    pairs = rows if isinstance(rows, datasets.Dataset) else datasets.Dataset.from_list([dict(row) for row in rows])
    missing = [name for name in ("anchor", "positive") if name not in pairs.column_names]
    if missing or len(pairs) == 0:
        what = (
            f"no column {missing[0]!r} (they have {', '.join(pairs.column_names)})" if len(pairs) else "there are none"
        )
        raise UserError(f"rows: {what}; give pairs of an anchor and a positive")
    return pairs.select_columns(["anchor", "positive"])
