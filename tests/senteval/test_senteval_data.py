"""Readers against literal lines, aggregation by hand, and the doctests of the package."""

import doctest
import importlib
import pkgutil

import numpy as np
import pytest
import senteval
from senteval import data, relatedness, sts, transfer
from senteval.task import length_order

from tests.tolerances import assert_near


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def test_sts_pairs_are_sorted_and_unscored_ones_dropped(tmp_path):
    write(tmp_path / "STS.input.x.txt", "a b c\td\ne\tf g\nh\ti\nj\tk\n")
    write(tmp_path / "STS.gs.x.txt", "4.0\n\n3.5\n1\n")
    assert data.sts_subset(tmp_path, "x") == ([["j"], ["h"], ["a", "b", "c"]], [["k"], ["i"], ["d"]], [1.0, 3.5, 4.0])


def test_sts_benchmark_keeps_quotes_and_extra_columns(tmp_path):
    path = write(tmp_path / "sts-dev.csv", 'g\tf\ty\t1\t2.5\t"a b\tc "d\ng\tf\ty\t2\t5.000\te\tf\tlicence\turl\n')
    assert data.sts_benchmark(path) == ([['"a', "b"], ["e"]], [["c", '"d'], ["f"]], [2.5, 5.0])


def test_sick_mrpc_trec(tmp_path):
    path = write(
        tmp_path / "SICK.txt", "pair_ID\tA\tB\tscore\tjudge\n1\ta b\tc\t4.5\tNEUTRAL\n2\td\te\t1\tENTAILMENT\n"
    )
    assert data.sick(path) == ([["a", "b"], ["d"]], [["c"], ["e"]], [4.5, 1.0], [1, 2])
    path = write(tmp_path / "mrpc.txt", '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t5\t6\tHe said "x\ty\n')
    assert data.mrpc(path) == ([["He", "said", '"x']], [["y"]], [1])
    path = write(tmp_path / "trec", "NUM:dist How far is D\xf0n : there ?\nABBR:exp What ?\n", "latin-1")
    assert data.trec(path) == ([["How", "far", "is", "D\xf0n", ":", "there", "?"], ["What", "?"]], [5, 0])


def test_binary_files_are_latin1_with_splitlines(tmp_path):
    path = write(tmp_path / "x.pos", "good  caf\xe9 \n\nfine\x85next\n", "latin-1")
    assert data.plain_sentences(path) == [["good", "caf\xe9"], [], ["fine"], ["next"]]


def test_sst_two_and_five(tmp_path):
    path = write(tmp_path / "two", "a good film\t1\n\t0\n")
    assert data.sst(path, 2) == ([["a", "good", "film"], []], [1, 0])
    path = write(tmp_path / "five", "4 a good film\n0 bad\n")
    assert data.sst(path, 5) == ([["a", "good", "film"], ["bad"]], [4, 0])
    with pytest.raises(
        senteval.DataFormatError, match=r"five, line 1: expected label sentence with labels 0 to 1|line 1"
    ):
        data.sst(path, 2)


def test_snli_is_split_at_ascii_spaces_and_sorted_by_label_names(tmp_path):
    """A UTF-8 "à" read as latin-1 holds a no-break space; contradiction comes before entailment and neutral."""
    for part in ("train", "dev", "test"):
        write(tmp_path / f"s1.{part}", "a b\nvoil\u00e0\nc d\ne f\n")
        write(tmp_path / f"s2.{part}", "x\ny\nz\nw\n")
        write(tmp_path / f"labels.{part}", "neutral\nneutral\nentailment\ncontradiction\n")
    found = transfer.load_snli("SNLI", tmp_path, 1111).parts["train"]
    assert found.texts[0] == [["voil\u00c3\u00a0"], ["e", "f"], ["c", "d"], ["a", "b"]]
    assert found.labels == [1, 2, 0, 1]


def test_probing_labels_are_numbered_in_sorted_order(tmp_path):
    path = write(tmp_path / "p.txt", "tr\t7\ta b\ntr\t10\tc\nva\t10\td\nte\t7\tsource\te f\n")
    parts = data.probing(path)  # "10" < "7" as strings; the sentence is the last column
    assert parts["train"] == ([["a", "b"], ["c"]], [1, 0])
    assert parts["dev"] == ([["d"]], [0]) and parts["test"] == ([["e", "f"]], [1])


