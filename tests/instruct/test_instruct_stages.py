"""`cacse-trainer instruct`: what is skipped, done anew, refused ahead; the comparison's rows; the whole road."""

import json
import shutil
import sys

import pytest
import yaml

from cacse_trainer.cli import instruct
from cacse_trainer.cli.common import run
from cacse_trainer.files import RECORD
from cacse_trainer.instruct.evaluation import cells, compare
from cacse_trainer.instruct.stages import PROOF
from cacse_trainer.pipeline import runner
from cacse_trainer.runs.folder import RUN
from cacse_trainer.settings.recipes import parse_run
from cacse_trainer.settings.resources import find_recipe, recipe_names

LEFT = {
    "data": {"records": {"train": 9}, "scores": "gold", "sets": {}},
    "train": {
        **{"steps": 1, "records": 9, "trainable_parameters": 1, "parameters": 2},
        **{"baseline": 2.0, "kept": 1.0, "kept_step": 1},
    },
    "merge": {"parameters": 1, "dtype": "float32", "merge_difference": 0.0},
    "evaluate": {"rows": []},
}


@pytest.fixture
def command(tmp_path, tiny_llama, tiny_towers, dev_file):
    """The arguments of a small run; its output folder is tmp_path/out."""
    pytest.importorskip("peft")
    pytest.importorskip("lm_eval")
    return [
        *("--pairs", f"mine={dev_file}", "--validation_share", "0.25", "--score_decimals", "0"),
        *("--encoder", tiny_towers("bert")[0], "--encoder_pooling", "mean"),
        *("--model", tiny_llama, "--lora_target_modules", "q_proj", "v_proj", "lm_head"),
        *("--max_steps", "6", "--per_device_train_batch_size", "6", "--learning_rate", "2e-2"),
        *("--eval_steps", "3", "--bf16", "false"),
        *("--use_cpu", "true", "--disable_tqdm", "true", "--output_dir", str(tmp_path / "out")),
        *("--tasks", "instruct_scores", "--lm_eval_device", "cpu"),
    ]


@pytest.fixture
def ran(monkeypatch):
    """The stages that were run, instead of starting their processes."""
    names = []

    def fake(stage, root, *, resume):
        names.append(stage.name)
        assert stage.flags(root)[-2:] == ["--run_stage", stage.name]
        stage.folder.mkdir(parents=True, exist_ok=True)
        (stage.folder / PROOF[stage.name]).write_text(json.dumps(LEFT[stage.name]))
        (stage.folder / (RUN if stage.name == "train" else RECORD)).write_text(json.dumps([PROOF[stage.name]]))

        return ["true"]

    monkeypatch.setattr(runner, "command_line", fake)
    monkeypatch.setattr(runner, "SECONDS_BETWEEN_LOOKS", 0.01)
    return names


def run_again(command, ran, *more) -> list[str]:
    ran.clear()
    assert run(instruct.main, [*command, *more]) == 0
    return list(ran)


def test_what_is_done_anew(command, ran, dev_file, tmp_path, capsys):
    assert run_again(command, ran) == ["data", "train", "merge", "evaluate"]
    assert "validation loss 2.0000 before, 1.0000 at step 1" in capsys.readouterr().out
    assert run_again(command, ran) == []
    # settings that change nothing of the adapter
    assert run_again(command, ran, "--logging_steps", "3", "--disable_tqdm", "false") == []
    # each setting redoes its stage and those after it
    for flags, first in (
        (["--num_fewshot", "2"], "evaluate"),
        (["--merged_dtype", "float32"], "merge"),
        (["--lora_r", "4"], "train"),
        (["--learning_rate", "1e-3"], "train"),
        (["--scores", "gold"], "data"),
    ):
        order = ["data", "train", "merge", "evaluate"]
        assert run_again(command, ran, *flags) == order[order.index(first) :], flags
        run_again(command, ran)
    # a changed file of pairs, and a task file
    dev_file.write_text(dev_file.read_text() + "a red dog\ta blue dog\t3\n")
    assert run_again(command, ran)[0] == "data"
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    with_tasks = ["--include_path", str(tasks)]
    assert run_again(command, ran, *with_tasks) == ["evaluate"]
    (tasks / "mine.yaml").write_text("task: mine\n")
    assert run_again(command, ran, *with_tasks) == ["evaluate"]
    assert run_again(command, ran, *with_tasks, "--quiet") == []


