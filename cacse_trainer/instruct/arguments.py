"""The settings of `cacse-trainer instruct`: which stages, which pairs and scores, which model, which tasks."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from cacse_trainer.errors import UserError
from cacse_trainer.settings import setting
from cacse_trainer.settings.arguments import CommonTrainingArguments

STAGES = ("data", "train", "merge", "evaluate")
SCORES = ("encoder", "gold")
PROMPT_FORMATS = ("alpaca", "chat")
DTYPES = ("auto", "float32", "bfloat16", "float16")

INSTRUCTION = (
    "Rate how similar the two sentences are in meaning, from {low} (unrelated) to {high} (equivalent). "
    "Answer with the number only."
)


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises `UserError` unless ``value`` is one of the choices."""
    if value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


@dataclass
class StageArguments:
    """What is done."""

    _argument_group_name: ClassVar[str] = "stages"

    stages: list[str] = setting(
        list(STAGES), "The stages to run: data, train, merge, evaluate. Finished ones are skipped."
    )
    plan: bool = setting(False, "Say what would be done, and do nothing.")
    processes: int = setting(1, "Processes of the training; several go through torchrun.")
    run_stage: str | None = setting(None, "Run this one stage here, without the record: how each stage is started.")

    def __post_init__(self) -> None:
        for name in [*self.stages, *([self.run_stage] if self.run_stage is not None else [])]:
            one_of("stages", name, STAGES)
        if self.processes < 1:
            raise UserError(f"processes must be a number from 1, got {self.processes}")


@dataclass
class InstructDataArguments:
    """The data set: which pairs, whose scores, how they are written."""

    _argument_group_name: ClassVar[str] = "data set"

    pairs: list[str] = setting(
        ["stsb", "sickr"],
        "Pairs: stsb and sickr (their train part for training, their dev part for validation; files in "
        "data_dir), or name=path, any file of sentence1, sentence2, score.",
    )
    data_dir: str = setting("SentEval/data", "SentEval's data folder, for stsb and sickr.")
    validation_share: float = setting(
        0.1, "Share of the pairs of a name=path file that is held out, drawn by the seed."
    )
    gold_range: list[float] = setting([0.0, 5.0], "Lowest and highest gold score in name=path files.")
    scores: str = setting("encoder", "Whose scores the answers are: encoder, or gold for comparison.")
    encoder: str | None = setting(
        None, "The encoder: a folder (CACSE's export/ensemble), hub id or package:NAME/FOLDER."
    )
    encoder_pooling: str | None = setting(None, "Its pooling. Default: what it states.")
    encoder_adapter: str | None = setting(None, "Folder or hub id of a PEFT adapter for it.")
    cosine_range: list[float] = setting(
        [0.0, 1.0], "The cosines that become the lowest and the highest score; beyond them it is cut off."
    )
    score_range: list[float] = setting([0.0, 5.0], "Lowest and highest score in the answers.")
    score_decimals: int = setting(1, "Decimals of a score in the answers.")
    instruction: str = setting(INSTRUCTION, "Every record's instruction; {low} and {high} stand for score_range.")
    input_format: str = setting("Sentence 1: {sentence1}\nSentence 2: {sentence2}", "A record's input.")
    output_format: str = setting("{score}", "A record's output, the answer.")

    def __post_init__(self) -> None:
        one_of("scores", self.scores, SCORES)
        for name in ("gold_range", "cosine_range", "score_range"):
            found = getattr(self, name)
            if len(found) != 2 or not found[0] < found[1]:
                raise UserError(f"{name} must be two numbers, the lowest and the highest, got {found}")
        if not 0 <= self.validation_share < 1:
            raise UserError(f"validation_share must be from 0 to below 1, got {self.validation_share}")
        if not 0 <= self.score_decimals <= 6:
            raise UserError(f"score_decimals must be from 0 to 6, got {self.score_decimals}")


@dataclass
class InstructModelArguments:
    """The causal language model, its prompts, its adapter."""

    _argument_group_name: ClassVar[str] = "model"

    model: str | None = setting(None, "The causal language model: a folder, hub id or package:NAME/FOLDER.")
    prompt_format: str = setting("alpaca", "alpaca (Stanford Alpaca's text) or chat (the tokenizer's chat template).")
    max_seq_length: int = setting(512, "Longest record in tokens; longer ones are left out, never cut.")
    dtype: str = setting(
        "float32", "Of the frozen weights in training: auto (the checkpoint's), float32, bfloat16 or float16."
    )
    merged_dtype: str = setting("auto", "Of the merged model. auto: the checkpoint's.")
    lora_r: int = setting(8, "LoRA: rank.")
    lora_alpha: int = setting(16, "LoRA: scale; updates are multiplied by alpha/r.")
    lora_dropout: float = setting(0.05, "LoRA: dropout of the adapter's input.")
    lora_target_modules: list[str] | None = setting(
        None, "LoRA: names of the linear layers. Default: peft's choice for the model."
    )
    attn_implementation: str | None = setting(None, "sdpa, eager or flash_attention_2. Default: transformers' choice.")
    trust_remote_code: bool = setting(False, "Run the model code that comes with the checkpoint.")

    def __post_init__(self) -> None:
        one_of("prompt_format", self.prompt_format, PROMPT_FORMATS)
        one_of("dtype", self.dtype, DTYPES)
        one_of("merged_dtype", self.merged_dtype, DTYPES)
        if self.lora_r < 1 or self.max_seq_length < 1:
            raise UserError(f"lora_r and max_seq_length must be from 1, got {self.lora_r} and {self.max_seq_length}")


@dataclass
class InstructEvaluationArguments:
    """What lm-evaluation-harness measures, of the base and of the tuned model alike."""

    _argument_group_name: ClassVar[str] = "evaluation"

    tasks: list[str] = setting(
        [], "Tasks or groups of lm-evaluation-harness, and instruct_scores: the validation records' answers."
    )
    include_path: str | None = setting(None, "Folder with task files of your own.")
    num_fewshot: int | None = setting(None, "Examples in the prompt. Default: the tasks' own.")
    eval_limit: int | None = setting(None, "Only so many examples a task, for a trial.")
    lm_eval_batch_size: str = setting("8", "Requests a batch, or auto.")
    lm_eval_device: str | None = setting(None, "cpu, cuda, cuda:1, …; default: a GPU where there is one.")
    eval_chat_template: bool = setting(
        False, "Wrap the tasks' prompts into the chat template (instruct_scores has its own)."
    )


class InstructSettings(NamedTuple):
    """All settings of the command, in the order of its groups of flags."""

    stages: StageArguments
    data: InstructDataArguments
    model: InstructModelArguments
    evaluation: InstructEvaluationArguments
    training: CommonTrainingArguments
