"""Sentences to vectors on Ray Data, and on whatever else maps a function over batches of rows (extra ``ray``).

`Encode` is a callable class for ``Dataset.map_batches``; nothing of Ray is needed to import or to call it, and its
`frames` is what Spark's ``mapInPandas`` takes. `encode_on_ray` encodes a corpus of files into the folder of shards that
`encoding.shards` writes: the blocks are dealt out to actors, and one whose worker has died is encoded again, into the
same file.

    import ray
    from cacse_trainer.integrations.ray import Encode

    rows = ray.data.read_parquet("docs")
    vectors = rows.map_batches(Encode, fn_constructor_args=["runs/cacse/tower_a"], concurrency=8, batch_size=1024)
    vectors.write_parquet("vectors")
"""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cacse_trainer.data.blocks import Part
from cacse_trainer.data.corpus import Corpus
from cacse_trainer.encoding.base import BaseEncoder
from cacse_trainer.encoding.computing import AUTO
from cacse_trainer.encoding.encoder import SentenceEncoder
from cacse_trainer.encoding.shards import encode_blocks, encode_shard, finish
from cacse_trainer.encoding.vectors.precision import check_precision, to_precision
from cacse_trainer.errors import RunError, UserError, extra_needed, one_line


class Encode:
    """Batches of rows, each with the vectors of a text column beside its other columns.

    The encoder is loaded with the first batch, in the process that encodes: what is sent there is only how.

    Args:
        model: folder or hub id, on a place that every machine sees.
        column: of the texts; each row has one.
        output: name of the column of vectors.
        normalize, precision, batch_size, prompt: as for `BaseEncoder.encode_stream`.
        settings: further ones of `SentenceEncoder`, such as ``device`` or ``dtype``.

    Raises:
        UserError: an unknown precision, or ``compute="auto"``.
    """

    def __init__(
        self,
        model: str,
        column: str = "text",
        output: str = "embedding",
        *,
        normalize: bool = True,
        precision: str = "float32",
        batch_size: int | None = None,
        prompt: str | None = None,
        **settings: Any,
    ):
        check_precision(precision)
        if settings.get("compute") == AUTO:
            raise UserError("compute auto: each worker would measure and choose by itself; name float32, bf16 or int8")
        self.model, self.column, self.output, self.settings = model, column, output, settings
        self.normalize, self.precision, self.batch_size, self.prompt = normalize, precision, batch_size, prompt
        self._encoder: SentenceEncoder | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch by column, as Ray hands it over, and the (n, dim) vectors in the output's column.

        Raises:
            UserError: there is no such column, a text is no string, or the encoder cannot be loaded.
        """
        return {**batch, self.output: self._vectors(batch)}

    def frames(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Data frames of pandas with a column of lists more, as Spark's ``mapInPandas`` calls it: once a partition."""
        for frame in batches:
            yield frame.assign(**{self.output: list(self._vectors(frame))})

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_encoder": None}

    def _vectors(self, batch: Any) -> np.ndarray:
        if self.column not in batch:
            raise UserError(f"column {self.column!r}: the rows have {', '.join(batch)}; name the column of the texts")
        if self._encoder is None:
            self._encoder = SentenceEncoder(self.model, **self.settings)
        table = self._encoder.encode(
            list(batch[self.column]), self.batch_size, normalize=self.normalize, prompt=self.prompt
        )
        return to_precision(table, self.precision)