@pytest.mark.parametrize("name", ["train/README.md", "train/vocab.txt", "merge/README.md", "train/export/.mine"])
def test_a_stage_is_done_anew_only_where_all_is_its_own(command, ran, tmp_path, capsys, name):
    run_again(command, ran)
    logs, mine = tmp_path / "out" / "train" / "runs" / "old" / "events.out.tfevents.1", tmp_path / "out" / name
    for path in (logs, mine):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    changed = [*command, "--lora_r", "5"]
    assert run(instruct.main, changed) == 2
    assert f"did not write {name.partition('/')[2]}" in capsys.readouterr().err and mine.read_text() == "mine"
    mine.unlink()
    assert run_again(changed, ran) == ["train", "merge", "evaluate"] and logs.read_text() == "mine"


def test_stages_alone(command, ran, tmp_path, capsys):
    assert run_again(command, ran, "--stages", "data") == ["data"]
    assert run(instruct.main, [*command, "--stages", "merge"]) == 2
    assert "merge needs train, which is not finished" in capsys.readouterr().err
    assert run_again(command, ran, "--stages", "train", "merge") == ["train", "merge"]
    capsys.readouterr()
    assert run(instruct.main, [*command, "--plan", "true", "--lora_r", "3", "--stages", "data", "train"]) == 0
    planned = capsys.readouterr().out.split("\n")
    assert [line.split(maxsplit=1)[1] for line in planned[:4]] == ["skip", "redo", "not chosen", "not chosen"]
    # an unfinished stage goes on
    (tmp_path / "out" / "train" / "training_report.json").unlink()
    assert run(instruct.main, [*command, "--plan", "true"]) == 0
    assert "train     resume" in capsys.readouterr().out
    changed = [*command, "--lora_r", "3", "--stages", "data", "train"]
    for more, what in (([], "redo"), (["--resume_with_changes"], "resume")):
        assert run(instruct.main, [*changed, *more, "--plan", "true"]) == 0
        assert f"train     {what}" in capsys.readouterr().out
    assert run_again(changed, ran, "--resume_with_changes") == ["train"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tasks"], "expected at least one argument"),
        (["--stages", "dta"], "stages must be one of data, train, merge, evaluate"),
        (["--include_path", "nowhere"], "include_path nowhere: no such folder"),
        (["--pairs", "mine"], "give stsb, sickr or name=path"),
        (["--model", "./nowhere"], "model ./nowhere"),
        (["--learning_rate", "-1"], "learning_rate must be a number from 0"),
        (["--processes", "0"], "processes must be a number from 1"),
        (["--lora_rank", "3"], "unknown argument '--lora_rank'"),
    ],
)
def test_wrong_flags_are_told_before_anything_runs(command, ran, capsys, flags, words):
    assert run(instruct.main, [*command, *flags]) == 2
    assert words in capsys.readouterr().err and not ran


def test_missing_libraries_are_told_before_anything_runs(command, ran, monkeypatch, capsys):
    """Each is only needed by its own stages."""
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert run(instruct.main, command) == 2
    assert "pip install 'lm-eval[hf]'" in capsys.readouterr().err and not ran
    monkeypatch.setitem(sys.modules, "peft", None)
    assert run(instruct.main, [*command, "--stages", "data", "train"]) == 2
    assert "pip install peft" in capsys.readouterr().err and not ran
    assert run_again(command, ran, "--stages", "data") == ["data"]


def test_a_stage_in_this_process(command, tmp_path, capsys):
    """As its own process starts it: the data set is there, and the next stage finds what it needs."""
    assert run(instruct.main, [*command, "--run_stage", "data"]) == 0
    first = json.loads((tmp_path / "out" / "data" / "train.jsonl").read_text().splitlines()[0])
    assert list(first) == ["instruction", "input", "output"] and first["output"] in set("012345")
    assert run(instruct.main, [*command, "--run_stage", "evaluate"]) == 2
    assert "run the stage merge first" in capsys.readouterr().err


