"""``SE``: runs tasks by name with the user's ``prepare`` and ``batcher``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from senteval.encoding import Batcher, Prepare
from senteval.errors import SettingsError
from senteval.task import Result, Task
from senteval.tasks import TASKS, load_task, task_spec
from senteval.utils import dotdict

DEFAULTS: dict[str, Any] = {"usepytorch": True, "seed": 1111, "batch_size": 128, "nhid": 0, "kfold": 5}


class SE:
    """Evaluates sentence embeddings.

    Args:
        params: ``task_path`` (the folder that holds ``downstream/`` and ``probing/``), and where the defaults do not
            suit ``usepytorch`` (True), ``seed`` (1111), ``batch_size`` (128, sentences a call of ``batcher``),
            ``kfold`` (5), ``classifier`` (``{"nhid": 0}``, see ``tools.settings.Settings``), ``similarity`` (cosine),
            ``progress`` (no bars; True: standard error; a text stream: that stream). Other keys are the user's own.
        batcher: ``batcher(params, batch)`` → embeddings of a list of token lists, NumPy or torch, (len(batch), dim).
        prepare: ``prepare(params, samples)``, called with all of a task's sentences before its first batch.

    Attributes:
        params: the parameters, keys as attributes; ``prepare`` may add its own for ``batcher`` to read.
        evaluation: the task that ran last.
        results: the last result of ``eval``.

    Example:
        ``SE({"task_path": "SentEval/data", "kfold": 10}, batcher).eval(["STS12", "MR"])["MR"]["acc"]``
    """

    def __init__(self, params: Mapping[str, Any], batcher: Batcher, prepare: Prepare | None = None) -> None:
        self.params = dotdict({**DEFAULTS, **params})
        if not self.params.classifier:
            self.params.classifier = {"nhid": 0}
        self.batcher = batcher
        self.prepare: Prepare = prepare or (lambda params, samples: None)
        self.list_tasks = list(TASKS)
        self.evaluation: Task | None = None
        self.results: Result = {}

    def eval(self, name: str | Sequence[str]) -> Result:
        """Runs one task, or several one after the other.

        Args:
            name: a task's name, or a list of names (all of them are checked before the first runs).

        Returns:
            The task's result; for a list a dictionary of them by name.

        Raises:
            UnknownTask: a name that is not in the table.
            DataFileMissing: a data file is not there.
            EmbeddingError: the batcher returned NaN or a wrong shape.
        """
        if not isinstance(name, str):
            for one in name:
                task_spec(one)
            self.results = {one: self.eval(one) for one in name}
            return self.results
        task_spec(name)
        if self.params.task_path is None:
            raise SettingsError("params has no task_path: the folder that holds downstream/ and probing/")
        return self.run(load_task(name, self.params.task_path, self.params.seed))

    def run(self, task: Task) -> Result:
        """Runs a task that is loaded already (see ``load_task``)."""
        self.evaluation = task
        self.params.current_task = task.name
        task.do_prepare(self.params, self.prepare)
        self.results = task.run(self.params, self.batcher)
        return self.results
