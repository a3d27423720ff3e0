"""`PublishingTrainer`: what was trained as plain folders that load everywhere, with cards, and on the hub.

`Trainer` saves and pushes its training model, with a card of its own. That folder needs this package to be read; what
is given away here, by `export`, `create_model_card` and `push_to_hub`, are the folders that a command-line run leaves.
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers.trainer_utils import HubStrategy, SaveStrategy

from cacse_trainer.compute.distributed import alone
from cacse_trainer.encoding.hub import HubTarget, prepare_repo, push_checkpoint, push_folders
from cacse_trainer.encoding.lineage import hub_data_sets, known_of
from cacse_trainer.encoding.loading import fingerprint
from cacse_trainer.encoding.model_card import CardFacts
from cacse_trainer.encoding.sentence_transformers import list_own_pooling, search_prompts, write_prompts
from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.evaluation.dev_sets import DevSet, as_dev_sets
from cacse_trainer.export.encoders import export
from cacse_trainer.models.own import answers_for
from cacse_trainer.settings.resources import public_name
from cacse_trainer.training.baseline import read_stated
from cacse_trainer.training.checkpoints import STATE
from cacse_trainer.training.resumable import ResumableTrainer

logger = logging.getLogger(__name__)

EXPORT = "export"
"""Of the exported folders, in the output folder."""
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Exported:
    """An export: the hash of the weights that it was made of, and its folders, known to the first process."""

    fingerprint: str
    folders: list[Path]


class PublishingTrainer(ResumableTrainer):
    """A `ResumableTrainer` of a `SentenceModel` that exports it; takes what `Trainer` takes.

    Attributes:
        query_prompt, document_prompt, max_seq_length, eval_max_seq_length: see `CacseTrainer`.
        temperature: of the loss, where the model's config does not hold it.
    """

    train_dataset: Any
    query_prompt: str
    document_prompt: str
    max_seq_length: int
    eval_max_seq_length: int
    temperature: Any = None
    _exported: Exported | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        self._hub, self._on_the_way = HfApi(), list[tuple[str, "Future[None]"]]()
        super().__init__(*args, **kwargs)

    @property
    def model_of_run(self) -> Any:
        """Who answers for the model, without what several processes or a compiler wrap around it; see `answers_for`."""
        return answers_for(self.accelerator.unwrap_model(self.model, keep_torch_compile=False))

    @property
    def config_of_run(self) -> Any:
        """Of a plain module one of nothing."""
        return self.model_of_run.config

    @property
    def sources(self) -> list[str]:
        """What to cite for the training: the model's and the trainer's own, see `bibtex_of`."""
        return list(self.config_of_run.sources)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As `ResumableTrainer`'s: the training model, to go on with or to export later.

        Beside it is written how it pools, so that sentence-transformers takes no mean of its token states (it needs
        this package imported to read it), and the prompts as an exported folder has them.
        """
        super().save_model(output_dir, _internal_call)
        if not self.args.should_save or not self.model_of_run.loads_from_folder:
            return
        folder, prompts = Path(output_dir or str(self.args.output_dir)), self._prompts
        list_own_pooling(folder, self.eval_max_seq_length)
        if prompts:
            write_prompts(folder, prompts)

    def export(
        self,
        output_dir: str | Path | None = None,
        *,
        base_model: str | Sequence[str] | None = None,
        title: str | None = None,
        data: str = "",
        license: str | None = None,
    ) -> Scores:
        """Write the trained encoder as plain folders that transformers and sentence-transformers load.

        They are what a command-line run leaves in ``export/``: each with its pooling, its prompts and a card, loaded
        again and compared with the trained model, and scored on the dev sets given at construction, beside the start.
        On several processes it is called on all of them; the first one writes.

        Args:
            output_dir: the folders are written there; default: ``export`` in the output folder. Older ones that this
                program wrote are replaced.
            base_model: folder or hub id of what training started from, or several; it is scored as its own folder
                states it. Default: what the model was loaded from, where it knows. Of a plain checkpoint the scores are
                those of the evaluation before the first step, if there was one.
            title: of the cards; default: the output folder's name.
            data: what the training text is, for the cards.
            license: licence id for the cards, such as ``mit``.

        Returns:
            The scores ×100 by which the dev sets judge, by folder and set; empty on all processes but the first.

        Raises:
            UserError: there is no plain folder that gives this model's vectors, ``base_model`` cannot be read, or the
                folder cannot be written.
            ExportError: the reloaded folder's vectors differ from the trained model's.
        """
        self.model_of_run.check_exportable()
        sets = {name or "dev": one for name, one in as_dev_sets(self.eval_dataset or {}).items()}
        starts = self.model_of_run.starts() if base_model is None else base_model
        starts = [starts] if isinstance(starts, str) else list(starts)
        pooling, scores = self._read_starts(starts, sets, asked=base_model is not None)
        temperature = self.temperature or self.model_of_run.config.to_dict().get("contrastive_temperature")
        rows = f"{len(self.train_dataset)} rows" if hasattr(self.train_dataset, "__len__") else ""
        facts = CardFacts(
            title=title or Path(str(self.args.output_dir)).resolve().name,
            what="",
            base_models=[public_name(start) for start in starts],
            **known_of(starts),
            datasets=hub_data_sets(data.split(", ")),
            start=scores,
            start_pooling=pooling,
            license=license,
            data=", ".join(filter(None, (data, rows))),
            settings=training_settings(self.args, temperature, self.max_seq_length),
            sources=self.sources,
        )
        return self.write_export(Path(output_dir or Path(str(self.args.output_dir)) / EXPORT), facts, sets)

    def write_export(self, output_dir: Path, facts: CardFacts, sets: Mapping[str, DevSet]) -> Scores:
        """`export` with the facts of the cards and the dev sets given; the first process writes."""
        # accelerate leaves its autocast around forward; what is exported and compared is the float32 model itself
        model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False, keep_torch_compile=False)
        found: Scores = {}
        if self.is_world_process_zero():
            was_training = model.training
            with user_errors(f"output_dir {output_dir} cannot be written"):
                output_dir.mkdir(parents=True, exist_ok=True)
            with alone():
                found = export(model, self.processing_class, output_dir, facts, sets, prompts=self._prompts)
            model.train(was_training)
        # on every process, so that all decide alike whether it still holds
        self._exported = Exported(fingerprint(model), [output_dir / name for name in found])
        return found

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the exported folders and their cards, which tell of these very folders: `export`, by `Trainer`'s names.

        Args:
            license: see `export`.
            model_name: the cards' title.
            finetuned_from: ``base_model`` of `export`.
            dataset: its ``data``.
            language, tags, tasks, dataset_tags, dataset_args: not taken.

        Raises:
            UserError: one of those that are not taken is given; or see `export`.
        """
        others = {"language": language, "tags": tags, "tasks": tasks}
        others |= {"dataset_tags": dataset_tags, "dataset_args": dataset_args}
        given = [name for name, value in others.items() if value is not None]
        if given:
            raise UserError(
                f"create_model_card takes no {', '.join(given)}: the card says what was measured; give license, "
                "model_name, finetuned_from or dataset"
            )
        data = dataset if isinstance(dataset, str) else ", ".join(dataset or [])
        self.export(base_model=finetuned_from, title=model_name, data=data, license=license)

    def push_to_hub(
        self,
        commit_message: str | None = None,
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **facts: Any,
    ) -> Any:
        """Push the exported folders in one commit: the main encoder to the repository's root, towers beside it.

        They are those of the last `export`, if the weights are still the same and no ``facts`` are given; else it
        is made anew. The training model is none of them; checkpoints are pushed in training, by `push_checkpoint`. Of
        a plain module, which cannot be exported, the weights and the tokenizer are pushed.

        Args:
            commit_message: default: one that names what is pushed.
            blocking: it always waits for the end of the upload.
            token: default: ``hub_token``, ``HF_TOKEN``, or the login of ``hf auth login``.
            revision: branch; default: ``hub_revision``, else main.
            private: of a new repository; default: ``hub_private_repo``.
            facts: for the cards, by `create_model_card`'s names.

        Returns:
            The commit's address; None on all processes but the first.

        Raises:
            UserError: ``hub_model_id`` is no OWNER/NAME, the token is refused, or see `export`.
            HubError: the hub cannot be reached, or the upload broke off; the folders are whole.
        """
        target = self._hub_target(private, revision, token)
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self._finish_current_push()
        first = self.is_world_process_zero()
        if first:
            prepare_repo(target)  # a refused token is known before the export
        if not self.model_of_run.loads_from_folder and not facts:
            return self._push_weights(target, commit_message)
        if facts or self._exported is None or self._exported.fingerprint != fingerprint(self.model_of_run):
            self.create_model_card(**facts)
        return push_folders(self._exported.folders, target, commit_message) if first and self._exported else None

    def _push_weights(self, target: HubTarget, message: str | None) -> str | None:
        folder = Path(str(self.args.output_dir)) / EXPORT / "weights"
        self.save_model(str(folder), _internal_call=True)
        kept = f"nothing is lost: {folder} is whole"
        return push_folders([folder], target, message, kept) if self.is_world_process_zero() else None

    def push_checkpoint(self, folder: Path) -> None:
        """Push a checkpoint in the background, as ``hub_strategy`` says; of a failure there is a warning.

        The training model lies in the repository's root, to be replaced by the exported folders when `push_to_hub` is
        called; the whole checkpoint in ``last-checkpoint``, or under its own name. One that comes while the last one
        is still on its way is left out, but with ``hub_always_push``.
        """
        args = self.args
        places = {"every_save": None, "checkpoint": "last-checkpoint", "all_checkpoints": folder.name}
        is_busy = bool(self.checkpoints_in_use())
        if args.hub_strategy == HubStrategy.END or (is_busy and not args.hub_always_push):
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        steps = args.save_strategy == SaveStrategy.STEPS
        done = f"step {self.state.global_step}" if steps else f"epoch {int(self.state.epoch or 0)}"
        message, beside = f"Training in progress, {done}", places[HubStrategy(args.hub_strategy).value]
        job = self._hub.run_as_future(push_checkpoint, folder, self._hub_target(), message, STATE, beside)
        job.add_done_callback(partial(_tell_of_failure, folder.name))
        self._on_the_way = [(name, one) for name, one in self._on_the_way if not one.done()] + [(folder.name, job)]

    def checkpoints_in_use(self) -> set[str]:
        """Those on their way to the hub."""
        return {name for name, job in self._on_the_way if not job.done()}

    def _finish_current_push(self) -> None:
        wait([job for _, job in self._on_the_way])

    def _save(self, *args: Any, **kwargs: Any) -> None:
        """As `Trainer`'s; the token is left out of the arguments that lie beside the model."""
        token, self.args.hub_token = self.args.hub_token, None
        try:
            super()._save(*args, **kwargs)
        finally:
            self.args.hub_token = token

    def _hub_target(self, private: bool | None = None, revision: str | None = None, token: str | None = None) -> Any:
        args, name = self.args, self.hub_model_id or self.args.hub_model_id or ""
        if "/" not in name:
            raise UserError("push_to_hub needs a name: give TrainingArguments(…, hub_model_id='OWNER/NAME')")
        private = args.hub_private_repo if private is None else private
        return HubTarget(name, private, revision or args.hub_revision, token or args.hub_token)

    @property
    def _prompts(self) -> dict[str, str]:
        return search_prompts(self.query_prompt, self.document_prompt)

    def _read_starts(
        self, starts: Sequence[str], sets: Mapping[str, DevSet], asked: bool
    ) -> tuple[str, dict[str, float]]:
        """How the baseline is called in the card's table, and its scores; none where nothing is known."""
        try:
            found = read_stated(starts, sets, self.args.device, bool(self.args.bf16))
        except UserError as error:
            if asked:
                raise
            found = None
            logger.warning("what training started from cannot be read (%s): the card shows no score of it", error)
        if found is not None:
            return found.pooling, found.scores
        before = {key: value for entry in self.state.log_history if entry["step"] == 0 for key, value in entry.items()}
        named = {name: f"eval_{name}_{one.metric}" for name, one in sets.items()}
        if not isinstance(self.eval_dataset, Mapping):  # a single set without a name
            named = {name: f"eval_{one.metric}" for name, one in sets.items()}
        scores = {name: before[key] for name, key in named.items() if key in before}
        return self.model_of_run.stated_pooling, scores


def _tell_of_failure(name: str, job: "Future[None]") -> None:
    error = job.exception()
    if error is not None:
        logger.warning("%s was not pushed: %s", name, error)


def training_settings(args: Any, temperature: float | None, max_seq_length: int) -> dict[str, Any]:
    """What the cards repeat of the settings of a training."""
    return {
        "learning rate": f"{args.learning_rate:g} ({args.lr_scheduler_type.value})",
        "batch": args.per_device_train_batch_size * args.world_size,
        "steps": args.max_steps if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs",
        "temperature": temperature,
        "max_seq_length": max_seq_length,
        "seed": args.seed,
        "bf16": args.bf16,
    }
