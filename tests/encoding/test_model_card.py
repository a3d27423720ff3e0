"""Cards: what is known stands in the metadata under its right name, and nothing else does."""

import math
import re

from huggingface_hub import ModelCard

from cacse_trainer.encoding.lineage import hub_data_sets, known_of
from cacse_trainer.encoding.model_card import CardFacts, render_card
from cacse_trainer.models import CacseConfig, TncseConfig
from cacse_trainer.models.citations import CITATIONS, bibtex_of
from cacse_trainer.models.configuration_diffcse import DiffcseConfig
from cacse_trainer.models.configuration_ensemble import EnsembleConfig
from cacse_trainer.models.configuration_sentence_embedding import SentenceEmbeddingConfig
from cacse_trainer.models.configuration_tsdae import TsdaeConfig
from cacse_trainer.models.modeling_student import StudentConfig
from cacse_trainer.models.objectives import OBJECTIVES

START = """---
language: [en, de]
license: apache-2.0
base_model: someone/before
---
# Start

```python
model = SentenceTransformer({name})
```
"""


def test_the_metadata_is_what_is_known():
    facts = CardFacts(
        title="Mine {{ x }}",
        what="An encoder.",
        base_models=["start"],
        base_ids=["someone/start"],
        languages=["en"],
        datasets=["owner/pairs"],
        scores={"mine_dev": 71.5, "search": 50.0, "undefined": math.nan},
        metrics={"search": "ndcg@10"},
        start={"mine_dev": 70.0},
        start_pooling="mean",
        license="mit",
    )
    card = ModelCard(render_card(facts))
    data = card.data
    assert (data.language, data.license, data.base_model) == (["en"], "mit", ["someone/start"])
    assert data.datasets == ["owner/pairs"] and data.metrics == ["spearman_cosine", "cosine_ndcg@10"]
    found = [(one.dataset_name, one.metric_type, one.metric_name, one.metric_value) for one in data.eval_results]
    assert found == [
        ("mine_dev", "spearman_cosine", "spearman_cosine", 0.715),
        ("mine_dev", "spearman_cosine", "spearman_cosine of the start, by mean pooling", 0.7),
        ("search", "cosine_ndcg@10", "cosine_ndcg@10", 0.5),
    ]
    assert data.to_dict()["widget"][0]["source_sentence"] == "A man is playing a guitar."
    assert "# Mine {{ x }}" in card.text and "Written with cacse-trainer " in card.text


def test_what_is_not_known_is_left_out():
    data = ModelCard(render_card(CardFacts(title="x", what="", base_models=["folder"]))).data.to_dict()
    assert set(data) == {"library_name", "pipeline_tag", "tags"}


def test_what_is_known_of_a_start(tmp_path):
    """A local folder is what its card loads, else what the card or the config names; a hub id is itself."""
    (tmp_path / "config.json").write_text('{"_name_or_path": "someone/base"}')
    assert known_of([str(tmp_path)]) == {"base_ids": ["someone/base"], "languages": []}
    for name, base in (
        ("'someone/start'", "someone/start"),
        ('"path/to/this/folder"', "someone/before"),
        ("folder", "someone/before"),
    ):
        (tmp_path / "README.md").write_text(START.replace("{name}", name))
        assert known_of([str(tmp_path)]) == {"base_ids": [base], "languages": ["en", "de"]}
    assert known_of(["bert-base-uncased", "bert-base-uncased"])["base_ids"] == ["bert-base-uncased"]
    assert known_of([str(tmp_path / "gone")]) == {"base_ids": [], "languages": []}


def test_the_hubs_data_sets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "text").touch()
    names = ["owner/pairs:large@train", "owner/text", "mine.csv", "data/mine.jsonl.gz", "sample:sentences.txt", "stsb"]
    assert hub_data_sets(names) == ["owner/pairs"]


def test_what_was_trained_is_cited():
    """BibTeX of its methods, each once, and no section where nothing is known of them."""
    text = ModelCard(render_card(CardFacts(title="x", what="", sources=["cacse", "simcse", "cacse"]))).text
    assert re.findall(r"^@\w+\{(\w+),$", text, flags=re.MULTILINE) == ["cacse", "gao2021simcse"]
    assert text.count("## Citation\n\n```bibtex\n@") == 1 and text.rstrip().endswith("}\n```")
    assert "Citation" not in render_card(CardFacts(title="x", what=""))
    assert "@misc{mine, year={2026}}" in render_card(
        CardFacts(title="x", what="", sources=["@misc{mine, year={2026}}"])
    )


def test_every_objective_and_model_has_something_to_cite():
    entries = "\n".join(CITATIONS.values())
    assert entries.count("{") == entries.count("}") and len(re.findall(r"^@", entries, flags=re.MULTILINE)) == 14
    for name in OBJECTIVES:
        assert bibtex_of(SentenceEmbeddingConfig(objective=name).sources), name
    bert = {"model_type": "bert"}
    cases = [
        (SentenceEmbeddingConfig(), ("simcse",)),
        (SentenceEmbeddingConfig(pooling="mean", matryoshka_dims=[64]), ("simcse", "matryoshka")),
        (SentenceEmbeddingConfig(append_eos=True), ("sts_cft",)),
        (SentenceEmbeddingConfig(objective="cosent", bidirectional_start_layer=3), ("bellm", "cosent")),
        (SentenceEmbeddingConfig(objective="bellm"), ("bellm", "angle")),
        (CacseConfig(bert, bert, bert), ("cacse",)),
        (TncseConfig(bert, bert), ("tncse",)),
        (DiffcseConfig(bert, bert), ("diffcse",)),
        (TsdaeConfig(bert), ("tsdae",)),
        (StudentConfig(bert), ("cacse",)),
        (EnsembleConfig(), ()),
    ]
    for config, sources in cases:
        assert config.sources == sources and "sources" not in config.to_dict()
