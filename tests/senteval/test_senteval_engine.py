"""The engine's interface: scripts written for the original toolkit, every task, every kind of mistake."""

import io

import numpy as np
import pytest
import senteval
import torch
from senteval.encoding import as_matrix
from senteval.utils import dotdict
from senteval_samples import embed, word_vector

SIMILARITY = ["STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICKRelatedness"]
QUICK = {"kfold": 3, "classifier": {"nhid": 0, "optim": "rmsprop", "batch_size": 16, "tenacity": 2, "epoch_size": 10}}


def engine(data_folder, batcher, prepare=None, **params):
    return senteval.engine.SE({"task_path": str(data_folder), **QUICK, **params}, batcher, prepare)


def test_an_old_script_runs_unchanged(data_folder):
    seen = []

    def prepare(params, samples):
        _, params.word2id = senteval.utils.create_dictionary(samples)
        params.word_vec = {word: word_vector(word) for word in params.word2id}
        params.wvec_dim = 24
        seen.append((params.current_task, len(samples)))
        return

    def batcher(params, batch):
        batch = [sent if sent != [] else ["."] for sent in batch]
        embeddings = []
        for sent in batch:
            sentvec = [params.word_vec[word] for word in sent if word in params.word_vec]
            embeddings.append(np.mean(sentvec or [np.zeros(params.wvec_dim)], 0))
        return np.vstack(embeddings)

    params_senteval = {"task_path": str(data_folder), "usepytorch": True, "kfold": 3}
    params_senteval["classifier"] = QUICK["classifier"]
    se = senteval.engine.SE(params_senteval, batcher, prepare)
    results = se.eval(["STS12", "STSBenchmark", "CR", "TREC", "MRPC", "Length"])

    for key in ("all", "mean", "wmean"):
        assert 0 < results["STS12"]["all"]["spearman"][key] <= 1
        assert 0 < results["STS12"]["all"]["pearson"][key] <= 1
    test = results["STSBenchmark"]["test"]
    assert test["spearman"].correlation == test["spearman"][0]
    assert test["pearson"][0] == test["pearson"].correlation
    assert test["nsamples"] == 40
    assert set(results["CR"]) == {"devacc", "acc", "ndev", "ntest"} and results["CR"]["ntest"] == 120
    assert set(results["MRPC"]) == {"devacc", "acc", "f1", "ndev", "ntest"}
    assert results["TREC"]["ndev"] == 120 and results["TREC"]["ntest"] == 30
    assert se.results is results
    assert seen[2] == ("CR", 120) and len(seen) == 6


@pytest.mark.parametrize("name", list(senteval.TASKS))
def test_every_task_runs_on_the_published_format(name, data_folder, batcher, monkeypatch):
    monkeypatch.setattr("senteval.relatedness.ROUND", 2)
    result = engine(data_folder, batcher).eval(name)
    if name in SIMILARITY:
        assert result["all"]["spearman"]["all"] > 0.5  # the second sentence shares the fewer words the lower the score
        return
    if name.endswith("-finetune"):
        keys = {"devpearson", "devspearman", "pearson", "spearman", "mse", "yhat", "ndev", "ntest"}
        assert set(result) == keys and len(result["yhat"]) == result["ntest"]
        return
    assert 0 <= result["devacc"] <= 100 and 0 <= result["acc"] <= 100
    if name in ("MR", "SUBJ", "SST2"):  # the label is one word of the sentence
        assert result["acc"] > 65


def test_unscored_pairs_of_2015_and_2016_are_dropped(data_folder, batcher):
    result = engine(data_folder, batcher).eval("STS15")
    assert [result[s]["nsamples"] for s in result if s != "all"] == [10] * 5  # 12 pairs, 2 of them without gold


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_batch_size_does_not_matter(size, data_folder, batcher):
    tasks = ["STS16", "CR"]
    reference = engine(data_folder, batcher).eval(tasks)
    other = engine(data_folder, batcher, batch_size=size).eval(tasks)
    assert other["CR"] == reference["CR"]
    assert other["STS16"]["all"] == reference["STS16"]["all"]


def test_numpy_torch_and_half_precision_batchers(data_folder, batcher):
    reference = engine(data_folder, batcher).eval("STS13")["all"]["spearman"]["all"]
    for convert in (
        torch.from_numpy,
        lambda x: torch.from_numpy(x).requires_grad_(),
        lambda x: x.tolist(),
        lambda x: list(torch.from_numpy(x)),
        lambda x: x.astype(np.float64),
    ):
        se = engine(data_folder, lambda p, b, convert=convert: convert(batcher(p, b)))
        assert se.eval("STS13")["all"]["spearman"]["all"] == pytest.approx(
            reference, abs=1e-3
        )  # equal pairs are ranked by rounding
    se = engine(data_folder, lambda p, b: torch.from_numpy(batcher(p, b)).bfloat16())
    assert se.eval("STS13")["all"]["spearman"]["all"] == pytest.approx(reference, abs=0.02)


def test_a_vector_is_a_matrix_for_one_sentence_only():
    assert as_matrix(np.zeros(3), 1, "MR").shape == (1, 3)
    with pytest.raises(senteval.EmbeddingError, match=r"MR: .*shape \(3,\) for 2 sentences"):
        as_matrix(np.zeros(3), 2, "MR")
    with pytest.raises(senteval.EmbeddingError, match="shape"):
        as_matrix(np.zeros((3, 3)), 2, "MR")


