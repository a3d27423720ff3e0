"""Every recipe parses, and the list of recipes is the folder's; wrong recipes are refused with the nearest key."""

import pytest
import yaml

from cacse_trainer.errors import UserError
from cacse_trainer.settings.arguments import CacseTrainingArguments, DataArguments, ModelArguments
from cacse_trainer.settings.command_line import OneLineParser
from cacse_trainer.settings.recipes import RecipeParser, parse_run, read_recipe
from cacse_trainer.settings.resources import find_recipe, recipe_names, resolve_resource
from tests.conftest import ROOT

KINDS = [ModelArguments, DataArguments, CacseTrainingArguments]


def parse(*arguments: str):
    return parse_run(RecipeParser(KINDS, prog="cacse-trainer train"), arguments).groups


def training_recipes() -> list[str]:
    return [name for name in recipe_names() if not name.startswith(("distill/", "pipeline/", "instruct/"))]


def test_the_list_of_recipes_is_the_folder():
    files = {
        path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in (ROOT / "configs").rglob("*.yaml")
    }
    assert set(recipe_names()) == {name for name in files if not name.startswith("accelerate/")}
    assert {"quickstart", "cacse/bert_base", "cacse/roberta_base", "cacse/minilm"} <= set(recipe_names())


@pytest.mark.parametrize("name", training_recipes())
def test_every_recipe_parses_and_explains_itself(name, tmp_path):
    parsed = parse_run(RecipeParser(KINDS, prog="train"), ["--config", name, "--output_dir", str(tmp_path)])
    _model, data, training = parsed.groups
    assert parsed.recipe == name
    assert training.load_best_model_at_end and training.save_steps == training.eval_steps
    assert training.max_steps > 0 or training.num_train_epochs > 0
    assert data.max_seq_length > 0
    header = find_recipe(name).read_text().split("\n\n")[0]
    assert (header.startswith("# ") and "run_" in header) or "cacse-trainer" in header


def test_published_cacse_settings():
    for name, start, layers, dropout in (("bert_base", 7, 4, [0.15, 0.15]), ("roberta_base", 11, 1, [0.10, 0.15])):
        model, data, training = parse("--config", f"cacse/{name}")
        assert (model.cascade_start_layer, model.constraint_layers, model.tower_dropout) == (start, layers, dropout)
        assert (model.cascade_dropout, model.constraint_dropout, model.contrastive_temperature) == (0.2, 0.1, 0.05)
        assert (training.learning_rate, training.per_device_train_batch_size, data.max_seq_length) == (1e-6, 64, 64)
        assert (training.weight_decay, training.decay_all_parameters, training.max_grad_norm) == (0.01, True, 0)
        assert str(training.lr_scheduler_type.value) == "constant" and training.eval_steps == 100


def test_published_tncse_settings():
    for name, dropout in (("bert_base", 0.00025), ("roberta_base", 0.0175)):
        model, data, training = parse("--config", f"tncse/{name}")
        assert model.tower_dropout == [dropout, dropout]
        assert (model.norm_constraint_weight, model.cross_loss_weight, model.contrastive_temperature) == (1, 1, 0.05)
        assert (training.learning_rate, training.per_device_train_batch_size, data.max_seq_length) == (1e-6, 64, 64)
        assert (training.weight_decay, training.decay_all_parameters, training.max_grad_norm) == (0.01, True, 0)
        assert str(training.lr_scheduler_type.value) == "constant" and training.eval_steps == 100


def test_recipes_of_the_cacse_family_say_what_their_text_held():
    family = [
        name for name in recipe_names() if name.startswith(("cacse/", "tncse/", "distill/cacse", "distill/tncse"))
    ]
    assert len(family) >= 14
    for name in family:
        assert "held SICK-R's sentences" in read_recipe(find_recipe(name))["card_note"], name


def test_flags_win_over_the_recipe():
    _, _, training = parse("--config", "cacse/bert_base", "--learning_rate", "2e-5", "--max_steps", "3")
    assert training.learning_rate == 2e-5 and training.max_steps == 3


