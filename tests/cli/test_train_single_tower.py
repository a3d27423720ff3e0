"""`cacse-trainer train` on one tiny encoder: SimCSE, its auxiliary loss, hard negatives, DiffCSE, and wrong input."""

import json

import pytest
from transformers import AutoModel, AutoTokenizer

from cacse_trainer import SentenceEmbeddingModel, SentenceEncoder
from cacse_trainer.cli import export, import_reference, train
from cacse_trainer.cli.common import run
from cacse_trainer.encoding.model_card import CardFacts
from cacse_trainer.export import encoders
from cacse_trainer.settings.recipes import read_recipe
from cacse_trainer.settings.resources import recipe_folders, recipe_names
from tests.tolerances import assert_near


@pytest.fixture
def command(tmp_path, masked_lm, text_file, dev_file):
    """The arguments of a small run; its output folder is tmp_path/run."""
    return [
        *("--model", masked_lm, "--dropout", "0.1", "--train_file", str(text_file), "--dev_file", f"stsb={dev_file}"),
        *("--max_steps", "4", "--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps"),
        *("--save_steps", "2", "--save_total_limit", "1", "--load_best_model_at_end", "true"),
        *("--metric_for_best_model", "stsb_spearman", "--per_device_train_batch_size", "8", "--learning_rate", "1e-3"),
        *("--bf16", "false"),
        *("--logging_steps", "1", "--report_to", "none", "--use_cpu", "true", "--disable_tqdm", "true"),
        *("--output_dir", str(tmp_path / "run")),
    ]


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ([], {"loss_contrastive"}),
        (["--mlm_weight", "0.1"], {"loss_contrastive", "loss_mlm"}),
        (
            ["--generator", "MASKED_LM", "--mask_probability", "0.3"],
            {"loss_contrastive", "loss_rtd", "loss_rtd_accuracy_replaced", "loss_rtd_accuracy_kept"},
        ),
    ],
)
def test_a_run_exports_its_encoder(command, masked_lm, tmp_path, flags, parts):
    flags = [masked_lm if flag == "MASKED_LM" else flag for flag in flags]
    assert run(train.main, [*command, *flags]) == 0
    folder = tmp_path / "run"
    report = json.loads((folder / "training_report.json").read_text(), parse_constant=pytest.fail)
    logged = {key for entry in report["log_history"] for key in entry if key.startswith("loss_")}
    assert logged == parts
    assert [point["step"] for point in report["curve"]] == [0, 2, 4]
    assert report["exported"]["encoder"]["stsb"] == pytest.approx(report["best"], abs=1e-4)
    assert type(AutoModel.from_pretrained(folder / "export" / "encoder")).__name__ == "BertModel"


@pytest.mark.parametrize(
    ("pooling", "more"),
    [
        ("avg_first_last", ["--config", "simcse/unsup_bert_base"]),
        ("avg_top2", ["--config", "simcse/unsup_roberta_base", "--mlp_only_train", "false"]),
        ("avg_top2", ["--config", "diffcse/bert_sts", "--generator", "MASKED_LM"]),
        ("avg", ["--config", "simcse/unsup_bert_base"]),
        ("cls_before_pooler", ["--config", "simcse/sup_bert_base"]),
        ("cls_with_mlp", ["--config", "simcse/unsup_bert_base"]),
    ],
)
def test_every_pooling_of_simcse_trains_and_exports(command, masked_lm, tmp_path, pooling, more):
    """From recipes that have a head; what sentence-transformers has no pooling for pools by itself in the folder."""
    library = pytest.importorskip("sentence_transformers")
    more = [masked_lm if flag == "MASKED_LM" else flag for flag in more]
    assert run(train.main, [*more, *command, "--pooling", pooling]) == 0
    folder = tmp_path / "run" / "export" / "encoder"
    trained = SentenceEncoder(tmp_path / "run").vectors(["a red house", "the man"])
    assert_near(SentenceEncoder(folder).vectors(["a red house", "the man"]), trained)
    loaded = library.SentenceTransformer(str(folder), device="cpu")
    assert_near(loaded.encode(["a red house", "the man"]), trained)
    own = pooling in ("avg_top2", "avg_first_last")
    assert ("the mean of two layers" in (folder / "README.md").read_text()) == own
    assert (type(AutoModel.from_pretrained(folder)).__name__ == "SentenceEmbeddingModel") == own


