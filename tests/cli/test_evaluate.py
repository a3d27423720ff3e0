"""``cacse-trainer evaluate`` and ``compare``: files, tables, interruption, errors."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from cacse_trainer.cli.main import main
from cacse_trainer.evaluation.results import PROBING, STS, TRANSFER

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def evaluate(tiny_towers, senteval_sample, tmp_path):
    """``evaluate(*flags)`` → exit code; a tiny model, pooling mean, the sample's data, output in ``tmp_path/out``."""

    def call(*flags: str, model: str | None = None) -> int:
        chosen = ["--model", model or tiny_towers("bert")[0]]
        if "--pooling" not in flags:
            chosen += ["--pooling", "mean"]
        folder = ["--data_dir", str(senteval_sample), "--output_dir", str(tmp_path / "out")]
        return main(["evaluate", *chosen, *folder, "--disable_tqdm", "--device", "cpu", *flags])

    return call


def results(folder: Path) -> dict:
    """Strict JSON: a NaN is an error."""

    def refuse(word: str):
        raise AssertionError(f"{word} is not JSON")

    return json.loads((folder / "results.json").read_text(), parse_constant=refuse)


def test_full_suite(evaluate, tmp_path, capsys):
    assert evaluate("--suite", "full", "--mode", "fasttest") == 0
    found, out = results(tmp_path / "out"), capsys.readouterr().out
    assert set(found["tasks"]) == {*STS, *TRANSFER, *PROBING}
    assert found["pooling"] == "mean" and found["settings"]["mode"] == "fasttest" and "torch" in found["environment"]
    for suite, names, key in (("sts", STS, "spearman"), ("transfer", TRANSFER, "acc"), ("probing", PROBING, "acc")):
        mean = np.mean([found["tasks"][name][key] for name in names])
        assert found["averages"][suite] == pytest.approx(mean)
    assert "| STS12 | STS13 | STS14 | STS15 | STS16 | STS-B | SICK-R |" in " ".join(out.split())
    assert "pooling  mean" in out and "aggregation: all" in out
    assert not found["pooling_guessed"] and "(guessed)" not in out
    for name in ("tables.md", "tables.csv", "tables.tex", "scores.png"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    assert r"\begin{tabular}" in (tmp_path / "out" / "tables.tex").read_text()


def test_a_guessed_pooling_is_named_so(tiny_towers, senteval_sample, tmp_path, capsys):
    where = ["--data_dir", str(senteval_sample), "--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["evaluate", "--model", tiny_towers("bert")[0], "--tasks", "STS12", "--disable_tqdm", *where]) == 0
    assert results(tmp_path / "out")["pooling_guessed"]
    assert "pooling  mean (guessed)" in capsys.readouterr().out
    assert "`mean (guessed)`" in (tmp_path / "out" / "tables.md").read_text()


def test_scores_are_those_of_the_pairs(evaluate, tmp_path):
    assert evaluate("--tasks", "STS12", "STSBenchmark") == 0
    tasks = results(tmp_path / "out")["tasks"]
    with np.load(tmp_path / "out" / "pairs" / "STS12.npz") as stored:
        cosine, gold, subset = stored["cosine"], stored["gold"], stored["subset"]
    assert tasks["STS12"]["n"] == len(gold) == 60 and len(set(subset)) == 5
    assert tasks["STS12"]["spearman"] == pytest.approx(100 * spearmanr(cosine, gold).statistic)
    assert tasks["STS12"]["aggregation"] == "all" and len(tasks["STS12"]["subsets"]) == 5
    part = subset == "MSRvid"
    expected = 100 * spearmanr(cosine[part], gold[part]).statistic
    assert tasks["STS12"]["subsets"]["MSRvid"]["spearman"] == pytest.approx(expected)
    assert tasks["STSBenchmark"]["aggregation"] == "test"
    assert tasks["STSBenchmark"]["spearman"] == tasks["STSBenchmark"]["subsets"]["test"]["spearman"]


def test_aggregation_and_dev_mode(evaluate, tmp_path):
    assert evaluate("--tasks", "STS12", "STSBenchmark", "MR", "--aggregation", "mean", "--mode", "dev") == 0
    tasks = results(tmp_path / "out")["tasks"]
    mean = np.mean([part["spearman"] for part in tasks["STS12"]["subsets"].values()])
    assert tasks["STS12"]["spearman"] == pytest.approx(mean)
    assert tasks["STSBenchmark"]["spearman"] == tasks["STSBenchmark"]["subsets"]["dev"]["spearman"]
    assert tasks["MR"]["acc"] == tasks["MR"]["devacc"]


def test_dev_is_no_average_of_test_sets(evaluate, tmp_path, capsys):
    """SimCSE's script prints STS-B and SICK-R alone in mode dev; a test set that is named enters no average."""
    assert evaluate("--suite", "sts", "--tasks", "STS13", "--mode", "dev") == 0
    found, told = results(tmp_path / "out"), capsys.readouterr().out
    dev = [found["tasks"][name]["subsets"]["dev"]["spearman"] for name in ("STSBenchmark", "SICKRelatedness")]
    assert found["tasks"].keys() == {"STSBenchmark", "SICKRelatedness", "STS13"}
    assert found["averages"]["sts"] == pytest.approx(np.mean(dev))
    assert "nothing is to be chosen by them" in told and "STS12" not in told
    columns, figures = (re.findall(r"[\w.-]+", told.splitlines()[i]) for i in rows_of(told, "STS-B"))
    assert columns == ["STS-B", "SICK-R", "Avg."] and float(figures[2]) == pytest.approx(np.mean(dev), abs=0.01)


def rows_of(told, word):
    at = next(i for i, line in enumerate(told.splitlines()) if word in line)
    return at, at + 2


def test_each_distinct_sentence_is_encoded_once(evaluate, monkeypatch):
    from cacse_trainer.encoding.encoder import SentenceEncoder

    seen: list[str] = []
    original = SentenceEncoder.vectors
    spy = lambda self, sentences, **kw: (seen.extend(sentences), original(self, sentences, **kw))[1]  # noqa: E731
    monkeypatch.setattr(SentenceEncoder, "vectors", spy)
    monkeypatch.setattr("cacse_trainer.evaluation.senteval_suite.SENTENCES_AT_ONCE", 50)  # several groups
    assert (
        evaluate("--tasks", "STS12", "STSBenchmark", "STSBenchmark-finetune", "SICKRelatedness", "SICKEntailment") == 0
    )
    assert len(seen) == len(set(seen))


def test_a_second_call_goes_on(evaluate, tmp_path, monkeypatch, capsys):
    """A kill after the first task: its result stays and is not computed again."""
    import senteval

    ran: list[str] = []
    original = senteval.SE.run

    def run(self, task):
        if task.name == "STS13" and "stop" in ran:
            ran.remove("stop")
            raise KeyboardInterrupt
        ran.append(task.name)
        return original(self, task)

    monkeypatch.setattr(senteval.SE, "run", run)
    ran.append("stop")
    assert evaluate("--tasks", "STS12", "STS13") == 130
    assert list(results(tmp_path / "out")["tasks"]) == ["STS12"]
    assert evaluate("--tasks", "STS12", "STS13") == 0
    assert ran == ["STS12", "STS13"]
    assert set(results(tmp_path / "out")["tasks"]) == {"STS12", "STS13"}


def test_results_of_another_model_are_not_reused(evaluate, tiny_towers, capsys):
    assert evaluate("--tasks", "STS12") == 0
    for flags, model in ((("--pooling", "cls"), None), ((), tiny_towers("bert")[1]), (("--seed", "1"), None)):
        assert evaluate("--tasks", "STS12", *flags, model=model) == 2
        assert "other settings" in capsys.readouterr().err.splitlines()[-1]
    assert evaluate("--tasks", "STS12", "--pooling", "cls", "--overwrite") == 0


def test_two_models_weighted(evaluate, tiny_towers, tmp_path):
    second = tiny_towers("bert")[1]
    assert evaluate("--tasks", "STS12", "--model", second, "--weights", "0.25", "0.75") == 0
    found = results(tmp_path / "out")
    assert found["settings"]["weights"] == [0.25, 0.75] and " + " in found["model"]


def test_contamination(evaluate, tmp_path, senteval_sample, capsys):
    """The training text holds three test sentences of STS12, in another spelling."""
    lines = (senteval_sample / "downstream/STS/STS12-en-test/STS.input.MSRvid.txt").read_text().splitlines()
    stolen = list(dict.fromkeys(line.split("\t")[0] for line in lines))[:3]
    text = tmp_path / "train.txt"
    text.write_text("\n".join(["nothing of it", *(line.upper().replace(" ", "  ") + " !" for line in stolen)]) + "\n")
    assert evaluate("--tasks", "STS12", "STSBenchmark", "TREC", "--train_text", str(text)) == 0
    told = results(tmp_path / "out")["tasks"]["STS12"]["contamination"]
    assert told["occurring"] >= 3 and told["training_text"] == "train.txt"
    with np.load(tmp_path / "out" / "pairs" / "STS12.npz") as stored:
        assert told["n_without"] < len(stored["gold"])
    assert told["score_without"] is not None
    assert "STS12: " in capsys.readouterr().out
    nothing = results(tmp_path / "out")["tasks"]["TREC"]["contamination"]
    assert nothing["occurring"] == 0 and "score_without" not in nothing
    text.write_text("nothing of it\nnor of this\n")  # another text of the same name is counted anew
    assert evaluate("--tasks", "STS12", "--train_text", str(text)) == 0
    assert results(tmp_path / "out")["tasks"]["STS12"]["contamination"]["occurring"] == 0


def test_undefined_scores_are_null(evaluate, tiny_towers, tmp_path, capsys, caplog):
    """A model that gives one vector for everything: every correlation is undefined."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(tiny_towers("bert")[0])
    for weight in model.parameters():
        weight.data.zero_()
    model.save_pretrained(tmp_path / "zero")
    AutoTokenizer.from_pretrained(tiny_towers("bert")[0]).save_pretrained(tmp_path / "zero")
    assert evaluate("--tasks", "STS12", model=str(tmp_path / "zero")) == 0
    assert results(tmp_path / "out")["tasks"]["STS12"]["spearman"] is None
    assert "undefined scores" in caplog.text and " - " in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--tasks", "STS21"], "did you mean 'STS12'|did you mean 'STS1"),
        (["--tasks", "STS12", "--data_dir", "/absent"], "no such folder"),
        ([], "nothing to evaluate"),
        (["--suite", "stss"], "invalid choice"),
        (["--tasks", "STS12", "--weights", "1", "2"], "2 for 1 models"),
        (["--tasks", "STS12", "--pooling", "cls", "mean"], "2 for 1 models"),
        (["--tasks", "STS12", "--pooling", "meen"], "did you mean mean"),
        (["--tasks", "STS12", "--moddel", "x"], "unknown argument"),
        (["--tasks", "STS12", "--train_text", "/absent.txt"], "absent.txt"),
        (["--tasks", "STS12", "--tokens_per_batch", "-5"], "at least 1"),
        (["--tasks", "STS12", "--max_seq_length", "0"], "at least 1"),
        (["--tasks", "STS12", "--device", "gpu"], "device gpu: "),
        (["--tasks", "STS12", "--device", "cuda:99"], "device cuda:99: "),
        (["--tasks", "TREC", "--seed", "-3"], "a seed is a number from 0"),
    ],
)
def test_wrong_input(evaluate, flags, words, capsys):
    assert evaluate(*flags) == 2
    import re

    error = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in error if line.startswith("error:")]) == 1 and re.search(words, error[-1]), error


def test_missing_data_names_the_script(evaluate, tmp_path, capsys, caplog, senteval_sample):
    partial = tmp_path / "partial"
    (partial / "downstream" / "STS").mkdir(parents=True)
    name = "downstream/STS/STS12-en-test"
    (partial / name).symlink_to(senteval_sample / name)
    assert evaluate("--suite", "sts", "--data_dir", str(partial)) == 2
    assert "bash SentEval/data/downstream/download_dataset.sh" in capsys.readouterr().err
    assert evaluate("--suite", "sts", "--data_dir", str(partial), "--skip_missing") == 0
    assert "skipped" in caplog.text and "Avg. of 1" in capsys.readouterr().out
    assert results(tmp_path / "out")["averages"]["sts"] is None


def test_compare(evaluate, tmp_path, capsys, tiny_towers):
    assert evaluate("--suite", "sts", "--output_dir", str(tmp_path / "a")) == 0
    assert evaluate("--suite", "sts", "--output_dir", str(tmp_path / "b"), model=tiny_towers("bert")[1]) == 0
    capsys.readouterr()
    output = tmp_path / "differences.json"
    flags = ["--draws", "100", "--output", str(output)]
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b" / "results.json"), *flags]) == 0
    table, found = capsys.readouterr().out, json.loads(output.read_text())
    assert "sts Avg." in table and "95 % interval" in table
    row = found["STS12"]
    scores = [results(tmp_path / name)["tasks"]["STS12"]["spearman"] for name in "ab"]
    assert row["difference"] == pytest.approx(scores[1] - scores[0])
    assert row["low"] < row["difference"] < row["high"]
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "absent")]) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_give_the_same_figures(evaluate, tiny_towers, senteval_sample, tmp_path):
    assert evaluate("--tasks", "STS12", "STSBenchmark", "MR", "--mode", "fasttest") == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command += ["-m", "cacse_trainer.cli.evaluate", "--model", tiny_towers("bert")[0], "--pooling", "mean"]
    command += ["--tasks", "STS12", "STSBenchmark", "MR", "--mode", "fasttest", "--data_dir", str(senteval_sample)]
    command += ["--output_dir", str(tmp_path / "two"), "--disable_tqdm", "--device", "cpu"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "SentEval")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = results(tmp_path / "out"), results(tmp_path / "two")
    assert done.stdout.count("results.json") == 1
    for name, key in (("STS12", "spearman"), ("STSBenchmark", "spearman"), ("MR", "acc")):
        assert two["tasks"][name][key] == pytest.approx(one["tasks"][name][key], abs=0.3)
