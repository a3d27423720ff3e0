"""Models of every kind with random weights, their trainers, and generated text: nothing is read from a network."""

import math
import random
from pathlib import Path
from typing import Any

import torch
from common import MINILM
from datasets import Dataset
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertModel, LlamaConfig, LlamaModel, PrinterCallback

from cacse_trainer import (
    CacseBertModel,
    CacseTrainer,
    DiffcseModel,
    EnsembleModel,
    SentenceEmbeddingModel,
    TncseModel,
)
from cacse_trainer.models.adapters import LoraSettings
from cacse_trainer.models.modeling_student import StudentModel
from cacse_trainer.settings.arguments import CacseTrainingArguments
from cacse_trainer.settings.resources import resolve_resource
from cacse_trainer.training.distillation import DistillationTrainer

SENTENCES = 200_000
OTHER = "other"
"""The tests' device that is not the CPU, on any machine (tests/devices)."""
ARGUMENTS = ("mini_batch_size", "length_buckets", "save_steps", "save_total_limit")
"""What `Check.trainer` takes of the training's arguments, as they are."""


class Check:
    """Device, sizes and folder of one call.

    Args:
        device: its kind.
        size: ``base``; ``toy``: small models and batches; ``thin``: as many layers as ``base``, 64 wide.
        folder: for the models' and the trainings' files.
        seconds: that there are for it.
    """

    def __init__(self, device: str, size: str, folder: Path, seconds: float = math.inf):
        self.seconds = seconds
        self.device, self.folder, self.toy, self.thin = device, folder, size == "toy", size == "thin"
        self.bf16 = device != "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(resolve_resource(MINILM))
        self.warm, self.steps = (1, 2) if self.toy else (5, 30)

    def sentences(self, count: int) -> list[str]:
        """Lines of 4 to 60 words of the vocabulary, 25 tokens on average, as Wikipedia's."""
        drawn = random.Random(0)
        words = sorted(word for word in self.tokenizer.vocab if word.isalpha() and len(word) > 2)
        lengths = (min(60, max(4, round(drawn.lognormvariate(3.0, 0.5)))) for _ in range(count))
        return [" ".join(drawn.choices(words, k=length)) for length in lengths]

    def encoder(self, small: bool | None = None, dropout: float = 0.1, seed: int = 0) -> str:
        """A folder with a BERT of random weights; small: 4 layers of 64."""
        small = self.toy if small is None else small
        folder = self.folder / f"bert-{small}-{dropout}-{seed}"
        if not folder.exists():
            torch.manual_seed(seed)
            BertModel(self._config(small, dropout)).save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        return str(folder)

    def generator(self, small: bool | None = None) -> str:
        """A folder with a masked language model of random weights and half the layers."""
        small = self.toy if small is None else small
        folder = self.folder / f"generator-{small}"
        if not folder.exists():
            config = self._config(small, 0.0)
            config.num_hidden_layers //= 2
            torch.manual_seed(9)
            BertForMaskedLM(config).save_pretrained(folder)
        return str(folder)

    def decoder(self, small: bool | None = None) -> str:
        """A folder with a LLaMA of random weights: 1.1 billion, or 4 layers of 64."""
        small = self.toy if small is None else small
        folder = self.folder / f"llama-{small}"
        if not folder.exists():
            sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
            if not small:
                sizes = dict(zip(sizes, (64, 128, 22, 4) if self.thin else (2048, 5632, 22, 32), strict=True))
            torch.manual_seed(0)
            with torch.device(self.device):
                model = LlamaModel(
                    LlamaConfig(vocab_size=self.tokenizer.vocab_size, **sizes, num_key_value_heads=4)
                ).bfloat16()
            (model.float() if small else model).save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        return str(folder)

    def _config(self, small: bool, dropout: float) -> BertConfig:
        sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
        more = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        if self.thin:
            sizes["num_hidden_layers"] = 12
        return BertConfig(vocab_size=self.tokenizer.vocab_size, **(sizes if small or self.thin else {}), **more)

    def model(self, kind: str, small: bool | None = None, dropout: float | None = None) -> Any:
        """A model of the kind, ready to be trained."""
        drops = 0.1 if dropout is None else dropout
        path = self.encoder(small, drops) if kind != "decoder" else self.decoder(small)
        other = self.encoder(small, drops, seed=1) if kind in ("cacse", "tncse") else ""
        torch.manual_seed(0)
        if kind == "simcse":
            return SentenceEmbeddingModel.from_encoder(path, pooling="cls_before_pooler")
        if kind == "cacse":
            layers = BertConfig.from_pretrained(path).num_hidden_layers
            start = {"cascade_start_layer": layers * 7 // 12, "constraint_layers": layers * 4 // 12}
            still = {} if dropout is None else {"cascade_dropout": dropout, "constraint_dropout": dropout}
            return CacseBertModel.from_towers(path, other, path, **start, **still)
        if kind == "tncse":
            return TncseModel.from_towers(path, other)
        if kind == "diffcse":
            return DiffcseModel.from_pretrained_parts(path, self.generator(small))
        if kind == "decoder":
            lora = LoraSettings(8, 32, drops, ["q_proj", "v_proj"])
            dtype = torch.float32 if small or self.toy else torch.bfloat16
            settings = {"pooling": "last_token", "lora": lora, "dtype": dtype}
            return SentenceEmbeddingModel.from_encoder(path, **settings)
        raise ValueError(kind)

    def trainer(self, kind: str, batch: int, steps: int, *, small: bool | None = None, **more: Any) -> CacseTrainer:
        """With the defaults of `cacse-trainer train`."""
        given = {name: more.pop(name) for name in ("resume_from_checkpoint",) if name in more}
        args = CacseTrainingArguments(
            str(self.folder / more.pop("name", kind)),
            per_device_train_batch_size=batch,
            max_steps=steps,
            learning_rate=1e-6,
            report_to=[],
            disable_tqdm=True,
            use_cpu=self.device == "cpu",
            bf16=more.pop("bf16", "true" if self.device == OTHER else "auto"),  # of that one auto knows nothing
            save_strategy=more.pop("save_strategy", "no"),
            eval_strategy="no",
            logging_steps=1_000,
            **given,
            **{name: more.pop(name) for name in ARGUMENTS if name in more},
        )
        dropout = more.pop("dropout", None)
        about = {"args": args, "processing_class": self.tokenizer, **more}
        about["train_dataset"] = Dataset.from_dict({"text": self.sentences(min(batch * steps, SENTENCES))})
        if kind == "distill":
            towers = [BertModel.from_pretrained(self.encoder(small, seed=seed)) for seed in (0, 1)]
            student = StudentModel.from_encoder(self.encoder(small))
            trainer = DistillationTrainer(student, EnsembleModel.from_encoders(towers), **about)
        else:
            trainer = CacseTrainer(self.model(kind, small, dropout), **about)
        trainer.remove_callback(PrinterCallback)
        return trainer
