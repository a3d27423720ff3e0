"""MTEB on an encoder: a local task gives SentEval's figure, names resolve, unreachable data are told."""

import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from cacse_trainer.encoding.encoder import SentenceEncoder
from cacse_trainer.encoding.weighted import open_encoders
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.mteb_suites import MTEB_SUITES, NOT_MAPPED, RELEASE_METRICS
from cacse_trainer.evaluation.results import ResultStore
from cacse_trainer.evaluation.senteval_suite import Scoring, run_tasks
from tests.tiny_decoders import make_tiny_decoder

mteb = pytest.importorskip("mteb")

from cacse_trainer.evaluation import mteb_adapter  # noqa: E402  (imports mteb)


def local_sts12(data: Path):
    """An mteb task over SentEval's STS12 files."""
    import senteval
    from mteb.abstasks.sts import AbsTaskSTS

    pairs = senteval.load_task("STS12", data).data.values()
    rows = [(" ".join(a), " ".join(b), s) for first, second, gold in pairs for a, b, s in zip(first, second, gold)]  # noqa: B905

    class LocalSts12(AbsTaskSTS):
        metadata = mteb.get_task("STS12").metadata.model_copy(update={"name": "LocalSTS12"})

        def load_data(self, **kwargs):
            columns = dict(zip(("sentence1", "sentence2", "score"), map(list, zip(*rows)), strict=True))  # noqa: B905
            self.dataset = DatasetDict({"test": Dataset.from_dict(columns)})
            self.data_loaded = True

    return LocalSts12()


def store(folder: Path, encoder: SentenceEncoder) -> ResultStore:
    return ResultStore(folder, model=encoder.name, pooling=encoder.pooling, settings={})


def test_a_local_task_gives_sentevals_figure(tiny_towers, senteval_sample, tmp_path):
    encoder = SentenceEncoder(tiny_towers("bert")[0], "mean", device="cpu")
    kept = store(tmp_path, encoder)
    run_tasks(encoder, ["STS12"], senteval_sample, kept, Scoring(), progress=False)
    mteb_adapter.run_mteb(encoder, [local_sts12(senteval_sample)], kept, progress=False)
    found = json.loads((tmp_path / "results.json").read_text())
    # 60 pairs: a tie of two cosines that rounding breaks moves the correlation by some hundredths
    assert found["mteb"]["LocalSTS12"]["main_score"] == pytest.approx(found["tasks"]["STS12"]["spearman"], abs=0.1)
    assert found["mteb"]["LocalSTS12"]["metric"] == "cosine_spearman"
    ran = dict(kept.mteb)
    mteb_adapter.run_mteb(encoder, [local_sts12(senteval_sample)], kept, progress=False)
    assert kept.mteb == ran  # already there: not run again, its seconds stay


def test_a_decoder_with_its_prompt(senteval_sample, tmp_path):
    """A causal language model's last token after a prompt: SentEval's figure as well."""
    folder = make_tiny_decoder(tmp_path)
    encoder = SentenceEncoder(
        folder, "last_token", device="cpu", prompt_template="This sentence: {text} means", append_eos=True
    )
    kept = store(tmp_path / "results", encoder)
    run_tasks(encoder, ["STS12"], senteval_sample, kept, Scoring(), progress=False)
    mteb_adapter.run_mteb(encoder, [local_sts12(senteval_sample)], kept, progress=False)
    found = json.loads((tmp_path / "results" / "results.json").read_text())
    assert found["mteb"]["LocalSTS12"]["main_score"] == pytest.approx(found["tasks"]["STS12"]["spearman"], abs=0.1)


@pytest.mark.slow
def test_minilm_on_sts12(minilm, shared_data, tmp_path):
    """72.36, as in SentEval."""
    encoder = SentenceEncoder(minilm, device="cpu")
    kept = store(tmp_path, encoder)
    mteb_adapter.run_mteb(encoder, [local_sts12(shared_data / "senteval")], kept, progress=False)
    assert kept.mteb["LocalSTS12"]["main_score"] == pytest.approx(72.36, abs=0.02)