def test_a_table_of_distinct_sentences_replaces_the_encoder(data_folder, batcher):
    names = ["STS14", "MPQA", "MRPC", "Tense"]
    tasks = [senteval.load_task(name, data_folder) for name in names]
    sentences = senteval.distinct_sentences(tasks)
    assert len(sentences) == len(set(sentences)) and "" in sentences
    table = senteval.EmbeddingTable(sentences, embed([s.split() for s in sentences]))
    se = engine(data_folder, table)
    by_table = {task.name: se.run(task) for task in tasks}
    direct = engine(data_folder, batcher).eval(names)
    assert by_table["MPQA"] == direct["MPQA"] and by_table["MRPC"] == direct["MRPC"]
    assert by_table["STS14"]["all"] == direct["STS14"]["all"]


def test_pair_scores_reproduce_the_figure(data_folder, batcher):
    from scipy.stats import spearmanr

    se = engine(data_folder, batcher)
    result = se.eval("STS12")
    scores, gold = (np.concatenate(c) for c in zip(*se.evaluation.pair_scores.values(), strict=True))
    assert spearmanr(scores, gold)[0] == result["all"]["spearman"]["all"]
    assert list(se.evaluation.data) == list(se.evaluation.pair_scores)


def test_a_similarity_of_the_users(data_folder, batcher):
    result = engine(data_folder, batcher, similarity=lambda a, b: -float(np.linalg.norm(a - b))).eval("STS12")
    assert result["all"]["spearman"]["all"] > 0.5


@pytest.mark.parametrize("written, meant", [("STS-B", "STSBenchmark"), ("SICK-R", "SICKRelatedness"), ("sst", "SST2")])
def test_names_of_the_papers_tables_are_understood(written, meant):
    with pytest.raises(senteval.UnknownTask, match=f"did you mean '{meant}'"):
        senteval.task_spec(written)


def test_unknown_names_suggest_the_nearest(data_folder, batcher):
    with pytest.raises(senteval.UnknownTask, match="did you mean 'STSBenchmark'"):
        engine(data_folder, batcher).eval("STSBenchmrk")
    calls = []
    se = engine(data_folder, lambda p, b: calls.append(b) or batcher(p, b))
    with pytest.raises(ValueError, match="did you mean 'TREC'"):
        se.eval(["STS12", "Trec"])
    assert not calls  # every name is checked before the first task runs


def test_missing_files_name_the_script(tmp_path, batcher):
    with pytest.raises(
        senteval.DataFileMissing, match=r"MR: data file .*rt-polarity\.pos .*1 more.*download_dataset\.sh"
    ):
        engine(tmp_path, batcher).eval("MR")
    with pytest.raises(FileNotFoundError, match=r"word_content\.txt is missing; .*bash .*download_probing\.sh"):
        engine(tmp_path, batcher).eval("WordContent")


def test_nan_embeddings_are_one_clear_error(data_folder, batcher):
    def broken(params, batch):
        return np.where(np.arange(len(batch))[:, None] == 2, np.nan, batcher(params, batch))

    with pytest.raises(
        senteval.EmbeddingError, match=r"SUBJ: 1 of 120 embeddings .* NaN or infinite; the first is that of '"
    ):
        engine(data_folder, broken).eval("SUBJ")


def test_zero_embeddings_are_undefined_not_an_error(data_folder):
    result = engine(data_folder, lambda p, b: np.zeros((len(b), 4))).eval("STS12")
    assert np.isnan(result["all"]["spearman"]["all"])


def test_progress_is_quiet_unless_asked(data_folder, batcher, capsys):
    engine(data_folder, batcher).eval("STS12")
    assert capsys.readouterr() == ("", "")
    stream = io.StringIO()
    engine(data_folder, batcher, progress=stream).eval("STS12")
    assert "STS12 sentences" in stream.getvalue()
    assert capsys.readouterr() == ("", "")


def test_parameters_are_attributes():
    params = dotdict(a=1)
    params.b = 2
    assert (params.a, params["b"], params.absent) == (1, 2, None)
    del params.b
    assert "b" not in params


def test_wrong_settings_are_told(data_folder, batcher):
    with pytest.raises(senteval.SettingsError, match="unknown optimizer 'adamm'"):
        engine(data_folder, batcher, classifier={"nhid": 0, "optim": "adamm"}).eval("MR")
    with pytest.raises(senteval.SettingsError, match="kfold is 1"):
        engine(data_folder, batcher, kfold=1).eval("MR")
    with pytest.raises(senteval.SettingsError, match="task_path"):
        senteval.SE({}, batcher).eval("MR")
    with pytest.warns(UserWarning, match="'tenacty' is not known"):
        engine(data_folder, batcher, classifier={**QUICK["classifier"], "tenacty": 3}).eval("MRPC")


def test_presets_are_the_published_ones():
    test, fast = senteval.classifier_settings("test"), senteval.classifier_settings("fasttest")
    assert (test["kfold"], test["classifier"]) == (
        10,
        {"nhid": 0, "optim": "adam", "batch_size": 64, "tenacity": 5, "epoch_size": 4},
    )
    assert (fast["kfold"], fast["classifier"]) == (
        5,
        {"nhid": 0, "optim": "rmsprop", "batch_size": 128, "tenacity": 3, "epoch_size": 2},
    )
    assert senteval.classifier_settings("dev") == fast
    with pytest.raises(senteval.SettingsError, match="fasttest"):
        senteval.classifier_settings("quick")
