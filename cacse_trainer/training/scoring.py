"""`ScoringTrainer`: a trainer whose `evaluate`, `predict` and search for settings score dev sets by ``model.embed``."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.trainer_pt_utils import nested_numpify
from transformers.trainer_utils import EvalPrediction, PredictionOutput, denumpify_detensorize, speed_metrics

from cacse_trainer.encoding.embedder import Embedder
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.dev_sets import DevSet, as_dev_set, as_dev_sets
from cacse_trainer.evaluation.health import COLLAPSE_COSINE
from cacse_trainer.training.publishing import PublishingTrainer

logger = logging.getLogger(__name__)


class Remembering:
    """An `Embedder` for a set that is asked twice: the same sentences are encoded once."""

    def __init__(self, embedder: Embedder):
        self._embedder, self._known = embedder, dict[tuple[tuple[str, ...], str | None], np.ndarray]()
        self.query_prompt, self.document_prompt = embedder.query_prompt, embedder.document_prompt

    def vectors(self, sentences: Sequence[str], *, prompt: str | None = None) -> np.ndarray:
        """See `Embedder.vectors`."""
        key = tuple(sentences), prompt
        if key not in self._known:
            self._known[key] = self._embedder.vectors(sentences, prompt=prompt)
        return self._known[key]


class ScoringTrainer(PublishingTrainer):
    """A `PublishingTrainer` that scores dev sets; takes what `Trainer` takes.

    Attributes:
        extra_scorers: called at each evaluation of the dev sets with the `embedder`, for more metrics by name; none by
            default.
    """

    processing_class: Any

    def __init__(self, *args: Any, **kwargs: Any):
        self.extra_scorers: list[Callable[[Embedder], dict[str, float]]] = []
        super().__init__(*args, **kwargs)

    @property
    def embedder(self) -> Embedder:
        """The way from text to the vectors of the model as it is."""
        dtype, embed = torch.bfloat16 if self.args.bf16 else None, self.model_of_run.embed
        prompts: Any = {"query_prompt": self.query_prompt, "document_prompt": self.document_prompt}
        return Embedder(embed, self.processing_class, self.eval_max_seq_length, self.args.device, dtype, **prompts)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Score the dev sets by ``model.embed``.

        Args:
            eval_dataset: graded pairs or a `RetrievalSet`, a dict of these by name, or one name; default: those given
                at construction.
            ignore_keys: unused, as nothing but embeddings is predicted.
            metric_key_prefix: of the metrics' names.

        Returns:
            ``{prefix}_{name}_spearman``, ``{prefix}_{name}_ndcg@10`` and so on for each set, see `DevSet`; without a
            name for a single set. Beside them, as of `Trainer`, ``…_runtime``, ``…_samples_per_second`` and
            ``…_steps_per_second`` of each set, in pairs or queries and in batches of ``per_device_eval_batch_size`` of
            them, what ``compute_metrics`` says of graded pairs, and in training the ``epoch``.
        """
        chosen = eval_dataset if eval_dataset is not None else self.eval_dataset
        if chosen is None:
            raise UserError("evaluate needs a dev set: pass eval_dataset={'stsb': pairs}")
        if isinstance(chosen, str):  # transformers' way to name one of several
            chosen = {chosen: self.eval_dataset[chosen]}  # type: ignore[index, call-overload]
        metrics: dict[str, float] = {}
        self._memory_tracker.start()
        with self._scoring() as embedder:
            for name, dev_set in as_dev_sets(chosen).items():
                started = time.time()
                known = embedder if self.compute_metrics is None else Remembering(embedder)
                scores = dev_set.scores(known)
                prefix = f"{metric_key_prefix}_{name}" if name else metric_key_prefix
                metrics.update({f"{prefix}_{key}": value for key, value in scores.items()})
                if self.compute_metrics is not None and dev_set.labels is not None:
                    predictions = self._preprocessed(dev_set.read(known).values, dev_set.labels)
                    metrics.update(self._own_metrics(prefix, predictions, dev_set.labels))
                metrics.update(self._speed(prefix, started, dev_set))
                self._warn_of(name or "the dev set", scores[dev_set.metric], scores["average_cosine"])
            for scorer in self.extra_scorers if eval_dataset is None or eval_dataset is self.eval_dataset else []:
                metrics.update({f"{metric_key_prefix}_{key}": value for key, value in scorer(embedder).items()})
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._memory_tracker.stop_and_update_metrics(metrics)
        return metrics

    def predict(self, test_dataset: Any, ignore_keys: Any = None, metric_key_prefix: str = "test") -> PredictionOutput:
        """What the model says of a dev set.

        Args:
            test_dataset: graded pairs (sentence1, sentence2, score), or a `RetrievalSet`.
            ignore_keys: unused.
            metric_key_prefix: of the metrics' names.

        Returns:
            ``predictions``: the cosine of each pair (what ``preprocess_logits_for_metrics`` makes of them), or nDCG@10
            of each query; ``label_ids``: the pairs' scores as they are given, None of queries; ``metrics``: the scores
            ×100, those of ``compute_metrics``, and the times as of `evaluate`.

        Raises:
            UserError: it is no dev set.
        """
        dev_set, started = as_dev_set(test_dataset), time.time()
        self._memory_tracker.start()
        with self._scoring() as embedder:
            answers = dev_set.read(embedder)
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in answers.scores.items()}
        predictions, labels = answers.values, dev_set.labels
        if labels is not None:
            predictions = self._preprocessed(predictions, labels)
            metrics.update(self._own_metrics(metric_key_prefix, predictions, labels))
        metrics.update(self._speed(metric_key_prefix, started, dev_set))
        self.control = self.callback_handler.on_predict(self.args, self.state, self.control, metrics)
        self._memory_tracker.stop_and_update_metrics(metrics)
        return PredictionOutput(predictions, labels, metrics)

    def hyperparameter_search(  # type: ignore[override]  # of direction the default differs
        self,
        hp_space: Callable[..., dict[str, float]] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: str | list[str] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As `Trainer`'s, which needs ``model_init`` and optuna or Ray Tune; a trial is a training of its own.

        Args:
            hp_space: the settings of a trial, by the names of the arguments; those of the model are for ``model_init``,
                which is given the trial.
            compute_objective: of the metrics of `evaluate`; default: the one that chooses the best model,
                ``metric_for_best_model``, else the first dev set's.
            n_trials: how many.
            direction: default: of the default objective the better way, else ``minimize``, as of `Trainer`.
            args, kwargs: as of `Trainer`: ``backend``, ``hp_name`` and what the backend takes.

        Raises:
            UserError: no objective is given, and there is no dev set.
        """
        if compute_objective is None:
            name, better = self.args.metric_for_best_model, self.args.greater_is_better
            if name in (None, "loss"):
                name, better = first_metric(self.eval_dataset), True
            if name is None:
                raise UserError("hyperparameter_search needs a dev set to judge by: pass eval_dataset={'stsb': pairs}")
            chosen = f"eval_{str(name).removeprefix('eval_')}"
            compute_objective = lambda metrics: metrics[chosen]  # noqa: E731
            direction = direction or ("maximize" if better else "minimize")
        return super().hyperparameter_search(
            hp_space, compute_objective, n_trials, direction or "minimize", *args, **kwargs
        )

    @contextlib.contextmanager
    def _scoring(self) -> Iterator[Embedder]:
        """The `embedder`; inside, the model is in eval mode."""
        model = self.model_of_run
        was_training = model.training
        model.eval()
        try:
            yield self.embedder
        finally:
            model.train(was_training)

    def _preprocessed(self, cosines: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The predictions that ``preprocess_logits_for_metrics`` makes of a set's cosines."""
        if self.preprocess_logits_for_metrics is None:
            return cosines
        given = torch.from_numpy(cosines), torch.from_numpy(labels)
        return nested_numpify(self.preprocess_logits_for_metrics(*given))

    def _own_metrics(self, prefix: str, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """What ``compute_metrics`` says of a set, the names behind the prefix; a set is one batch."""
        if self.compute_metrics is None:
            return {}
        whole = {"compute_result": True} if self.args.batch_eval_metrics else {}
        found = self.compute_metrics(EvalPrediction(predictions=predictions, label_ids=labels), **whole)
        if not isinstance(found, Mapping):
            raise UserError(f"compute_metrics gave a {type(found).__name__}; it must return a dict of metrics by name")
        named = {key if key.startswith(f"{prefix}_") else f"{prefix}_{key}": value for key, value in found.items()}
        return denumpify_detensorize(named)

    def _speed(self, prefix: str, started: float, dev_set: DevSet) -> dict[str, float]:
        batch = self.args.eval_batch_size * self.args.world_size
        return speed_metrics(prefix, started, dev_set.rows, math.ceil(dev_set.rows / batch))

    def _warn_of(self, name: str, score: float, cosine: float) -> None:
        step = self.state.global_step
        if math.isnan(score):
            logger.warning("step %d: the score of %s is undefined (constant or non-finite similarities)", step, name)
        if cosine > COLLAPSE_COSINE:
            logger.warning(
                "step %d: the embeddings of %s are nearly constant (average cosine %.4f): collapse; "
                "a lower learning rate or a larger batch helps",
                step,
                name,
                cosine,
            )


def first_metric(eval_dataset: Any) -> str | None:
    """By which score the first of the dev sets judges, ``stsb_spearman``; without a name for a single set."""
    name, first = next(iter(as_dev_sets(eval_dataset).items()), ("", None))
    if first is None:
        return None
    return f"{name}_{first.metric}" if name else first.metric