@pytest.mark.parametrize(
    "reader, text, message",
    [
        (data.sts_benchmark, "a\tb\tc\n", "x, line 1: expected 7 tab-separated columns"),
        (data.mrpc, "head\nyes\t1\t2\ta\tb\n", "x, line 2: expected label, id, id"),
        (data.trec, "NUM:dist How ?\nXYZ:a b\n", "x, line 2: expected CLASS:subclass question"),
        (data.sick, "head\n1\ta\tb\t3\tMAYBE\n", "x, line 2"),
        (data.probing, "tr\t0\ta\nxx\t0\tb\n", "x, line 2: expected tr, va or te"),
        (data.probing, "tr\t0\ta\nva\t1\tb\nte\t0\tc\n", "label '1' of the dev part does not occur in training"),
        (data.probing, "tr\t0\ta\nva\t0\tb\n", "no rows of the test part"),
        (data.plain_sentences, "", "no rows"),
    ],
)
def test_format_errors_name_file_and_line(tmp_path, reader, text, message):
    with pytest.raises(senteval.DataFormatError, match=message):
        reader(write(tmp_path / "x", text))


def test_lengths_that_differ_are_told(tmp_path):
    write(tmp_path / "STS.input.x.txt", "a\tb\nc\td\n")
    write(tmp_path / "STS.gs.x.txt", "1\n")
    with pytest.raises(senteval.DataFormatError, match=r"has 2 lines, .* has 1"):
        data.sts_subset(tmp_path, "x")


def test_classification_order_is_length_then_label_then_file_order(data_folder):
    texts = [["a", "b"], ["c"], ["d"], ["e"]]
    assert length_order(texts, [0, 1, 0, 1]) == [2, 1, 3, 0]
    task = senteval.load_task("SNLI", data_folder)
    lengths = [(len(b), len(a)) for a, b in zip(*task.parts["train"].texts, strict=True)]
    assert lengths == sorted(lengths)  # the hypothesis first


def test_subj_counts_objective_as_positive(data_folder):
    task = senteval.load_task("SUBJ", data_folder)
    objective = (data_folder / "downstream/SUBJ/subj.objective").read_text("latin-1").splitlines()
    pairs = zip(task.parts["train"].texts[0], task.parts["train"].labels, strict=True)
    assert {y for tokens, y in pairs if " ".join(tokens) in objective} == {1}


def test_samples_give_the_sentences_back(data_folder):
    task = senteval.load_task("CR", data_folder)
    folder = data_folder / "downstream/CR"
    lines = [line for f in ("custrev.pos", "custrev.neg") for line in (folder / f).read_text("latin-1").splitlines()]
    assert sorted(" ".join(t) for t in task.samples) == sorted(lines)


def test_every_task_declares_its_files(data_folder):
    assert [spec.kind for spec in senteval.TASKS.values()].count("probing") == 10
    for spec in senteval.TASKS.values():
        assert spec.missing(data_folder) == []
        assert spec.missing(data_folder / "nowhere") == spec.paths(data_folder / "nowhere")


def test_aggregations():
    """Two subsets, Spearman 1 over 3 pairs and −1 over 2: mean 0, weighted (3 − 2)/5 = 0.2."""
    scores, gold = np.array([0.1, 0.2, 0.3, 0.4, 0.5]), np.array([1.0, 2.0, 3.0, 5.0, 4.0])
    results = {
        name: {**sts.correlations(scores[part], gold[part]), "nsamples": len(scores[part])}
        for name, part in (("a", slice(0, 3)), ("b", slice(3, 5)))
    }
    table = sts.summary(results, scores, gold)["spearman"]
    assert table["mean"] == pytest.approx(0)
    assert table["wmean"] == pytest.approx(0.2)
    assert table["all"] == pytest.approx(0.9)  # 1 − 6·2 / (5·24)


def test_a_single_pair_has_no_correlation():
    result = sts.correlations(np.array([0.5]), np.array([1.0]))
    assert np.isnan(result["pearson"][0]) and np.isnan(result["spearman"].correlation)


def test_scores_as_distributions():
    table = relatedness.encode_scores([1.0, 2.75, 5.0, 0.4])
    expected = [[1, 0, 0, 0, 0], [0, 0.25, 0.75, 0, 0], [0, 0, 0, 0, 1], [0.4, 0, 0, 0, 0]]
    assert_near(table, expected, terms=4)


def test_doctests():
    for module in pkgutil.walk_packages(senteval.__path__, "senteval."):
        assert doctest.testmod(importlib.import_module(module.name)).failed == 0, module.name
