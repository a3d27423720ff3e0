"""The README.md of an exported folder: what it is, how to load it, how it was made, what it scored."""

import math
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from cacse_trainer.encoding.lineage import HUB_ID
from cacse_trainer.models.base import Export
from cacse_trainer.models.citations import bibtex_of
from cacse_trainer.version import __version__

CARD = """---
{{ card_data }}
---

# {{ title }}

{{ what }}

## Use

```python
{{ example }}
```

Pooling: **{{ pooling }}**{{ pooling_note }}. Vectors are not normalised; compare them by cosine.

## Scores

Measured on this very folder, {{ measure }} ×100.

{{ scores }}

## Training

{{ training }}

Written with {{ versions }}.
{%- if citation %}

## Citation

```bibtex
{{ citation }}
```
{%- endif %}
"""
"""Filled in by huggingface_hub's `ModelCard`."""

WIDGETS = {
    "en": ("A man is playing a guitar.", ["Someone plays an instrument.", "A dog runs in the park."]),
    "zh": ("一个男人在弹吉他。", ["有人在演奏乐器。", "一只狗在公园里跑。"]),
}
"""A sentence and others to compare it with on the model's page, by language."""

SPEARMAN = "spearman"
MEASURES = {
    SPEARMAN: ("ρ", "Spearman's ρ of the cosine", "semantic-similarity", "spearman_cosine"),
    "ndcg@10": ("nDCG@10", "nDCG@10 of the search by cosine", "information-retrieval", "cosine_ndcg@10"),
}
"""By metric: short, in words, and the task and metric of a model index."""

PACKAGES = ("transformers", "torch", "datasets")
"""Their versions stand in a card."""

LOCAL_PATH = "path/to/this/folder"
"""Stands in a card for the folder; pushed, the repository's name takes its place."""

PLAIN_USAGE = """from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{path}")
vectors = model.encode(["A man is playing a guitar.", "Someone plays an instrument."])"""

# The ensemble is a model class of this package, which the import registers with AutoModel.
ENSEMBLE_USAGE = "import cacse_trainer  # registers the model class\n" + PLAIN_USAGE

# An ensemble that is more than a sum at each token brings its own sentence-transformers module.
MODULE_USAGE = """from sentence_transformers import SentenceTransformer

# The folder's own module (ensemble_module.py) tokenises for each encoder and sums their vectors.
model = SentenceTransformer("{path}", trust_remote_code=True)
vectors = model.encode(["A man is playing a guitar.", "Someone plays an instrument."])

# without running the folder's code, with this package:
from cacse_trainer import SentenceEncoder

vectors = SentenceEncoder("{path}").encode(["A man is playing a guitar."])"""


# A model class of one's own that pools by itself, without a form that sentence-transformers knows.
OWN_USAGE = """import {module}  # registers the model class
from cacse_trainer import SentenceEncoder

vectors = SentenceEncoder("{path}").encode(["A man is playing a guitar."])"""


@dataclass
class CardFacts:
    """What a card says.

    Args:
        title: heading.
        what: one sentence.
        pooling: how tokens become a vector.
        base_models: hub ids or folder names of what training started from.
        base_ids, languages: hub ids of it and its languages, where they are known (see `lineage.known_of`).
        datasets: the hub's data sets among the training texts.
        scores: ×100 by set.
        metrics: what they are, by set: ``spearman`` (also where none is named) or ``ndcg@10``.
        start: the same of what training started from, as its own folder states it.
        start_pooling: how that one is read.
        settings: training settings worth repeating.
        sources: what to cite for the training, see `bibtex_of`.
        data: the training text, in words.
        usage: Python that loads the folder, see `usage_of`.
        license: licence id, when known.
    """

    title: str
    what: str
    pooling: str = "cls"
    base_models: list[str] = field(default_factory=list)
    base_ids: list[str] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)
    start: dict[str, float] = field(default_factory=dict)
    start_pooling: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    data: str = ""
    usage: str = ""
    license: str | None = None

    def metric_of(self, name: str) -> str:
        """What a set's score is, a key of `MEASURES`."""
        return self.metrics.get(name, SPEARMAN)


RECORDED = ("base_models", "base_ids", "languages", "datasets", "start", "start_pooling", "data", "settings", "sources")
"""Facts that a run's report keeps for the cards of later exports of its checkpoints."""


