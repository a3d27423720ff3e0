"""`SentenceEncoder`: sentences to vectors, similarities and search, with any encoder."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from cacse_trainer.compute.half import use_half
from cacse_trainer.encoding import computing
from cacse_trainer.encoding.base import BaseEncoder
from cacse_trainer.encoding.hub import HubTarget, prepare_repo, push_folders
from cacse_trainer.encoding.loading import default_device, fingerprint, load_encoder
from cacse_trainer.encoding.saving import save_encoder
from cacse_trainer.encoding.sentence_transformers import Modules
from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.models.prompting import prepare_tokenizer, prompt_of
from cacse_trainer.models.tokenizer_bundle import tokenizers_of

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


class SentenceEncoder(BaseEncoder):
    """Any encoder: a trained checkpoint, an exported folder, a transformers or sentence-transformers model.

    Args:
        path: folder, hub id or ``package:NAME/FOLDER``; None with an adapter is the base model that it names.
        pooling: cls, cls_before_pooler, cls_with_mlp, mean, weighted_mean, last_token, avg_top2, avg_first_last or max,
            see `CHOICES`; default: what the folder states, or what a released model of its name is known by
            (`released`). A guess is logged.
        device: default: a GPU where there is one.
        adapter: folder or hub id of a PEFT adapter.
        dtype: ``torch.bfloat16`` (or ``"bf16"``) computes in it: the linear layers' weights are kept in bfloat16, norms
            and sums stay in float32 (autocast). The vectors are float32 all the same.
        compute: the same by another name, ``float32`` or ``bf16``; or ``int8``, on a CPU: products of whole numbers
            (`compute.int8`); or ``auto``: the fastest of them that loses under 0.1 point on ``compute_dev``, measured
            when the encoder is loaded, and told.
        compute_dev: a file of graded pairs for ``auto``; default: the shipped sample.
        max_seq_length: default: what the folder states, else the longest that the model takes.
        tokens_per_batch: padded tokens a batch; default: by kind of device.
        trust_remote_code: run the model code that comes with the checkpoint.
        truncate_dim: keep so many of the vectors' first dimensions (of models trained for it); default: all.
        prompt_template, append_eos, bidirectional_start_layer: of a plain decoder, see `load_encoder`; a checkpoint
            or an exported folder knows its own.

    Raises:
        UserError: see `load_encoder`; or an unknown dtype or compute, both of them, or int8 where it does not run.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        pooling: str | None = None,
        device: torch.device | str | None = None,
        adapter: str | None = None,
        *,
        dtype: torch.dtype | str = torch.float32,
        compute: str | None = None,
        compute_dev: str | os.PathLike[str] | None = None,
        max_seq_length: int | None = None,
        tokens_per_batch: int | None = None,
        trust_remote_code: bool = False,
        truncate_dim: int | None = None,
        prompt_template: str | None = None,
        append_eos: bool = False,
        bidirectional_start_layer: int | None = None,
    ):
        super().__init__(locals())
        if isinstance(dtype, str):
            if dtype not in DTYPES:
                raise UserError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
            dtype = DTYPES[dtype]
        if compute is not None:
            computing.check_compute(compute)
            if dtype != torch.float32:
                raise UserError(f"compute {compute} and dtype {dtype}: two names of one thing; give one of them")
            if compute == computing.AUTO:
                kinds = {**self._given, "device": device, "compute_dev": None}
                on_cpu = (torch.device(device) if device is not None else default_device()).type == "cpu"
                compute = computing.choose_compute(
                    str(path or adapter),
                    lambda kind: SentenceEncoder(**{**kinds, "compute": kind}),
                    compute_dev,
                    on_cpu,
                )
                self._given["compute"] = compute  # for processes of its own
            dtype = computing.DTYPES[compute]
        loaded = load_encoder(
            str(path) if path is not None else None,
            pooling=pooling,
            device=device,
            adapter=adapter,
            max_seq_length=max_seq_length,
            trust_remote_code=trust_remote_code,
            prompt_template=prompt_template,
            append_eos=append_eos,
            bidirectional_start_layer=bidirectional_start_layer,
        )
        self.name, self.pooling, self.pooling_guessed = loaded.name, loaded.pooling, loaded.guessed
        self.model, self.tokenizer, self.normalizes = loaded.model, loaded.tokenizer, loaded.stated.normalizes
        self._max_seq_length, self._longest = loaded.max_seq_length, loaded.longest
        self.tokens_per_batch, self.truncate_dim = tokens_per_batch, truncate_dim
        self.dtype, self.adapter = dtype, adapter
        self._drawn = loaded.drawn
        self._bidirectional_start_layer = loaded.bidirectional_start_layer
        self._plain_tokenizer = loaded.plain_tokenizer
        self._fingerprint: str | None = None
        self.compute = compute if compute == computing.INT8 else str(dtype).removeprefix("torch.")
        if self.compute == computing.INT8:
            computing.set_int8(self.name, self.model, self.device)
        if self.dtype != torch.float32:  # autocast alone would cast the weights anew in every batch
            self._fingerprint = fingerprint(self.model, self._drawn)  # the same in float32 and in bfloat16
            use_half(self.model, self.dtype)
        self._embed, self._prepare = loaded.embed, loaded.stated.prepare
        self._take_prompts(loaded.stated)

    def set_prompt(self, prompt: str | None = None) -> None:
        """Put a prompt around every sentence from now on, as AnglE's models are told.

        Args:
            prompt: with ``{text}`` once; None: no prompt.

        Raises:
            UserError: the template is none, or the folder's own tokenizer carries another prompt.
        """
        if self._plain_tokenizer is None or len(tokenizers_of(self._plain_tokenizer)) > 1:
            raise UserError(f"model {self.name}: has no single tokenizer to put a prompt in; give encode a prompt")
        with user_errors(f"model {self.name}"):
            eos = prompt_of(self.tokenizer)[1]
            self.tokenizer = prepare_tokenizer(self._plain_tokenizer, prompt, eos)
        self._given["prompt_template"], self._given["append_eos"] = prompt, eos
        self.close()  # processes with the earlier one

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], *args: Any, **settings: Any) -> "SentenceEncoder":
        """``SentenceEncoder(name, …)``, by the name that transformers has for it."""
        return cls(name, *args, **settings)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write what is loaded as a folder that sentence-transformers and transformers read by themselves.

        It holds the weights (an adapter merged), the pooling and the layers above it, the length limit, the prompts and
        ``truncate_dim``. It is loaded again, and its vectors compared with this encoder's, before it gets its name; an
        older folder that this program wrote is replaced.

        Args:
            folder: need not be there.

        Raises:
            UserError: the encoder computes in bf16, or sentence-transformers has no form for it (poolings that average
                layers, encoders with tokenizers of their own); or the folder cannot be written.
            ExportError: the reloaded vectors differ.
        """
        save_encoder(self, Path(folder))

    def push_to_hub(
        self,
        repo_id: str,
        token: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Push the folder that `save_pretrained` writes; returns the commit's address.

        Args:
            repo_id: ``OWNER/NAME``; made when missing.
            token: default: ``HF_TOKEN``, or the login of ``hf auth login``.
            private: of a new repository; default: the owner's.
            revision: branch, made when missing; default: main.
            commit_message: default: one that names the encoder.

        Raises:
            UserError: the token is refused, the name is none, or see `save_pretrained`.
            HubError: the hub cannot be reached, or the upload broke off: it has what it had before.
        """
        target = HubTarget(repo_id, private, revision, token)
        prepare_repo(target)
        with TemporaryDirectory() as place:
            folder = Path(place) / (Path(self.name).name or "encoder")
            self.save_pretrained(folder)
            return push_folders([folder], target, commit_message, again="push it again")

    @property
    def stated(self) -> Modules:
        """What the folder says to sentence-transformers."""
        return self._stated

    @property
    def layers_above(self) -> list[nn.Module]:
        """The layers that the folder puts above the pooling, but for a last scaling to length 1."""
        return self._stated.above

    @property
    def bidirectional_start_layer(self) -> int | None:
        """From which layer on a plain decoder was made to see both directions."""
        return self._bidirectional_start_layer

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def to(self, device: torch.device | str) -> "SentenceEncoder":
        """Move the model; in int8 it stays on the CPU, and another device is refused."""
        if torch.device(device) != self.device:
            if self.compute == computing.INT8:
                raise UserError(f"model {self.name}: computes in int8, on the CPU alone; load it anew for {device}")
            for module in (self.model, *self.layers_above):
                module.to(device)
        return self

    def cuda(self) -> "SentenceEncoder":
        """Move the model to the GPU, as a module of torch."""
        return self.to("cuda")

    def cpu(self) -> "SentenceEncoder":
        """Move the model to the CPU, as a module of torch."""
        return self.to("cpu")

    def eval(self) -> "SentenceEncoder":
        """Nothing: an encoder always is in eval mode."""
        return self

    def fingerprint(self) -> str:
        """A hash of the weights; of those in float32, before they were cast to the dtype."""
        return self._fingerprint or fingerprint(self.model, self._drawn)

    def settings(self) -> dict[str, Any]:
        """Length limit, precision and adapter, and a decoder's prompt and directions."""
        found = {"max_seq_length": self.max_seq_length, "dtype": self.compute, "adapter": self.adapter}
        template, eos = prompt_of(self.tokenizer)
        more = {
            "prompt_template": template,
            "append_eos": eos,
            "bidirectional_start_layer": self.bidirectional_start_layer,
            "truncate_dim": self.truncate_dim,
        }
        return {**found, **{name: value for name, value in more.items() if value not in (None, False)}}