def test_lists_on_the_command_line():
    model, data, _ = parse("--tower_dropout", "0.1", "0.2", "--dev_file", "a=x", "b=y", "--output_dir", "out")
    assert model.tower_dropout == [0.1, 0.2] and data.dev_file == ["a=x", "b=y"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rat: 3e-5", "unknown key 'learning_rat'; did you mean learning_rate?"),
        ("learning_rate: fast", "learning_rate: 'fast' is no float"),
        ("learning_rate: [1e-5]", "learning_rate: takes one value"),
        ("max_steps: 2.5", "max_steps: 2.5 is no int"),
        ("save_strategy: sometimes", "none of no, steps, epoch, best"),
        ("tower_dropout: {a: 1}", "tower_dropout: takes a list"),
        ("bf16: maybe", "bf16 must be auto, true or false"),
        ("length_buckets: many", "length_buckets must be auto or a number"),
        ("streaming: perhaps", "streaming"),
        ("- a\n- b", "must be a mapping"),
        ("a: [1", "recipe"),
        ("learning_rate: null", "learning_rate: takes a value, got null"),
        ("max_seq_length:", "max_seq_length: takes a value, got null"),
        ("config: other", "unknown key 'config'"),
    ],
)
def test_wrong_recipes(tmp_path, text, words):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        parse("--config", str(path), "--output_dir", str(tmp_path))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_yaml_numbers_are_numbers(tmp_path):
    """YAML reads 3e-5 as a string; as a flag's default it becomes the number."""
    assert yaml.safe_load("x: 3e-5") == {"x": "3e-5"}
    path = tmp_path / "recipe.yaml"
    path.write_text("learning_rate: 3e-5\nmax_steps: 4.0\nstreaming: yes\nper_device_train_batch_size: 8\n")
    _, data, training = parse("--config", str(path), "--output_dir", str(tmp_path))
    assert training.learning_rate == 3e-5 and training.max_steps == 4 and data.streaming is True


def test_resources(tmp_path):
    assert resolve_resource("bert-base-uncased") == "bert-base-uncased"
    assert resolve_resource("sample:dev.tsv").endswith("dev.tsv")
    with pytest.raises(UserError, match="pip install no-such-thing"):
        resolve_resource("package:no_such_thing/model")
    with pytest.raises(UserError, match="has no nothing"):
        resolve_resource("package:cacse_trainer/nothing")


def test_yaml_no_and_null_where_they_are_meant(tmp_path):
    """YAML reads `no` as false, which is the strategy called no; null stands for a field that may be empty."""
    path = tmp_path / "recipe.yaml"
    path.write_text("save_strategy: no\neval_strategy: no\nconstraint_dropout: null\n")
    model, _, training = parse("--config", str(path), "--output_dir", str(tmp_path))
    assert training.save_strategy.value == "no" and model.constraint_dropout is None


def test_without_saving_no_best_model_is_asked_for(tmp_path, caplog):
    flags = [
        "--config",
        "simcse/minilm",
        "--evaluation",
        "none",
        "--save_strategy",
        "no",
        "--output_dir",
        str(tmp_path),
    ]
    with caplog.at_level("INFO", logger="cacse_trainer"):
        args = parse(*flags)[2]
    assert not args.load_best_model_at_end and "load_best_model_at_end is off" in caplog.text


@pytest.mark.parametrize(("every", "saved"), [("20", 20), ("25", 50)])
def test_eval_steps_alone_moves_save_steps(tmp_path, every, saved):
    """The best step must be one that was saved; a recipe's own save_steps stays where it fits."""
    path = tmp_path / "recipe.yaml"
    path.write_text("eval_steps: 50\nsave_steps: 50\n")
    args = parse("--config", str(path), "--eval_steps", every, "--output_dir", str(tmp_path))[2]
    assert (args.eval_steps, args.save_steps) == (int(every), saved) and args.load_best_model_at_end


def test_bars_on_a_terminal_only(tmp_path, monkeypatch):
    for is_terminal in (True, False):
        monkeypatch.setattr("sys.stderr.isatty", lambda shown=is_terminal: shown)
        assert parse("--output_dir", str(tmp_path))[2].disable_tqdm is not is_terminal
        settings = OneLineParser().parse_args(["--quiet"] if not is_terminal else [])
        assert vars(settings).get("disable_tqdm", False) is not is_terminal