def encode_on_ray(
    encoder: BaseEncoder,
    corpus: Corpus,
    output: Path,
    facts: dict[str, Any],
    *,
    workers: int | None = None,
    device: str | None = None,
    show_progress_bar: bool = False,
    **how: Any,
) -> dict[str, Any]:
    """Encode all blocks of a corpus that are not there yet on the actors of a Ray cluster, and finish.

    Args:
        encoder: by which each actor loads its own.
        corpus: of files, on a place that every machine sees, as the model and the output are.
        output, facts: as for `encode_shard`; it is shard 1/1.
        workers: actors; default: one a GPU of the cluster, or one a CPU where there is none.
        device: of each actor; default: a GPU where the cluster has one.
        show_progress_bar: Ray's own.
        how: as for `encode_shard`: with_text, normalize, precision, batch_size, prompt.

    Returns:
        What ``OUTPUT.json`` holds.

    Raises:
        UserError: Ray is not installed or no cluster answers; see `encode_shard` and `finish`.
        RunError: Ray gave up.
    """
    ray = load_ray()
    if not ray.is_initialized():
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(log_to_driver=False, logging_level="warning")  # RAY_ADDRESS names a cluster
        except ConnectionError as error:
            raise UserError(f"ray: no cluster answers ({one_line(error)}); see RAY_ADDRESS") from error
        finally:
            # Ray puts a handler of its own; None: the one before was not set from Python
            if handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)
    resources = ray.cluster_resources()
    on_cpu = device == "cpu" or facts.get("dtype") == "int8" or "backend" in facts
    gpus = 0 if on_cpu else int(resources.get("GPU", 0))
    count = workers or gpus or int(resources["CPU"])
    recipe, fingerprint = encoder.recipe(), encoder.fingerprint()
    place = (str(Path(corpus.name).resolve()), corpus.column)
    ray.data.DataContext.get_current().enable_progress_bars = show_progress_bar
    ray.data.DataContext.get_current().raise_original_map_exception = True  # else a UserError is lost on the way

    def on_actors(missing: list[int]) -> Iterator[tuple[int, Part]]:
        if not missing:
            return
        given = (recipe, fingerprint, device or ("cuda" if gpus else "cpu"), place, output.resolve(), facts["dim"], how)
        rows = ray.data.from_items([{"block": block} for block in missing], override_num_blocks=len(missing))
        done = rows.map_batches(
            _EncodeBlocks,
            fn_constructor_args=given,
            concurrency=min(count, len(missing)),
            batch_size=1,
            num_gpus=1 if gpus else None,
        )
        try:
            for row in done.iter_rows():
                yield row.pop("block"), row
        except ray.exceptions.RayError as error:
            cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
            if isinstance(cause, UserError):
                raise cause from error
            raise RunError(f"ray: {one_line(cause)}") from error

    encode_shard(encoder, corpus, output, facts, (1, 1), engine=on_actors, **how)
    return finish(output)


class _EncodeBlocks:
    """Block numbers to what is recorded of their files, which an actor writes.

    The encoder is loaded with the first block: of what fails in a constructor Ray does not tell the cause.
    """

    def __init__(
        self,
        recipe: Callable[..., BaseEncoder],
        fingerprint: str,
        device: str,
        place: tuple[str, str],
        output: Path,
        dim: int,
        how: dict[str, Any],
    ):
        self._load, self._fingerprint, self._place = partial(recipe, device=device), fingerprint, place
        self._output, self._dim, self._how = output, dim, how
        self._encoder: BaseEncoder | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        if self._encoder is None:
            self._encoder = self._load()
            if self._encoder.fingerprint() != self._fingerprint:
                raise UserError(
                    "ray: the actors load other weights than those in memory; save them where all machines see"
                )
            self._corpus = Corpus(*self._place)
            self._blocks = self._corpus.blocks()
        numbers = batch["block"].tolist()
        parts = encode_blocks(
            self._encoder, self._corpus, self._output, self._blocks, numbers, dim=self._dim, **self._how
        )
        told = dict(parts)
        return {"block": list(told), **{name: [part[name] for part in told.values()] for name in told[numbers[0]]}}


def load_ray() -> Any:
    """Ray with its data sets.

    Raises:
        UserError: it is not installed.
    """
    with extra_needed("ray", "the engine ray needs Ray"):
        import ray
        import ray.data
    return ray