def test_the_comparisons_rows():
    base = {
        "results": {
            "arc": {"alias": "arc", "acc,none": 0.25, "acc_stderr,none": 0.01, "sample_len": 9},
            "words": {"word_perplexity,none": 2e6, "word_perplexity_stderr,none": "N/A"},
        },
        "higher_is_better": {"arc": {"acc": True}, "words": {"word_perplexity": False}},
    }
    tuned = {
        "results": {
            "arc": {"alias": "arc", "acc,none": 0.5, "acc_stderr,none": 0.02},
            "words": {"word_perplexity,none": float("nan"), "word_perplexity_stderr,none": "N/A"},
        }
    }
    rows = compare(base, tuned)
    assert rows == [
        {
            **{"task": "arc", "metric": "acc", "filter": "none", "higher_is_better": True},
            **{"base": 0.25, "base_stderr": 0.01, "tuned": 0.5, "tuned_stderr": 0.02, "difference": 0.25},
        },
        {
            **{"task": "words", "metric": "word_perplexity", "filter": "none", "higher_is_better": False},
            **{"base": 2e6, "base_stderr": None, "tuned": None, "tuned_stderr": None, "difference": None},
        },
    ]
    shown = [" | ".join(cells(row)) for row in rows]
    assert "arc | acc ↑ | 0.2500 | 0.0100 | 0.5000 | 0.0200 | +0.2500" in shown
    assert "words | word_perplexity ↓ | 2.000e+06 | - | - | - | -" in shown


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("instruct/")])
def test_shipped_recipes(name, tmp_path):
    _, data, model, evaluation, training = parse_run(instruct.parser(), ["--config", name]).groups
    assert data.scores == "encoder" and model.model is not None and "instruct_scores" in evaluation.tasks
    assert training.load_best_model_at_end and training.save_total_limit == 1
    assert f"--config {name}" in find_recipe(name).read_text().split("\n\n")[0]


@pytest.mark.slow
def test_the_whole_road(command, tmp_path, capsys):
    """Every stage in its own process, with a task of the user's own; broken off and taken up again."""
    transformers = pytest.importorskip("transformers")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    rows = [
        {"question": f"the {word} dog is", "choices": ["red", "blue"], "gold": i % 2} for i, word in enumerate("abcd")
    ]
    (tasks / "colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "colours",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tasks / "colours.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc"}],
    }
    (tasks / "colours.yaml").write_text(yaml.safe_dump(task))
    words = [*command, "--tasks", "colours", "instruct_scores", "--include_path", str(tasks)]
    assert run(instruct.main, [*words, "--tasks", "colours", "no_such_task_at_all"]) == 2
    assert "has no task 'no_such_task_at_all'" in capsys.readouterr().err
    root = tmp_path / "out"
    assert not root.exists()

    assert run(instruct.main, [*words, "--stages", "data", "train"]) == 0
    (root / "train" / "training_report.json").unlink()
    assert run(instruct.main, [*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "going on from" in (root / "train.log").read_text()
    assert said["train"]["kept"] < said["train"]["baseline"]
    report = json.loads((root / "evaluate" / "results.json").read_text(), parse_constant=pytest.fail)
    found = {(row["task"], row["metric"]): row for row in report["rows"]}
    assert set(found) == {("colours", "acc"), ("instruct_scores", "acc"), ("instruct_scores", "perplexity")}
    assert found["instruct_scores", "perplexity"]["difference"] < 0
    for row in report["rows"]:
        assert row["difference"] == pytest.approx(row["tuned"] - row["base"])
    assert "| colours | acc ↑ |" in (root / "evaluate" / "table.md").read_text()
    model = transformers.AutoModelForCausalLM.from_pretrained(root / "merge")
    assert type(model).__name__ == "LlamaForCausalLM"
    # a model that was measured is not measured again
    (root / "evaluate" / "results.json").unlink()
    shutil.rmtree(root / "train" / "checkpoint-6", ignore_errors=True)
    assert run(instruct.main, words) == 0
    log = (root / "evaluate.log").read_text()
    assert log.count("evaluating the base model") == log.count("evaluating the tuned model") == 1
    out = capsys.readouterr().out
    assert "Spearman with gold" in out and "| instruct_scores |" in out
