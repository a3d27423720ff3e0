"""The dev scores of SentEval's transfer tasks, cheap enough to be taken while a model trains."""

import logging
from pathlib import Path

import numpy as np
import senteval

from cacse_trainer.compute.distributed import gather_objects, rank, world_size
from cacse_trainer.encoding.embedder import Vectors
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.results import TRANSFER

logger = logging.getLogger(__name__)


class TransferDevScorer:
    """Scores a model on the transfer tasks whose files are there, mode ``dev``; tasks are read once.

    Args:
        data_dir: SentEval's data folder.
        seed: of the classifiers.

    Raises:
        UserError: no task has its files; names the script to run.
    """

    def __init__(self, data_dir: Path, seed: int = 1111):
        there = [name for name in TRANSFER if not senteval.task_spec(name).missing(data_dir)]
        if not there:
            script = senteval.task_spec(TRANSFER[0]).script
            raise UserError(f"eval_transfer: no transfer task has its files in {data_dir}; run bash {script}")
        if len(there) < len(TRANSFER) and rank() == 0:
            logger.warning("eval_transfer: scored on %s, the other tasks have no files", ", ".join(there))
        try:
            self.tasks = [senteval.load_task(name, data_dir, seed) for name in there]
        except senteval.DataFormatError as error:
            raise UserError(str(error)) from error
        self.sentences = senteval.distinct_sentences(self.tasks)
        self.params = {**senteval.classifier_settings("dev"), "seed": seed, "batch_size": 4096}

    def __call__(self, embedder: Vectors) -> dict[str, float]:
        """``transfer_<task>`` and ``transfer_avg``, dev accuracy in percent, the same on every process."""
        vectors = embedder.vectors(self.sentences)
        if not np.isfinite(vectors).all():
            return {f"transfer_{name}": float("nan") for name in [*(task.name for task in self.tasks), "avg"]}
        engine = senteval.SE(self.params, senteval.EmbeddingTable(self.sentences, vectors))
        mine = {
            task.name: float(engine.run(task)["devacc"])
            for i, task in enumerate(self.tasks)
            if i % world_size() == rank()
        }
        scores = {name: score for part in gather_objects(mine) for name, score in part.items()}
        found = {f"transfer_{task.name}": scores[task.name] for task in self.tasks}
        return {**found, "transfer_avg": float(np.mean(list(found.values())))}
