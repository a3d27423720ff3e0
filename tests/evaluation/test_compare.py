"""The paired bootstrap, contamination's forms and the tables, by hand."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.compare import bootstrap_differences, compare, spearman_rows
from cacse_trainer.evaluation.contamination import normalised, occurring
from cacse_trainer.evaluation.results import STS, ResultStore
from cacse_trainer.evaluation.tables import latex, markdown, tables_of, terminal


def made_up(noise: float, pairs: int = 400) -> dict[str, np.ndarray]:
    """Cosines that follow the gold scores up to some noise, in two subsets."""
    random = np.random.default_rng(3)
    gold = random.integers(0, 11, pairs) / 2
    cosine = gold + noise * np.random.default_rng(int(10 * noise)).normal(size=pairs)
    return {"cosine": cosine, "gold": gold, "subset": np.array(["one", "two"] * (pairs // 2))}


def test_spearman_of_rows_is_scipys():
    random = np.random.default_rng(0)
    first, second = random.integers(0, 5, (3, 50)).astype(float), random.normal(size=(3, 50))
    expected = [spearmanr(a, b).statistic for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(spearman_rows(first, second), expected)
    assert np.isnan(spearman_rows(np.ones((1, 4)), np.arange(4.0)[None]))


def test_bootstrap():
    good, bad, same = made_up(1.0), made_up(3.0), made_up(1.0)
    clear = bootstrap_differences(bad, good, "all", 200, seed=0)
    assert clear.shape == (200,) and np.percentile(clear, 2.5) > 0
    observed = 100 * (spearmanr(good["cosine"], good["gold"])[0] - spearmanr(bad["cosine"], bad["gold"])[0])
    assert np.percentile(clear, 2.5) < observed < np.percentile(clear, 97.5)
    assert np.all(bootstrap_differences(good, same, "all", 20, seed=0) == 0)  # paired: no noise from the draw
    for how in ("mean", "wmean", "two"):
        assert np.percentile(bootstrap_differences(bad, good, how, 100, seed=0), 2.5) > 0


def test_compare_refuses_two_aggregations(tmp_path):
    for name, how in (("a", "all"), ("b", "mean")):
        kept = ResultStore(tmp_path / name, model="m", pooling="cls", settings={})
        kept.add_task("STS12", {"spearman": 70.0, "aggregation": how, "n": 4})
    with pytest.raises(UserError, match="two ways: all and mean"):
        compare(tmp_path / "a", tmp_path / "b")


def test_compare_refuses_two_modes_of_a_classifier(tmp_path):
    """Quick classifiers give other accuracies; the mode changes no cosine."""
    for mode in ("test", "fasttest"):
        kept = ResultStore(tmp_path / mode, model="m", pooling="cls", settings={"mode": mode})
        kept.add_task("STS12", {"spearman": 70.0, "aggregation": "all", "n": 4})
    assert compare(tmp_path / "test", tmp_path / "fasttest")[0].difference == 0
    for mode in ("test", "fasttest"):
        kept = ResultStore(tmp_path / mode, model="m", pooling="cls", settings={"mode": mode})
        kept.add_task("MR", {"acc": 76.0, "aggregation": "test", "n": 4})
    with pytest.raises(UserError, match="MR was scored in two modes: test and fasttest"):
        compare(tmp_path / "test", tmp_path / "fasttest")


def test_compare_tells_damaged_pairs(tmp_path):
    for name in "ab":
        kept = ResultStore(tmp_path / name, model="m", pooling="cls", settings={})
        pairs = {"x": (np.array([0.1, 0.2]), np.array([1.0, 2.0]))}
        kept.add_task("STS12", {"spearman": 70.0, "aggregation": "all", "n": 2}, pairs)
    damaged = tmp_path / "b" / "pairs" / "STS12.npz"
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(UserError, match=r"STS12\.npz is damaged"):
        compare(tmp_path / "a", tmp_path / "b")


def test_without_pairs_there_is_no_interval(tmp_path):
    for name, score in (("a", 70.0), ("b", 71.5)):
        kept = ResultStore(tmp_path / name, model="m", pooling="cls", settings={})
        kept.add_task("MR", {"acc": score, "aggregation": "test", "n": 4})
    row = compare(tmp_path / "a", tmp_path / "b")[0]
    assert (row.name, row.difference, row.low, row.is_clear) == ("MR", 1.5, None, None)


def test_normalised():
    assert normalised("It 's  a ﬁne Day !") == normalised("it's a fine day.") == "itsafineday"
    text = iter(["Nothing.", "A man , is playing.", "..."])
    assert occurring(text, ["a man is playing", "A Man is playing !", "", "...", "nothing of it"]) == {
        "a man is playing",
        "A Man is playing !",
    }


def test_tables():
    tasks = {name: {"spearman": 70.0 + i, "aggregation": "all"} for i, name in enumerate(STS)}
    found = {
        "model": "m_1",
        "pooling": "cls",
        "settings": {"mode": "test"},
        "tasks": {**tasks, "SST5": {"acc": 40.0}, "MR": {"acc": None}},
    }
    by_name = {table.name: table for table in tables_of(found)}
    assert by_name["sts"].header[-2:] == ["SICK-R", "Avg."] and by_name["sts"].cells[-1] == "73.00"
    assert by_name["transfer"].header == ["MR", "Avg. of 1"] and by_name["transfer"].cells == ["-", "-"]
    assert by_name["more"].header == ["SST5"]
    assert "aggregation: all" in terminal(found) and "| 73.00 |" in markdown(found) and r"73.00 \\" in latex(found)
    assert not any(word in terminal(found) + markdown(found) + latex(found) for word in ("mode ", "mode `"))
    found["settings"]["mode"] = "dev"  # dev scores do not pass for test scores
    assert "mode     dev" in terminal(found) and "mode `dev`" in markdown(found) and "mode dev" in latex(found)
