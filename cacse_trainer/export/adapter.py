"""The adapter of a trained decoder as a folder to share: peft reads it into its base, this package all that it says.

Each weight stands in it under two names, those of the bare encoder and those of the causal language model above it:
peft looks for one kind or the other, by the class that it is given, and would leave out with a warning what bears other
names. Beside it lie the tokenizer with its prompt and ``config.json``, which states pooling, prompt, EOS and the layer
from which on the decoder sees both directions.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from safetensors.torch import load_file, save_file

from cacse_trainer.encoding.embedder import Embedder
from cacse_trainer.encoding.lineage import known_of
from cacse_trainer.encoding.loading import Loaded, is_sentence_model, load_encoder
from cacse_trainer.encoding.model_card import LOCAL_PATH
from cacse_trainer.encoding.saving import PROBES, check_same, clean_tokenizer
from cacse_trainer.encoding.sentence_transformers import LENGTH, MODULES, PROMPTS
from cacse_trainer.errors import UserError
from cacse_trainer.files import writing_folder
from cacse_trainer.models.adapters import CONFIG_FILE, PREFIX, STATE, base_model_of
from cacse_trainer.models.citations import bibtex_of
from cacse_trainer.settings.resources import public_name

logger = logging.getLogger(__name__)

NAME = "adapter"
CARD = """---
{{ card_data }}
---

# {{ title }}

A LoRA adapter of `{{ base }}` that makes it a sentence encoder. It was trained by cacse-trainer.

| setting | value |
|---|---|
| base model | `{{ base }}` |
| pooling | {{ pooling }} |
| prompt around every sentence | {{ prompt }} |
| EOS at the end | {{ eos }} |
| layers that see both directions | {{ directions }} |

```python
from cacse_trainer import SentenceEncoder  # base, prompt, pooling and directions as above

vectors = SentenceEncoder("{{ path }}").encode(["A man is playing a guitar."])
```

With peft alone it is active in `AutoModelForCausalLM` and in `AutoModel`; the tokenizer of this folder puts the prompt,
the pooling is to be done by hand{{ by_hand }}:

```python
from peft import PeftModel
from transformers import AutoModel

model = PeftModel.from_pretrained(AutoModel.from_pretrained("{{ base }}"), "{{ path }}")
```

{% if citation -%}
## Citation

```bibtex
{{ citation }}
```
{% endif -%}
"""
"""Filled in by huggingface_hub's `ModelCard`."""


def export_adapter(run: Path, output_dir: Path | None = None, license: str | None = None, **loading: Any) -> Path:
    """Write the adapter that a run has trained as a folder to share, loaded again and compared.

    Args:
        run: folder of a finished run or a checkpoint.
        output_dir: default: ``export/adapter`` in it.
        license: for the card.
        loading: more of `load_encoder`'s arguments.

    Returns:
        The folder.

    Raises:
        UserError: there is no adapter, or its base cannot be read.
        ExportError: the folder gives other vectors.
    """
    if not ((run / CONFIG_FILE).is_file() and is_sentence_model(str(run))):
        raise UserError(f"--folder {run}: holds no adapter that was trained here; train with lora_r")
    output_dir = output_dir or run / "export" / NAME
    trained = load_encoder(str(run), **loading)
    with writing_folder(output_dir) as staged:
        trained.model.save_pretrained(staged)
        clean_tokenizer(trained.tokenizer).save_pretrained(staged)
        for name in (MODULES, LENGTH, PROMPTS):
            if (run / name).is_file():
                shutil.copyfile(run / name, staged / name)
        _name_twice(staged / STATE, trained.model.encoder.base_model_prefix)
        (staged / "README.md").write_text(_card(run, trained, license), encoding="utf-8")
        again = load_encoder(str(staged), **loading)
        difference = check_same(_vectors(trained), _vectors(again), output_dir)
    logger.info("exported %s (largest difference from the trained vectors %.1e)", output_dir, difference)
    return output_dir


def _vectors(loaded: Loaded) -> Any:
    limit = min(loaded.max_seq_length, loaded.tokenizer.model_max_length)
    return Embedder(loaded.embed, loaded.tokenizer, limit, loaded.model.device).vectors(PROBES)


def _name_twice(path: Path, whole_model: str) -> None:
    """Add to an adapter's file the names that its weights have in the causal language model."""
    state = load_file(path)
    inner = {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
    twins = {f"{PREFIX}{whole_model}.{name}": tensor.clone() for name, tensor in inner.items()}
    save_file({**state, **twins}, path, metadata={"format": "pt"})


def _card(run: Path, trained: Loaded, license: str | None) -> str:
    config, base = trained.model.config, str(base_model_of(str(run)))
    start, known = config.bidirectional_start_layer, known_of([base])
    data = ModelCardData(
        language=known["languages"] or None,
        license=license,
        library_name="peft",
        pipeline_tag="sentence-similarity",
        tags=["sentence-similarity", "feature-extraction", "peft", "cacse-trainer"],
        base_model=known["base_ids"] or None,
    )
    card = ModelCard.from_template(
        data,
        template_str=CARD,
        base=public_name(base),
        title=run.resolve().name,
        path=LOCAL_PATH,
        pooling=trained.pooling,
        prompt="none" if config.prompt_template is None else f"`{config.prompt_template}`",
        eos="yes" if config.append_eos else "no",
        directions="none" if start is None else f"from {start} on (from 0)",
        citation=bibtex_of(config.sources),
        by_hand="" if start is None else ", and its layers are causal there, which gives other vectors",
    )
    return f"{card}\n"