def score_table(facts: CardFacts) -> str:
    """The scores by set, beside the start's where they are known."""
    if not facts.scores:
        return "No dev set was given."
    kinds = _kinds(facts)
    head = f"{MEASURES[kinds[0]][0]} ×100" if len(kinds) == 1 else "×100"
    scores = {name: f"{score:.2f}" for name, score in facts.scores.items()}
    labels = {name: name if len(kinds) == 1 else f"{name} ({MEASURES[facts.metric_of(name)][0]})" for name in scores}
    if not facts.start:
        return table({labels[name]: score for name, score in scores.items()}, "set", head)
    beside = {name: f"{facts.start[name]:.2f}" if name in facts.start else "–" for name in scores}
    cells = {labels[name]: f"{score} | {beside[name]}" for name, score in scores.items()}
    return table(cells, "set", head, f"the start as it is, {facts.start_pooling} pooling")


def _kinds(facts: CardFacts) -> list[str]:
    """The metrics that the scores are of, or would be."""
    return list(dict.fromkeys(map(facts.metric_of, facts.scores))) or [SPEARMAN]


def table(rows: dict[str, Any], *head: str) -> str:
    """A Markdown table: a name and a cell a row."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(lines)


def usage_of(encoder: Export, remote_code: bool) -> str:
    """What loads an exported folder; ``remote_code``: the model's code comes with it."""
    usage = MODULE_USAGE if encoder.own_module else ENSEMBLE_USAGE if encoder.needs_package else PLAIN_USAGE
    if encoder.pooling is None:
        usage = OWN_USAGE
    usage = usage.format(path=LOCAL_PATH, module=type(encoder.model).__module__)
    if remote_code:
        usage = usage.replace(f'"{LOCAL_PATH}")', f'"{LOCAL_PATH}", trust_remote_code=True)  # runs its own code')
    return usage


def render_card(facts: CardFacts) -> str:
    """The text of README.md with its metadata, by huggingface_hub's card classes; what is not known is left out."""
    measured = [name for name, score in facts.scores.items() if math.isfinite(score)]
    widget = next((WIDGETS[code] for code in facts.languages if code in WIDGETS), None)
    more: Any = {} if widget is None else {"widget": [{"source_sentence": widget[0], "sentences": widget[1]}]}
    data = ModelCardData(
        model_name=facts.title if measured else None,
        language=facts.languages or None,
        license=facts.license,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "sentence-similarity", "feature-extraction", "cacse-trainer"],
        base_model=facts.base_ids or [name for name in facts.base_models if HUB_ID.fullmatch(name)] or None,
        datasets=facts.datasets or None,
        metrics=list(dict.fromkeys(MEASURES[facts.metric_of(name)][3] for name in measured)) or None,
        eval_results=[result for name in measured for result in _results(facts, name)] or None,
        **more,
    )
    training = {"started from": ", ".join(facts.base_models), "training text": facts.data, **facts.settings}
    card = ModelCard.from_template(
        data,
        template_str=CARD,
        title=facts.title,
        what=facts.what,
        example=facts.usage,
        pooling=facts.pooling,
        pooling_note=" (the vector of the first token, no dense layer)" if facts.pooling == "cls" else "",
        measure=", ".join(MEASURES[kind][1] for kind in _kinds(facts)),
        scores=score_table(facts),
        training=table(
            {name: str(value).replace("|", "/") for name, value in training.items() if value not in ("", None)},
            *("setting", "value"),
        ),
        citation=bibtex_of(facts.sources),
        versions=", ".join([f"cacse-trainer {__version__}", *(f"{name} {version(name)}" for name in PACKAGES)]),
    )
    return f"{card}\n"


def _results(facts: CardFacts, name: str) -> list[EvalResult]:
    """A set's score, and behind it the start's where it is known, named so."""
    *_, task, metric = MEASURES[facts.metric_of(name)]
    shown = {
        "": facts.scores[name],
        f" of the start, by {facts.start_pooling} pooling": facts.start.get(name, math.nan),
    }
    return [
        EvalResult(
            task_type=task,
            task_name=task.replace("-", " ").title(),
            dataset_type=name,
            dataset_name=name,
            metric_type=metric,
            metric_name=f"{metric}{whose}",
            metric_value=round(score / 100, 6),
        )
        for whose, score in shown.items()
        if math.isfinite(score)
    ]
