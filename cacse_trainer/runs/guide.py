"""Settings to the frozen encoders that a training run looks to: its guide, and the start that it is held to."""

import torch
from transformers import PreTrainedTokenizerBase

from cacse_trainer.data import load_sentences
from cacse_trainer.encoding.loading import Loaded, is_sentence_model, load_encoder
from cacse_trainer.encoding.sentence_transformers import read_modules, search_prompts
from cacse_trainer.errors import UserError
from cacse_trainer.settings.arguments import CacseTrainingArguments, DataArguments, ModelArguments
from cacse_trainer.settings.resources import resolve_resource
from cacse_trainer.training.guide import Guide
from cacse_trainer.training.keeping import Keeping

START = "start"
"""Names a frozen copy of the start where an encoder is asked for."""


def load_frozen(name: str, settings: ModelArguments, args: CacseTrainingArguments) -> Loaded:
    """An encoder, read as its folder states; the start, where it states nothing, by the pooling of the run.

    Raises:
        UserError: it cannot be read.
    """
    trusted = settings.trust_remote_code
    with torch.random.fork_rng(devices=[]):  # weights that a checkpoint lacks are drawn: not from the run's seed
        if name != START:
            return load_encoder(name, device=args.device, trust_remote_code=trusted)
        path = resolve_resource(str(settings.model))
        states_nothing = not is_sentence_model(path) and read_modules(path).pooling is None
        return load_encoder(
            path,
            pooling=settings.pooling if states_nothing else None,
            device=args.device,
            adapter=settings.adapter,
            trust_remote_code=trusted,
            prompt_template=settings.prompt_template,
            append_eos=settings.append_eos,
            bidirectional_start_layer=settings.bidirectional_start_layer,
        )


def build_guide(settings: ModelArguments, data_args: DataArguments, args: CacseTrainingArguments) -> Guide | None:
    """The guide that the settings ask for; None: they ask for none.

    Raises:
        UserError: it cannot be read, or its margin is out of range.
    """
    if settings.guide is None:
        return None
    loaded = load_frozen(settings.guide, settings, args)
    if settings.guide == START:  # read behind the prompts of the run, whoever stated them
        loaded.stated.prompts = search_prompts(data_args.query_prompt or "", data_args.document_prompt or "")
    margin = settings.guide_margin, settings.guide_margin_type
    return Guide(loaded, data_args.max_seq_length, *margin, bf16=bool(args.bf16))


def build_keeping(
    settings: ModelArguments,
    data_args: DataArguments,
    args: CacseTrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
) -> Keeping | None:
    """The start and the general sentences of ``keep_weight``; None: it is 0.

    Raises:
        UserError: there is no keep_file, or it cannot be read.
    """
    if settings.keep_weight == 0:
        return None
    if data_args.keep_file is None:
        raise UserError("keep_weight holds cosines on general sentences: give them with keep_file")
    sentences = load_sentences(resolve_resource(data_args.keep_file))
    start = load_frozen(START, settings, args)
    return Keeping(start, sentences, tokenizer, data_args.max_seq_length, bf16=bool(args.bf16))