def test_what_a_folder_of_averaged_layers_cannot_be(masked_lm, tmp_path, capsys):
    """A member of a sum, a start, a graph: each is refused for what it is."""
    model = SentenceEmbeddingModel.from_encoder(masked_lm, pooling="avg_top2")
    folder = str(tmp_path / "encoder")
    encoders.export(model, AutoTokenizer.from_pretrained(masked_lm), tmp_path, CardFacts("mine", ""))
    where = ["--output_dir", str(tmp_path / "out")]
    for module, words, said in (
        (export, ["--encoders", f"path={folder}", f"path={masked_lm},pooling=mean"], "its pooling is avg_top2"),
        (export, ["--folder", folder, "--format", "onnx"], "its model pools by itself (averaged layers"),
        (export, ["--folder", folder, "--format", "openvino"], "its model pools by itself (averaged layers"),
        (train, ["--model", folder, "--train_file", "sample:sentences.txt"], "a plain encoder"),
    ):
        assert run(module.main, words + (where if "--folder" not in words else [])) == 2
        assert said in capsys.readouterr().err


def test_triplets(command, tmp_path):
    words = ["red", "blue", "big", "small"] * 4
    rows = [f"the man in park {word},a man in the park,the dog is running" for word in words]
    (tmp_path / "nli.csv").write_text("\n".join(["sent0,sent1,hard_neg", *rows]) + "\n")
    assert run(train.main, [*command, "--train_file", str(tmp_path / "nli.csv"), "--hard_negative_weight", "1"]) == 0


def test_several_hard_negatives(command, tmp_path, capsys):
    words = ["red", "blue", "big", "small"] * 4
    rows = [f"man {word},a man in {word},a dog,the cat is {word},a house" for word in words]
    path = tmp_path / "mined.csv"
    path.write_text("\n".join(["anchor,positive,negative_1,negative_2,negative_3", *rows]) + "\n")
    flags = [*command, "--train_file", str(path), "--hard_negative_weight", "1", "--mask_duplicates"]
    assert run(train.main, flags) == 0
    report = json.loads((tmp_path / "run" / "training_report.json").read_text())
    assert report["data"]["columns"] == ["anchor", "positive", "negative_1", "negative_2", "negative_3"]
    assert run(train.main, [*command, "--train_file", str(path), "--objective", "angle", "--overwrite_output_dir"]) == 2
    assert (
        "rows with several negatives (four columns or more), which info_nce, margin_mse compare"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tower_a", "x"], "either model (SimCSE, DiffCSE) or tower_a and tower_b (CACSE, TNCSE), not both"),
        (["--pooling", "first"], "pooling 'first' is unknown; choose one of cls"),
        (["--pooling", "cls_with_mlp", "--mlp_only_train", "true"], "keeps the head at inference"),
        (["--generator", "MASKED_LM", "--mlm_weight", "0.1"], "mlm_weight has no effect with DiffCSE"),
        (["--generator", "MASKED_LM", "--mask_probability", "1.5"], "mask_probability 1.5 is out of range"),
    ],
)
def test_wrong_settings(command, masked_lm, capsys, flags, words):
    flags = [masked_lm if flag == "MASKED_LM" else flag for flag in flags]
    assert run(train.main, [*command, *flags]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith(("simcse/", "diffcse/"))])
def test_recipes_are_read(name, tmp_path):
    """Every recipe passes the parser, names its model, and says in its header how it is launched."""
    from cacse_trainer.settings.arguments import CacseTrainingArguments, DataArguments, ModelArguments
    from cacse_trainer.settings.recipes import RecipeParser, parse_run

    flags = ["--config", name, "--output_dir", str(tmp_path), "--bf16", "false", "--use_cpu", "true"]
    kinds = [ModelArguments, DataArguments, CacseTrainingArguments]
    model, data, _ = parse_run(RecipeParser(kinds, prog="train"), flags).groups
    assert model.model is not None
    assert (model.generator is not None) == name.startswith("diffcse/")
    path = next(folder / f"{name}.yaml" for folder in recipe_folders() if (folder / f"{name}.yaml").is_file())
    assert f"--config {name} " in path.read_text()
    assert read_recipe(path)["output_dir"].startswith("runs/")
    assert data.max_seq_length == 32


@pytest.mark.parametrize("head", ["use", "drop"])
def test_import_gives_a_plain_encoder(tmp_path, tiny_towers, tiny_tokenizer, head):
    """A released model goes in, a folder that sentence-transformers loads with the right pooling comes out."""
    library = pytest.importorskip("sentence_transformers")
    source = tiny_towers("bert")[0]
    flags = ["--checkpoint", source, "--head", head, "--output_dir", str(tmp_path / "imported")]
    assert run(import_reference.main, flags) == 0
    output = AutoModel.from_pretrained(source).eval()(**tiny_tokenizer("the man is running", return_tensors="pt"))
    expected = output.pooler_output if head == "use" else output.last_hidden_state[:, 0]
    found = library.SentenceTransformer(str(tmp_path / "imported"), device="cpu").encode(["the man is running"])
    assert_near(found, expected)


def test_import_needs_to_know_which_release(capsys, tmp_path):
    assert run(import_reference.main, ["--checkpoint", "x", "--output_dir", str(tmp_path)]) == 2
    assert "--head for one of SimCSE or DiffCSE" in capsys.readouterr().err
