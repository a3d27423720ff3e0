"""The table of which setting belongs to which method, against the settings and the shipped recipes."""

import pytest

from cacse_trainer.errors import UserError
from cacse_trainer.runs.methods import BELONGS_TO, CACSE, check_used
from cacse_trainer.runs.run import given_settings
from cacse_trainer.settings.arguments import CacseTrainingArguments, DataArguments, ModelArguments
from cacse_trainer.settings.recipes import parse_run, read_recipe, recipe_folders, recipe_names

SETTINGS = [ModelArguments, DataArguments, CacseTrainingArguments]


def training_recipes() -> list[str]:
    names = [name for name in recipe_names() if not name.startswith(("distill/", "pipeline/", "instruct/"))]
    assert len(names) > 10
    return names


def test_every_setting_in_the_table_is_one_and_its_help_says_the_same():
    fields = {field.name: field.metadata.get("help", "") for field in ModelArguments.__dataclass_fields__.values()}
    assert set(BELONGS_TO) <= set(fields)
    for name, owners in BELONGS_TO.items():
        if owners == (CACSE,):
            assert fields[name].startswith("CACSE: "), name


@pytest.mark.parametrize("name", training_recipes())
def test_no_recipe_holds_what_nothing_reads(name, tmp_path):
    flags = ["--config", name, "--output_dir", str(tmp_path), "--bf16", "false", "--use_cpu", "true"]
    model, data, args, recipe = parse_run(SETTINGS, flags, prog="train", description="")
    check_used(given_settings(flags, recipe), model, data, args.mask_duplicates)


def test_given_are_recipe_and_flags(tmp_path):
    folder = next(folder for folder in recipe_folders() if (folder / "quickstart.yaml").is_file())
    given = given_settings(["--config", "quickstart", "--max_steps", "3", "--dropout=0.1", "--check"], "quickstart")
    assert {"max_steps", "dropout", "check"} <= set(given)
    assert set(read_recipe(folder / "quickstart.yaml")) <= set(given)


@pytest.mark.parametrize("objective", ["cosent", "angle"])
def test_masking_needs_negatives(objective):
    model = ModelArguments(model="x", objective=objective)
    with pytest.raises(UserError, match="mask_duplicates has no effect"):
        check_used(["mask_duplicates"], model, DataArguments(), masks=True)
