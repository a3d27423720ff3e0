"""SentEval's tasks and protocol on current libraries: semantic similarity, transfer and probing of sentence embeddings.

Task definitions and protocol: Conneau and Kiela, "SentEval: An Evaluation Toolkit for Universal Sentence
Representations" (2018); probing tasks: Conneau et al., "What you can cram into a single vector" (2018).

    se = senteval.engine.SE({"task_path": "SentEval/data"}, batcher, prepare)
    se.eval(["STS12", "MR"])
"""

from senteval import engine, presets, utils
from senteval.engine import SE
from senteval.errors import DataFileMissing, DataFormatError, EmbeddingError, SettingsError, UnknownTask
from senteval.presets import classifier_settings
from senteval.task import EmbeddingTable, Task, distinct_sentences
from senteval.tasks import TASKS, TaskSpec, load_task, task_spec

__all__ = [
    "SE",
    "TASKS",
    "DataFileMissing",
    "DataFormatError",
    "EmbeddingError",
    "EmbeddingTable",
    "SettingsError",
    "Task",
    "TaskSpec",
    "UnknownTask",
    "classifier_settings",
    "distinct_sentences",
    "engine",
    "load_task",
    "presets",
    "task_spec",
    "utils",
]
