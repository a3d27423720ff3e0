"""The command line as a whole: help, examples, quiet and JSON modes, shell completion."""

import json
import shlex
import shutil
import subprocess

import pytest
import torch

from cacse_trainer.cli import compare, completion, main, train
from cacse_trainer.cli.common import run
from cacse_trainer.cli.encoders import dtype_of
from cacse_trainer.errors import UserError
from cacse_trainer.runs.run import repeating_command
from cacse_trainer.settings.resources import recipe_names


def test_the_help_tells_of_every_command_once(capsys):
    assert main.main(["--help"]) == 0
    said = capsys.readouterr().out
    listed = [name for names in main.GROUPS.values() for name in names]
    assert sorted(listed) == sorted(main.COMMANDS) == sorted(main.EXAMPLES)
    for name, what in main.COMMANDS.items():
        assert said.count(f"  {what}\n") == 1 and f"cacse-trainer {main.EXAMPLES[name]}\n" in said


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_example_is_one_that_its_command_takes(name):
    command, *arguments = shlex.split(main.EXAMPLES[name])
    assert command == name
    made = completion.parser_of(name)
    _, unknown = made.parse_known_args(arguments)
    assert not unknown
    assert {"--quiet", "--json"} <= set(made._option_string_actions)
    with pytest.raises((UserError, SystemExit)):  # an abbreviation or a misspelt flag is no flag
        made.parse_args([*arguments, "--no_such_flag"])


def test_exit_codes_without_a_command(capsys):
    assert main.main([]) == 2
    assert main.main(["trian"]) == 2
    assert "did you mean train?" in capsys.readouterr().err
    assert main.main(["--version"]) == 0


@pytest.mark.parametrize("name", ["encode", "search", "demo", "evaluate"])
def test_bf16_of_encoders_is_spelt_as_in_training(name):
    made = completion.parser_of(name)
    _, *needed = shlex.split(main.EXAMPLES[name])
    for flags, dtype in ([], torch.float32), (["--bf16"], torch.bfloat16), (["--bf16", "false"], torch.float32):
        assert dtype_of(made.parse_args([*needed, *flags]), "cpu") == dtype
    assert made.parse_args([*needed, "--bf16", "auto"]).bf16 == "auto"
    with pytest.raises(UserError, match="bf16 must be auto, true or false"):
        dtype_of(made.parse_args([*needed, "--bf16", "maybe"]), "cpu")


def results(folder, **scores) -> str:
    folder.mkdir()
    tasks = {name: {"spearman": score} for name, score in scores.items()}
    (folder / "results.json").write_text(json.dumps({"model": "m", "pooling": "cls", "tasks": tasks}))
    return str(folder)


