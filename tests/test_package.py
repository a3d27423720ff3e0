"""The package's own names come when they are asked for, and transformers knows its model types in either order."""

import subprocess
import sys

import pytest
from transformers import AutoConfig, AutoModel
from transformers.models import auto

import cacse_trainer
from cacse_trainer import models
from cacse_trainer.models import SentenceEmbeddingModel

LOAD = """
from transformers import AutoConfig, AutoModel
import sys
assert "cacse_trainer.models" not in sys.modules, "nothing of ours is loaded before it is needed"
print(type(AutoConfig.for_model("student")).__name__)
print(type(AutoConfig.from_pretrained(sys.argv[1])).__name__, type(AutoModel.from_pretrained(sys.argv[1])).__name__)
"""


def test_every_name_is_there():
    assert set(cacse_trainer.__all__) <= set(dir(cacse_trainer))
    for name in cacse_trainer.__all__:
        assert getattr(cacse_trainer, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'CacseTrianer'"):
        cacse_trainer.CacseTrianer  # noqa: B018


def test_the_parts_are_there_without_an_import_of_their_own():
    code = "import cacse_trainer; print(cacse_trainer.errors.__name__, cacse_trainer.settings.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "cacse_trainer.errors cacse_trainer.settings\n"


def test_an_import_that_was_broken_off_is_tried_again():
    watch = cacse_trainer._Watch()
    sys.meta_path.insert(0, watch)
    try:
        assert watch.find_spec(cacse_trainer._AUTO, auto.__path__) is not None and watch in sys.meta_path
    finally:
        sys.meta_path.remove(watch)


def test_the_stand_ins_are_those_of_the_models():
    ours = {
        kind.model_type for name, kind in vars(models).items() if name.endswith("Config") and name != "SentenceConfig"
    }
    assert set(cacse_trainer._TYPES) == ours


@pytest.mark.slow
@pytest.mark.parametrize(
    "first", ["import cacse_trainer", "import transformers; transformers.AutoModel; import cacse_trainer"]
)
def test_a_saved_model_loads_after_the_import_alone(first, masked_lm, tmp_path):
    SentenceEmbeddingModel.from_encoder(masked_lm).save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", first + LOAD, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "StudentConfig\nSentenceEmbeddingConfig SentenceEmbeddingModel\n", done.stderr[-2000:]
    assert type(AutoConfig.from_pretrained(tmp_path)).__name__ == "SentenceEmbeddingConfig"
    assert type(AutoModel.from_pretrained(tmp_path)).__name__ == "SentenceEmbeddingModel"
