"""Models through torch.export and transformers' exporters, with numbers of rows and tokens left open."""

import pytest
import torch
from torch.export import Dim

from cacse_trainer.models import SentenceEmbeddingConfig, SentenceEmbeddingModel
from tests.peers.families import FAMILIES, VOCABULARY, encoder
from tests.tolerances import assert_near

pytestmark = pytest.mark.slow  # tracing takes seconds a graph
OPEN = {0: Dim("batch", min=2, max=64), 1: Dim("length", min=2, max=60)}


def rows(count: int, length: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, VOCABULARY, (count, length))
    mask = torch.ones_like(ids)
    mask[0, 2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def assert_open(model, program) -> None:
    """The program gives the model's vectors, for other numbers than it was traced with."""
    inputs = rows(6, 11)
    with torch.no_grad():
        found, expected = program.module()(**inputs), model(**inputs)
    assert_near(found["sentence_embedding"], expected.sentence_embedding)


@pytest.mark.parametrize("pooling", ["cls", "cls_before_pooler", "last_token", "mean", "avg_first_last"])
def test_poolings(pooling):
    model = SentenceEmbeddingModel(SentenceEmbeddingConfig(encoder(), pooling=pooling)).eval()
    sizes = {"input_ids": OPEN, "attention_mask": OPEN}
    assert_open(model, torch.export.export(model, (), rows(3, 7), dynamic_shapes=sizes, strict=False))


@pytest.mark.parametrize("name", ["CacseBert", "Tncse", "Diffcse", "Ensemble", "Student"])
def test_families_by_the_exporter_of_transformers(name):
    exporters = pytest.importorskip("transformers.exporters")
    model = FAMILIES[name].model(FAMILIES[name].config()).eval()
    config = exporters.DynamoConfig(dynamic_shapes={"input_ids": OPEN, "attention_mask": OPEN})
    program, _ = exporters.DynamoExporter().export_program(model, rows(3, 7), config)
    assert_open(model, program)