def test_the_result_as_json_and_nothing_else(tmp_path, capsys):
    a, b = results(tmp_path / "a", STS12=70.0), results(tmp_path / "b", STS12=72.5)
    assert run(compare.main, [a, b, "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["STS12"]["difference"] == 2.5
    assert run(compare.main, [a, b]) == 0
    assert "| STS12 |" in capsys.readouterr().out
    assert run(compare.main, [a, str(tmp_path / "none"), "--json"]) == 2
    said = capsys.readouterr()
    assert "no such file" in json.loads(said.out)["error"] and said.err.startswith("error: ")


def a_run(tmp_path, tiny_towers, text_file, dev_file, *flags) -> list[str]:
    a, b, _ = tiny_towers("bert")
    return [
        *("--tower_a", a, "--tower_b", b, "--cascade_start_layer", "2", "--constraint_layers", "1"),
        *("--train_file", str(text_file), "--dev_file", f"stsb={dev_file}", "--max_steps", "2", "--eval_steps", "1"),
        *("--eval_strategy", "steps", "--save_strategy", "no", "--per_device_train_batch_size", "8", "--use_cpu"),
        *("--logging_steps", "1", "--report_to", "none", "--output_dir", str(tmp_path / "run"), *flags),
    ]


def test_a_run_tells_its_progress(tmp_path, tiny_towers, text_file, dev_file, capsys, caplog):
    with caplog.at_level("INFO", logger="cacse_trainer"):
        assert run(train.main, a_run(tmp_path, tiny_towers, text_file, dev_file)) == 0
    lines = [message for message in caplog.messages if message.startswith("step ")]
    assert lines[0].startswith("step 0/2  stsb ") and "left]" not in lines[0]
    losses = [line for line in lines if "  loss " in line]
    assert len(losses) == 2 and "(tower_a " in losses[0] and "s a step, " in losses[0]
    assert "step 2/2  stsb " in lines[-1] and "left]" not in lines[-1]
    said = capsys.readouterr()
    assert "{'" not in said.out + said.err and "report.html" in said.out
    page = (tmp_path / "run" / "report.html").read_text()
    assert "part: cascade" in page and "cacse-trainer train " in page and "--tower_a" in page


def test_quiet_and_json_of_a_run(tmp_path, tiny_towers, text_file, dev_file, capsys):
    flags = ("--quiet", "--json")
    assert run(train.main, a_run(tmp_path, tiny_towers, text_file, dev_file, *flags)) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["steps"] == 2 and set(found["exported"]) == {"tower_a", "tower_b", "ensemble"}
    assert not any(line.startswith(("training ", "step ", "exported ")) for line in said.err.splitlines())


def test_the_command_that_repeats_a_run():
    """With the launcher of several processes."""
    words = ["cacse-trainer", "train", "--train_file", "my text.txt"]
    assert repeating_command(words, 1) == "cacse-trainer train --train_file 'my text.txt'"
    assert repeating_command(words, 4) == (
        "torchrun --nproc_per_node 4 -m cacse_trainer.cli.train --train_file 'my text.txt'"
    )


@pytest.fixture(scope="module")
def bash_script():
    return completion.script("bash")


def complete(bash_script, *words: str) -> set[str]:
    """What a real bash offers for the last of the words."""
    script = f"""{bash_script}
COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_cacse_trainer; echo "${{COMPREPLY[@]}}\""""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_completion_knows_flags_recipes_and_choices(bash_script):
    named = complete(bash_script, "cacse-trainer", "train", "--")
    assert {"--learning_rate", "--quiet", "--json"} <= named and not any("-" in flag[2:] for flag in named)
    found = {name: complete(bash_script, "cacse-trainer", name, "--config", "") for name in main.COMMANDS}
    assert "cacse/bert_base" in found["train"] and "distill/cacse_bert" not in found["train"]
    assert set().union(*found.values()) >= set(recipe_names())
    assert complete(bash_script, "cacse-trainer", "completion", "") == {"bash", "zsh", "fish"}


def test_completion_in_bash(bash_script):
    assert complete(bash_script, "cacse-trainer", "tr") == {"train"}
    assert complete(bash_script, "cacse-trainer", "evaluate", "--mode", "") == {"test", "dev", "fasttest"}
    assert "simcse/minilm" in complete(bash_script, "cacse-trainer", "train", "--config", "simcse/")
    towers = {"--tower_a", "--tower_b", "--tower_dropout"}
    assert complete(bash_script, "cacse-trainer", "train", "--tower_") == towers
    assert complete(bash_script, "cacse-trainer", "train", "--use_cpu", "--dev_file", "a", "--tower_") == towers
    assert complete(bash_script, "cacse-trainer", "train", "--train_file", "") == set()  # files, by the shell itself
    assert "complete -o bashdefault -o default -F _shtab_cacse_trainer cacse-trainer" in bash_script


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_in_other_shells(shell, tmp_path):
    """All flags and recipes are in the script, files where no choices are known, and the shell reads it."""
    script = completion.script(shell)
    flags = {"zsh": ("--learning_rate", ":_files"), "fish": ("-l learning_rate", "__fish_complete_path")}[shell]
    assert all(word in script for word in (*flags, *recipe_names(), *main.COMMANDS))
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(script)
    subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)
