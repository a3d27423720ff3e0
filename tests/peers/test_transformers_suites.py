"""transformers' own tests of models and configs, on each family: what fails must stand in `INAPPLICABLE`.

What the suites skip by themselves is theirs: GPUs, quantisation, generation, images.
"""

import unittest
from typing import Any

import pytest
import torch

from tests.peers.families import BATCH, FAMILIES, HEADS, LAYERS, LENGTH, SUMS, VOCABULARY, WIDTH, Family
from tests.peers.sources import suites

ADAPTED = "SentenceEmbedding, LoRA"
INAPPLICABLE = {
    "test_retain_grad_hidden_states_attentions": (
        (*SUMS, ADAPTED),
        "a sum's layers are sums of the encoders' own, beside the way to the output, so no gradient comes by them; "
        "below the first adapter everything is frozen",
    ),
    "test_resize_tokens_embeddings": ((ADAPTED,), "refused: its checkpoint holds no word vectors"),
    "test_load_save_without_tied_weights": ((ADAPTED,), "its checkpoint is an adapter, without model.safetensors"),
    "test_model_weights_reload_no_missing_tied_weights": (
        (ADAPTED,),
        "looks for weights that a changed model.safetensors lacks, which is not read beside an adapter",
    ),
    "test_cannot_load_with_meta_device_context_manager": (
        (ADAPTED,),
        "refused in the same words, by a UserError instead of a RuntimeError: the base model is read by `load_weights`",
    ),
}
"""Tests that fail for a good reason: of which families, and why."""


class Asked:
    """What the suite asks of the ``model_tester`` of a family."""

    batch_size, seq_length, hidden_size = BATCH, LENGTH, WIDTH
    num_hidden_layers = LAYERS

    def __init__(self, name: str):
        self.family = FAMILIES[name]
        self.is_training = self.family.loss_inputs is not None
        self.num_attention_heads = 2 * HEADS if name in SUMS else HEADS

    def get_config(self) -> Any:
        """A config of the family."""
        return self.family.config()

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        """A config, and (N, L) inputs for it."""
        ids = torch.randint(5, VOCABULARY, (BATCH, LENGTH))
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def suite_of(name: str, family: Family, config: pytest.Config) -> type[unittest.TestCase]:
    """The tests of both suites for a family."""
    given = suites(config)

    class Suite(given.ModelTesterMixin, unittest.TestCase):  # type: ignore[misc, name-defined]
        all_model_classes = (family.model,)

        def setUp(self) -> None:
            self.model_tester = Asked(name)

        def _prepare_for_class(self, inputs: Any, model_class: Any, return_labels: bool = False) -> Any:
            prepared = super()._prepare_for_class(inputs, model_class, return_labels=False)
            return family.loss_inputs(prepared) if return_labels and family.loss_inputs else prepared

        def test_config(self) -> None:
            common = ["hidden_size"]  # each encoder has layers and heads of its own
            kind = type(family.config())
            given.ConfigTester(self, kind, common_properties=common, **family.settings).run_common_tests()

    Suite.__name__ = f"{name}Test"
    return Suite


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_suites_of_transformers(name, pytestconfig):
    if "LoRA" in name:
        pytest.importorskip("peft")
    tests = unittest.defaultTestLoader.loadTestsFromTestCase(suite_of(name, FAMILIES[name], pytestconfig))
    result = unittest.TestResult()
    tests.run(result)
    wrong = {
        case.id().rpartition(".")[2].partition(" ")[0]: told.strip().splitlines()[-1][:300]
        for case, told in (*result.failures, *result.errors)
    }
    passed = result.testsRun - len(wrong) - len(result.skipped)
    print(f"{name}: {passed} passed, {len(wrong)} failed, {len(result.skipped)} skipped, {wrong}")
    expected = {test for test, (families, _) in INAPPLICABLE.items() if name in families}
    assert passed > 80
    assert wrong.keys() == expected, {test: wrong.get(test, "passes") for test in wrong.keys() ^ expected}