def test_a_cached_result_is_of_the_same_vectors(tiny_towers, tmp_path):
    """mteb keeps results by name and revision: whatever changes the vectors is another revision."""
    folder = tiny_towers("bert")[0]
    prompted = tmp_path / Path(folder).name
    SentenceEncoder(folder, "cls", device="cpu").save_pretrained(prompted)
    stated = {"prompts": {"query": "the man "}, "default_prompt_name": "query"}
    (prompted / "config_sentence_transformers.json").write_text(json.dumps(stated))
    encoders = {
        "cls": SentenceEncoder(folder, "cls", device="cpu"),
        "mean": SentenceEncoder(folder, "mean", device="cpu"),
        "length": SentenceEncoder(folder, "cls", device="cpu", max_seq_length=8),
        "dimensions": SentenceEncoder(folder, "cls", device="cpu", truncate_dim=8),
        "dtype": SentenceEncoder(folder, "cls", device="cpu", dtype="bf16"),
        "prompt": SentenceEncoder(prompted, device="cpu"),
        "sum": open_encoders([folder, folder], ["cls", "mean"], device="cpu"),
        "sum of others": open_encoders([folder, folder], ["cls", "cls"], device="cpu"),
    }
    revisions = {name: mteb_adapter.MtebEncoder(one).mteb_model_meta.revision for name, one in encoders.items()}
    assert len(set(revisions.values())) == len(encoders), revisions
    again = SentenceEncoder(folder, "cls", device="cpu")
    assert mteb_adapter.MtebEncoder(again).mteb_model_meta.revision == revisions["cls"]


def test_every_name_resolves_or_is_listed_as_not_mapped():
    wanted = {name for names in MTEB_SUITES.values() for name in names}
    assert len(wanted) == 1 + 20 + 20 + 11 and NOT_MAPPED.keys() <= wanted
    tasks = mteb_adapter.resolve_tasks(list(MTEB_SUITES))
    assert {task.metadata.name for task in tasks} == wanted - NOT_MAPPED.keys()
    for suite, names in MTEB_SUITES.items():
        kinds = {task.metadata.type for task in tasks if task.metadata.name in names}
        assert len(kinds) == 1, f"{suite}: {kinds}"
    assert RELEASE_METRICS.keys() == MTEB_SUITES.keys()
    sts22 = next(task for task in tasks if task.metadata.name == "STS22")
    assert len(sts22.hf_subsets) == 18


def test_what_is_not_mapped_is_said(caplog):
    assert "PolEmo2" not in mteb_adapter.task_names(["cacse-classification"])
    assert "PolEmo2" in caplog.text
    with pytest.raises(UserError, match="PolEmo2"):
        mteb_adapter.task_names(["PolEmo2"])


def test_a_wrong_name_gets_the_nearest():
    with pytest.raises(UserError, match="Banking77Classification"):
        mteb_adapter.resolve_tasks(["Banking77Classificatio"])
    with pytest.raises(UserError, match="did you mean cacse-classification"):
        mteb_adapter.resolve_tasks(["cacse-classificatio"])


def test_data_that_cannot_be_fetched(tiny_towers, senteval_sample, tmp_path, monkeypatch):
    """The other tasks run all the same; the message names the task."""
    task = mteb.get_task("Banking77Classification")

    def unreachable(**kwargs):
        raise ConnectionError("Couldn't reach 'mteb/banking77' on the Hub")

    monkeypatch.setattr(task, "load_data", unreachable)
    encoder = SentenceEncoder(tiny_towers("bert")[0], "mean", device="cpu")
    kept = store(tmp_path, encoder)
    with pytest.raises(UserError, match=r"Banking77Classification cannot be fetched.*hub") as told:
        mteb_adapter.run_mteb(encoder, [task, local_sts12(senteval_sample)], kept, progress=False)
    assert "\n" not in str(told.value) and list(kept.mteb) == ["LocalSTS12"]
