"""Settings and methods: a useless flag is refused, a recipe's field that a flag makes useless is dropped."""

import pytest

from cacse_trainer.errors import UserError
from cacse_trainer.runs.methods import BELONGS_TO, CACSE, TNCSE, check_hard_negatives, check_used, method_of
from cacse_trainer.settings.arguments import CacseTrainingArguments, DataArguments, ModelArguments
from cacse_trainer.settings.recipes import Parsed, RecipeParser, parse_run
from cacse_trainer.settings.resources import recipe_names

SETTINGS = [ModelArguments, DataArguments, CacseTrainingArguments]


def parsed(*flags: str) -> Parsed:
    return parse_run(RecipeParser(SETTINGS, prog="cacse-trainer train"), flags)


def training_recipes() -> list[str]:
    names = [name for name in recipe_names() if not name.startswith(("distill/", "pipeline/", "instruct/"))]
    assert len(names) > 10
    return names


def test_every_setting_in_the_table_is_one_and_its_help_says_the_same():
    fields = {field.name: field.metadata.get("help", "") for field in ModelArguments.__dataclass_fields__.values()}
    assert set(BELONGS_TO) <= set(fields)
    for name, owners in BELONGS_TO.items():
        if set(owners) <= {CACSE, TNCSE}:
            assert fields[name].startswith(f"{', '.join(owners)}: "), name


@pytest.mark.parametrize(
    ("flags", "method"),
    [
        ("--config tncse/minilm", TNCSE),
        ("--config cacse/minilm", CACSE),
        ("--config tncse/minilm --norm_constraint_weight 0", TNCSE),
    ],
)
def test_a_weight_of_the_constraint_asks_for_tncse(flags, method):
    assert method_of(parsed(*flags.split()).groups[0]) == method


@pytest.mark.parametrize("name", training_recipes())
def test_no_recipe_holds_what_nothing_reads(name):
    found = parsed("--config", name)
    before = list(found.from_recipe)
    found.groups[0].pooling = found.groups[0].pooling or "cls"  # of a start that states none
    check_used(found)
    assert found.from_recipe == before


@pytest.mark.parametrize(
    ("flags", "dropped"),
    [
        ("--config simcse/minilm --pooling mean", {"mlp_only_train": None}),
        ("--config simcse/minilm --pooling mean --mlp_only_train false", {"mlp_only_train": None}),
        ("--config diffcse/minilm --pooling mean", {"mlp_only_train": None, "projection": None}),
        ("--config decoder/angle_bert_base --objective info_nce", {"angle_weight": 0.02, "ranking_scale": 20.0}),
        ("--config decoder/tiny --adapter a", {"lora_r": None, "lora_target_modules": None}),
        ("--config cacse/bert_base --norm_constraint_weight 1", {"cascade_start_layer": 7, "constraint": None}),
        ("--config tncse/minilm --model m", {"norm_constraint_weight": None, "tower_dropout": None}),
        ("--config decoder/tiny --generator g", {"lora_r": None, "prompt_template": None, "append_eos": False}),
    ],
)
def test_a_flag_drops_what_it_makes_meaningless_in_the_recipe(flags, dropped):
    found = parsed(*flags.split())
    check_used(found)
    assert {name: getattr(found.groups[0], name) for name in dropped} == dropped
    assert not set(dropped) & set(found.from_recipe)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--config simcse/minilm --pooling mean --mlp_only_train true", "mlp_only_train has no effect with pooling"),
        ("--model x --rtd-loss-weight 1", "rtd_loss_weight has no effect with SimCSE"),
        ("--model x --rtd-loss-weight=1", "rtd_loss_weight has no effect with SimCSE"),
        ("--tower_a x --tower_b y --generator z", "generator has no effect with CACSE; it belongs to DiffCSE"),
        ("--tower_a x --tower_b y --append_eos", "append_eos has no effect with CACSE; it belongs to SimCSE"),
        ("--tower_a x --tower_b y --dropout 0", "dropout has no effect with CACSE"),
        (
            "--tower_a x --tower_b y --norm_constraint_weight 1 --cascade_loss_weight 0.5",
            "cascade_loss_weight has no effect with TNCSE; it belongs to CACSE",
        ),
        ("--config tncse/minilm --freeze_embeddings", "freeze_embeddings has no effect with TNCSE"),
        ("--config tncse/minilm --dropout 0.1", "dropout has no effect with TNCSE; it belongs to SimCSE and DiffCSE"),
        (
            "--tower_a x --tower_b y --cross_loss_weight 2",
            "cross_loss_weight has no effect with CACSE; it belongs to TNCSE",
        ),
        ("--model x --tower_dropout 0.1 0.1", "tower_dropout has no effect with SimCSE; it belongs to CACSE and TNCSE"),
        ("--model x --norm_constraint_weight 1", "norm_constraint_weight has no effect with SimCSE"),
        ("--model x --generator y --lora_r 8", "lora_r has no effect with DiffCSE"),
        ("--model x --lora_alpha 8", "give lora_r, too"),
        ("--model x --adapter a --lora_r 8", "lora_r has no effect with adapter"),
        ("--model x --ranking_scale 8", "ranking_scale has no effect with objective info_nce; it belongs to cosent"),
        ("--model x --objective cosent --mask_duplicates", "mask_duplicates has no effect with objective cosent"),
        ("--model x --objective angle --mask_duplicates", "mask_duplicates has no effect with objective angle"),
        ("--config simcse/minilm --mask_probability 0.3", "mask_probability has no effect"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(flags, words):
    with pytest.raises(UserError, match=words):
        check_used(parsed(*flags.split()))


@pytest.mark.parametrize(
    "flags",
    [
        "--model x --pooling mean --mlp_only_train false",
        "--model x --mask_probability 0 --cascade_loss_weight 0 --rtd_loss_weight 0 --lora_dropout 0",
        "--model x --objective cosent --mask_duplicates false --hard_negative_weight 0",
        "--tower_a x --tower_b y --mlm_weight 0 --append_eos false --load_in_4bit false",
        "--model x --generator y --mlm_weight 0 --lora_dropout 0.0",
        "--tower_a x --tower_b y --norm_constraint_weight 0 --cascade_loss_weight 0",
    ],
)
def test_what_switches_a_thing_off_is_never_refused(flags):
    check_used(parsed(*flags.split()))


def test_a_recipe_that_contradicts_itself_is_refused(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model: x\npooling: mean\nmlp_only_train: true\n")
    with pytest.raises(UserError, match="mlp_only_train has no effect with pooling mean"):
        check_used(parsed("--config", str(path), "--seed", "1"))


def test_hard_negatives_of_a_recipe_and_of_a_flag(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model: x\nhard_negative_weight: 1\n")
    found = parsed("--config", str(path), "--train_file", "pairs.csv")
    check_hard_negatives(found, 3)
    assert found.groups[0].hard_negative_weight == 1
    check_hard_negatives(found, 2)
    assert found.groups[0].hard_negative_weight == 0
    with pytest.raises(UserError, match="has 2 column"):
        check_hard_negatives(parsed("--model", "x", "--hard-negative-weight", "1"), 2)
