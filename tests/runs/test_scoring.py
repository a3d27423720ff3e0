"""``do_train false``, as the originals' scripts have it: what is there is scored, nothing is trained or written."""

import pytest
from scipy.stats import spearmanr

from cacse_trainer import SentenceEncoder, load_pairs
from cacse_trainer.cli import adapt, distill, instruct, train
from cacse_trainer.cli.common import run


@pytest.fixture
def flags(tmp_path, masked_lm, text_file, dev_file):
    return [
        *("--model", masked_lm, "--train_file", str(text_file), "--dev_file", f"mine={dev_file}", "--max_steps", "2"),
        *("--eval_steps", "2", "--per_device_train_batch_size", "8", "--bf16", "false", "--use_cpu", "true"),
        *("--disable_tqdm", "true", "--output_dir", str(tmp_path / "run")),
    ]


def states(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_scored_and_stays_as_it_is(flags, tmp_path, dev_file, capsys):
    assert run(train.main, flags) == 0
    before = states(tmp_path / "run")
    capsys.readouterr()
    assert run(train.main, [*flags, "--do_train", "0", "--eval_sets", f"other={dev_file}"]) == 0
    told = capsys.readouterr().out
    encoder, pairs = SentenceEncoder(tmp_path / "run"), load_pairs(str(dev_file))
    cosines = [encoder.similarity(a, b) for a, b in zip(pairs["sentence1"], pairs["sentence2"], strict=True)]
    expected = 100 * spearmanr(cosines, pairs["score"]).statistic
    for name in ("mine", "other"):
        assert float(told.partition(f"{name}_spearman: ")[2].split()[0]) == pytest.approx(expected, abs=0.01)
    assert told.startswith("scored run (pooling ") and "nothing was trained" in told
    assert run(train.main, [*flags, "--do_train", "0", "--pooling", "mean"]) == 0
    told, encoder = capsys.readouterr().out, SentenceEncoder(tmp_path / "run", "mean")
    cosines = [encoder.similarity(a, b) for a, b in zip(pairs["sentence1"], pairs["sentence2"], strict=True)]
    by_mean = 100 * spearmanr(cosines, pairs["score"]).statistic
    assert abs(by_mean - expected) > 0.1 and told.startswith("scored run (pooling mean)")
    assert float(told.partition("mine_spearman: ")[2].split()[0]) == pytest.approx(by_mean, abs=0.01)
    for flag in (["--adapter", "a"], ["--prompt_template", "It is {text}"], ["--bidirectional_start_layer", "1"]):
        assert run(train.main, [*flags, "--do_train", "0", *flag]) == 2
        assert f"{flag[0][2:]} has no effect with do_train false here" in capsys.readouterr().err
    assert states(tmp_path / "run") == before


@pytest.mark.parametrize(("pooling", "read"), [(["cls"], "cls_before_pooler"), (["mean"], "mean")])
def test_without_a_run_the_start_is_scored_and_no_folder_made(flags, tmp_path, capsys, pooling, read):
    more = ["--mlp_only_train", "true"] if pooling == ["cls"] else []
    assert run(train.main, [*flags, "--do_train", "false", "--pooling", *pooling, *more]) == 0
    assert f"(pooling {read})" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_rows_that_were_held_out_are_scored(flags, tmp_path, capsys):
    rows = [f"the man {number} runs,a man {number} walks" for number in range(80)]
    (tmp_path / "mine.csv").write_text("\n".join(["anchor,positive", *rows]) + "\n")
    own = [*flags[:2], "--train_file", str(tmp_path / "mine.csv"), *flags[6:], "--held_out_rows", "40"]
    assert run(train.main, [*own, "--do_train", "0"]) == 0
    told = capsys.readouterr().out
    assert "mine_dev_ndcg@10: " in told and "mine_test_ndcg@10: " in told and not (tmp_path / "run").exists()


def test_towers_and_students_are_scored(flags, tiny_towers, capsys):
    (first, second, _), rest = tiny_towers("bert"), flags[2:]
    assert run(train.main, [*rest, "--tower_a", first, "--tower_b", second, "--do_train", "0"]) == 0
    assert "nothing was trained" in capsys.readouterr().out
    assert run(distill.main, [*rest, "--student", first, "--teacher", second, "--do_train", "0"]) == 0
    assert "(pooling cls_before_pooler)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--do_eval", "false"], "that is nothing to do"),
        (["--evaluation", "none"], "there is none"),
        (["--overwrite_output_dir"], "overwrite_output_dir has no effect with do_train false"),
        (["--push_to_hub", "--hub_model_id", "a/b"], "push_to_hub has no effect with do_train false"),
        (["--do_predict"], "name held-out sets with test_file"),
    ],
)
def test_what_has_no_meaning_then_is_refused(flags, capsys, more, words):
    assert run(train.main, [*flags, "--do_train", "0", *more]) == 2
    assert words in capsys.readouterr().err


def test_do_eval_false_scores_no_dev_set(flags, tmp_path, capsys):
    assert run(train.main, [*flags, "--do_eval", "false", "--export", "false"]) == 0
    assert "spearman" not in capsys.readouterr().out


@pytest.mark.parametrize(("command", "given"), [(adapt, ["--text", "README.md"]), (instruct, ["--stages", "train"])])
def test_commands_that_only_train_refuse_it(command, given, tmp_path, masked_lm, capsys):
    where = ["--model", masked_lm, "--output_dir", str(tmp_path / "run"), "--use_cpu", "true"]
    assert run(command.main, [*given, *where, "--do_train", "0"]) == 2
    assert "do_train" in capsys.readouterr().err
