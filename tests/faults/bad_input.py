"""Every kind of wrong input, through the real command line: what is wrong, and words of the line that it must get.

python -m tests.faults.bad_input            prints the table of all cases and their messages in Markdown
"""

import contextlib
import gzip
import io
import logging
import os
import sys
import tempfile
from pathlib import Path

from cacse_trainer.cli import main
from tests.faults.places import (
    CSV_ROWS,
    HEAD,
    HELD,
    PAIR_ROWS,
    Case,
    Place,
    cut_weights,
    damaged_checkpoint,
    dev,
    documents,
    fill_with_a_run,
    finished,
    flag,
    foreign,
    half_an_output,
    link_to_nothing,
    nan_weights,
    no_hits,
    no_start,
    no_tokenizer,
    numbers_in_parquet,
    occupied,
    other_vocabulary,
    own_checkpoint,
    pickled_weights,
    pipe,
    raw,
    recipe,
    simcse,
    spoiled,
    table_onto_its_encoder,
    text,
    unfinished,
)

CASES: list[Case] = [
    # ---- training text ----
    text("text with a byte that is not UTF-8", "a.txt", b"one\ntw\xe9\nthree\n" * 8, "line 2: byte 0xe9 is not UTF-8"),
    text("text with a NUL byte", "a.txt", b"one\nt\0wo\n" * 8, "line 2: a NUL byte"),
    text("text in UTF-16", "a.txt", ("one\ntwo\n" * 8).encode("utf-16"), "not in UTF-8"),
    text("an empty text", "a.txt", "", "is empty"),
    text("a text of nothing but blanks", "a.txt", " \n\t\n\n", "all 3 rows are blank"),
    text("a text of one sentence, repeated", "a.txt", "same\n" * 20, "all 20 rows are the same"),
    text("a text of one line", "a.txt", "only\n", "only one row"),
    text("lines that end in a lone CR", "a.txt", "one\rtwo\rthree\r", "lone CR"),
    text("fewer sentences than a batch", "a.txt", "a man\na dog\n", "2 rows, fewer than one batch of 8"),
    text("a csv with an open quote", "a.csv", 'text\n"a man\na dog\n', "unexpected end of data"),
    text("a csv with a quote in the middle", "a.csv", 'text\n"a" man\n', "line 2"),
    text(
        "a csv row with a column missing",
        "a.csv",
        "anchor,positive\n" + CSV_ROWS + "alone\n",
        "1 fields, but the header has 2",
    ),
    text("a csv row with a column too many", "a.csv", "anchor,positive\na,b,c\n", "3 fields, but the header has 2"),
    text(
        "pairs with a column of 0, 1 and NaN",
        "a.csv",
        "anchor,positive,same\n" + "a man,the man,1\na dog,the cat,0\na,b,NaN\n" * 8,
        "column 'same' says 0 or 1 of each pair",
    ),
    text("a csv of columns that are not known", "a.csv", "en,back\n" + CSV_ROWS, "which of its columns (en, back)"),
    text("a csv with a column called twice", "a.csv", "en,en\n" + CSV_ROWS, "2 columns", text_columns="en"),
    text("a csv without the column asked for", "a.csv", "en,back\n" + CSV_ROWS, "no column 'bak'", text_columns="bak"),
    text("the same column twice", "a.csv", "en,back\n" + CSV_ROWS, "different columns", text_columns="en en"),
    text(
        "four columns for CACSE",
        "a.csv",
        "a,b,c,d\n" + "1,2,3,4\n5,6,7,8\n" * 8,
        "CACSE compares two",
        text_columns="a b c d",
    ),
    text("a csv whose cells are all NaN", "a.csv", "text\nNaN\nnan\n", "all 2 rows are blank"),
    text("a csv of a header alone", "a.csv", "text\n", "is empty"),
    text("a tsv row with a tab too many", "a.tsv", "anchor\tpositive\na\tb\tc\n", "3 fields, but the header has 2"),
    text("a jsonl line that is no JSON", "a.jsonl", '{"text": "a"}\n{"text": \n', "line 2: not JSON"),
    text("a jsonl line that is no object", "a.jsonl", '"a man"\n', "is no JSON object"),
    text("a jsonl value that is a number", "a.jsonl", '{"text": "a"}\n{"text": 5}\n', "not a string"),
    text("a json array that breaks off", "a.json", '[{"text": "a"},', "not JSON"),
    text("a file that is no parquet", "a.parquet", "no parquet", "not a readable parquet file"),
    Case("a parquet column of numbers", numbers_in_parquet, "not text"),
    text("a gzip file that breaks off", "a.txt.gz", gzip.compress(os.urandom(5000))[:2000], "cannot be read"),
    text(
        "three columns for CACSE",
        "a.csv",
        "sent0,sent1,hard_neg\n" + "a,b,c\nd,e,f\n" * 8,
        "one or two with text_columns",
    ),
    flag("a text that is not there", "no such file", train_file="missing.txt"),
    flag("a folder as text", "is a folder", train_file="."),
    flag("a hub data set that cannot be reached", "neither a file here nor a data set", train_file="nobody/nothing"),
    Case("no text at all", lambda place: place.cacse(train_file=None), "no training text"),
    flag("a sample that is not shipped", "no file nothing.txt", train_file="sample:nothing.txt"),
    flag("a stream without a length", "streaming needs max_steps", streaming="true", max_steps="-1"),
    # ---- dev sets ----
    dev("a dev score out of range", "d.tsv", HEAD + PAIR_ROWS.format(7), "the score 7 is out of range"),
    dev("a dev score that is no number", "d.tsv", HEAD + PAIR_ROWS.format("high"), "the score is 'high'"),
    dev("a dev score of NaN", "d.tsv", HEAD + PAIR_ROWS.format("nan"), "the score is 'nan'"),
    dev("a dev set of one pair", "d.tsv", HEAD + "a man\tthe man\t5\n", "only one pair"),
    dev("dev scores that are all equal", "d.tsv", HEAD + PAIR_ROWS.format(1), "all 2 scores are 1"),
    dev("a dev set of a header alone", "d.tsv", HEAD, "no pairs"),
    dev("an empty dev file", "d.tsv", "", "is empty"),
    dev("a dev file without the columns", "d.csv", "a,b\n1,2\n", "no columns sentence1, sentence2 and score"),
    dev("a dev pair with a blank sentence", "d.tsv", HEAD + "a man\t \t5\n", "the sentence is ' '"),
    dev("a dev row with a field too many", "d.tsv", HEAD + "a\tb\t1\tc\n", "4 fields, but the header has 3"),
    dev("a dev file that is not UTF-8", "d.tsv", (HEAD + "caf\xe9\tb\t1\n").encode("latin-1"), "is not UTF-8"),
    flag("a dev file that is not there", "no such file", dev_file="stsb=missing.tsv"),
    flag("a dev file without a name that is not there", "dev.tsv: no such file", dev_file="dev.tsv"),
    flag("a dev set with a bad name", "the name of letters and digits", dev_file="my-set=dev.tsv"),
    Case(
        "two dev sets of one name",
        lambda place: place.cacse(dev_file=f"stsb={place.dev} stsb={place.dev}"),
        "the name stsb is given twice",
    ),
    Case("a named dev set that is unknown", lambda p: p.cacse(dev_file=None, eval_sets="stsx"), "eval_sets 'stsx'"),
    Case(
        "a named dev set without its file", lambda p: p.cacse(dev_file=None, eval_sets="sickr"), "eval_sets sickr: no"
    ),
    flag("a metric of no dev set", "the dev sets give stsb_spearman", metric_for_best_model="sts_spearman"),
    flag("an evaluation that is unknown", "must be sts or none", evaluation="mteb"),
    # ---- models ----
    flag("a model that is not there", "no/such-model", tower_b="no/such-model"),
    Case("a folder without a model", lambda place: place.cacse(tower_b=str(place.root)), "tower_b"),
    Case("a model without a tokenizer", spoiled(no_tokenizer, "tower_a"), "has no tokenizer"),
    Case("weights that break off", spoiled(cut_weights), "model.safetensors is damaged"),
    Case("weights with NaN", spoiled(nan_weights), "is not finite"),
    Case("weights that are another program's pickle", spoiled(pickled_weights), "a pickle of more than tensors"),
    Case(
        "a tokenizer with more tokens than the model",
        lambda place: place.simcse(model=place.model("small", vocab_size=10)),
        "gives ids up to",
    ),
    Case("towers of different depth", lambda p: p.cacse(tower_b=p.model("deep", layers=3)), "agree in depth"),
    Case("towers of different width", lambda p: p.cacse(tower_b=p.model("wide", hidden_size=48)), "agree in width"),
    Case("one tower only", lambda place: place.cacse(tower_b=None), "nothing to train"),
    Case("no model that can be reached", no_start, "cannot be read here"),
    simcse("a label without its texts", "name their two columns with text_columns", label_column="score"),
    Case("a model and towers", lambda place: place.cacse(model=place.masked_lm), "not both"),
    flag("a package that is not installed", "is not installed", tower_a="package:no_such_package/model"),
    flag("a cascade that starts too high", "cascade_start_layer=9 is out of range", cascade_start_layer="9"),
    flag("too many constraint layers", "constraint_layers=9 is out of range", constraint_layers="9"),
    flag("an unknown constraint attention", "constraint_attention='all'", constraint_attention="all"),
    flag("sentences beyond the positions", "beyond the model's 64 positions", max_seq_length="100"),
    flag("dev sentences beyond the positions", "beyond the model's 64 positions", eval_max_seq_length="1000"),
    flag("sentences without room for text", "leaves no room", max_seq_length="2"),
    flag("one dropout for two towers", "two numbers", tower_dropout="0.1"),
    flag("a dropout out of range", "dropout must be within", tower_dropout="0.1 1.5"),
    flag("a temperature of zero", "contrastive_temperature must be positive", contrastive_temperature="0"),
    simcse("a pooling that is unknown", "pooling 'first' is unknown", pooling="first"),
    simcse("a projection that is unknown", "projection 'relu' is unknown", projection="relu"),
    simcse("an objective that is unknown", "objective 'softmax' is unknown", objective="softmax"),
    simcse("a head kept and dropped", "keeps the head at inference", pooling="cls_with_mlp", mlp_only_train="true"),
    simcse("a negative weight", "mlm_weight must not be negative", mlm_weight="-1"),
    simcse("an attention that is unknown", "model", attn_implementation="quick"),
    Case("a generator of another vocabulary", other_vocabulary, "tokenizers of"),
    Case(
        "a generator without a head", lambda p: p.simcse(generator=p.tower), "lacks weights of a masked language model"
    ),
    Case(
        "a masking chance out of range",
        lambda p: p.simcse(generator=p.masked_lm, mask_probability="1.5"),
        "mask_probability 1.5 is out of range",
    ),
    *(
        Case(f"{what} that is a training's own checkpoint", make, "give the encoder that it exported")
        for what, make in (
            ("a model", lambda place: place.simcse(model=own_checkpoint(place))),
            ("a tower", lambda place: place.cacse(tower_b=own_checkpoint(place))),
            ("a student", lambda place: place.distill(student=own_checkpoint(place))),
        )
    ),
    # ---- settings of another method, which would be ignored ----
    flag("SimCSE's pooling with CACSE", "pooling='avg_top2' is not one that CACSE's towers have", pooling="avg_top2"),
    flag("SimCSE's dropout with CACSE", "dropout has no effect with CACSE", dropout="0.1"),
    flag("the detection loss with CACSE", "rtd_loss_weight has no effect with CACSE", rtd_loss_weight="1"),
    flag("masking with CACSE", "mask_probability has no effect", mask_probability="0.3"),
    simcse("CACSE's cascade with SimCSE", "cascade_dropout has no effect with SimCSE", cascade_dropout="0.1"),
    simcse("DiffCSE's loss with SimCSE", "rtd_loss_weight has no effect with SimCSE", rtd_loss_weight="1"),
    simcse("masking without a masked loss", "mask_probability has no effect", mask_probability="0.3"),
    simcse("hard negatives without any", "hard_negative_weight has no effect", hard_negative_weight="1"),
    simcse("a projection where there is none", "projection has no effect", pooling="mean", projection="tanh"),
    Case(
        "a recipe with another method's setting",
        lambda p: p.cacse(
            *p.recipe(f"tower_a: {p.tower}\ntower_b: {p.tower}\ndropout: 0.1\n"), tower_a=None, tower_b=None
        ),
        "dropout has no effect with CACSE",
    ),
    # ---- recipes ----
    recipe("a recipe with an unknown key", "learning_rat: 1.0e-5\n", "did you mean learning_rate?"),
    recipe("a recipe with a word for a number", "max_steps: many\n", "'many' is no int"),
    recipe("a recipe with half a step", "max_steps: 2.5\n", "'2.5' is no int".replace("'2.5'", "2.5")),
    recipe("a recipe with a list for one value", "learning_rate: [1, 2]\n", "takes one value"),
    recipe("a recipe with a mapping for a value", "learning_rate: {a: 1}\n", "takes plain values"),
    recipe("a recipe with nothing for a value", "max_seq_length:\n", "takes a value, got null"),
    recipe("a recipe with a word for yes or no", "freeze_embeddings: maybe\n", "freeze_embeddings"),
    recipe("a recipe with a choice that is none", "negatives: all\n", "'all' is none of global, local"),
    recipe("a recipe with a key twice", "max_steps: 2\nmax_steps: 3\n", "max_steps is there twice"),
    recipe("a recipe that is no YAML", "a: [1\n", "recipe"),
    recipe("a recipe that is a list", "- a\n- b\n", "must be a mapping"),
    Case("a recipe that is no text", lambda p: p.cacse("--config", p.file("r.yaml", b"\xff\xfe\0")), "recipe"),
    Case("a recipe that is not there", lambda p: p.cacse("--config", "quickstrat"), "the nearest are quickstart,"),
    # ---- flags ----
    Case("an unknown flag", lambda place: place.cacse("--learning_rat", "1"), "did you mean --learning_rate?"),
    Case("an old flag", lambda place: place.cacse("--temp", "0.05"), "which is here --contrastive_temperature"),
    Case("a flag without its value", lambda place: place.cacse("--config"), "expected one argument"),
    flag("a negative learning rate", "learning_rate must be a number from 0", learning_rate="-1"),
    flag("a learning rate of NaN", "must be a finite number", learning_rate="nan"),
    flag("a word for a learning rate", "learning_rate", learning_rate="fast"),
    flag("a batch of one", "no negatives", per_device_train_batch_size="1"),
    flag("a batch of none", "no negatives", per_device_train_batch_size="0"),
    flag("a batch larger than the text", "fewer than one batch of 100", per_device_train_batch_size="100"),
    flag("no steps", "max_steps", max_steps="0"),
    flag("epochs below zero", "num_train_epochs", max_steps="-1", num_train_epochs="-1"),
    flag("an evaluation every 0 steps", "eval_steps", eval_steps="0"),
    flag("a checkpoint every 0 steps", "save_steps", save_steps="0"),
    flag("accumulation of 0 batches", "gradient_accumulation_steps", gradient_accumulation_steps="0"),
    Case(
        "saves that miss the evaluations",
        lambda place: place.cacse(
            load_best_model_at_end="true", metric_for_best_model="stsb_spearman", eval_steps="2", save_steps="3"
        ),
        "multiple",
    ),
    flag("a choice of negatives that is none", "negatives", negatives="all"),
    flag("a precision that is none", "bf16 must be auto, true or false", bf16="maybe"),
    flag("half precision on a CPU", "fp16", fp16="true"),
    flag("no length buckets", "length_buckets must be auto or a number from 1", length_buckets="0"),
    flag("a mini-batch of none", "mini_batch_size must be a number from 1", mini_batch_size="0"),
    flag("no patience", "early_stopping_patience must be a number from 1", early_stopping_patience="0"),
    Case(
        "patience without a score",
        lambda place: place.cacse(early_stopping_patience="2", evaluation="none"),
        "no dev set is scored",
    ),
    flag("a logger that is not installed", "settings", report_to="wandb"),
    flag("an optimizer that is unknown", "optim", optim="sgdd"),
    flag("a schedule that is unknown", "lr_scheduler_type", lr_scheduler_type="zigzag"),
    flag("a push without a name", "push_to_hub needs a name", push_to_hub="true"),
    # ---- text of one's own ----
    raw("a binary file named .md", "a.md", bytes(range(256)), "a NUL byte"),
    raw("a PDF that is none", "a.pdf", b"%PDF-1.4 no more", "no PDF that can be read"),
    raw("a Word file that is none", "a.docx", b"no archive", "no Word file that can be read"),
    raw("HTML without text", "a.html", "<title>T</title>", "no document with any text"),
    raw("markdown with a heading alone", "a.md", "# T\n", "no document with any text"),
    raw("documents in UTF-16", "a.txt", "T\n\nbody".encode("utf-16"), "save it as UTF-8"),
    raw("bodies of numbers", "a.jsonl", '{"title": "a", "body": 3}\n', "is 3, not a string"),
    raw("half a character", "a.jsonl", '{"title": "a", "body": "\\ud800"}\n', "which is half of a character"),
    raw("too few documents", "a.jsonl", documents(30), "are too few"),
    raw("titles that all documents have", "a.jsonl", '{"title": "a", "body": "b"}\n' * 300, "too few"),
    raw("rows that the text does not give", "a.jsonl", documents(120), "gives no rows", rows="heading=1"),
    raw("questions of nobody", "a.jsonl", documents(120), "no share of a kind", rows="questions=1"),
    raw("a start that is not there", "a.jsonl", documents(120), "no such folder", model="/no/such/model"),
    raw("rows held out twice", "a.jsonl", documents(120), "held_out_rows has no effect here", held_out_rows="40"),
    raw("general text that is not there", "a.jsonl", documents(120), "no such file", general_text="gone.txt"),
    Case("a pipe for text", pipe, "is a pipe or a device"),
    Case("a folder of links to nothing", link_to_nothing, "no document with any text"),
    Case("judgements without a hit", no_hits, "no query has a document that answers it"),
    Case("adapt with a recipe of two towers", lambda p: p.adapt(text="x", config="cacse/bert_base"), "no towers"),
    Case(
        "text in the folder that is written to",
        lambda p: p.adapt(text=p.file("a.jsonl", documents(120)), output_dir=str(p.here)),
        "holds what text names",
    ),
    Case("a static table in its encoder's place", table_onto_its_encoder, "holds the model itself"),
    # ---- output ----
    Case("a file as output folder", lambda p: p.cacse(output_dir=p.file("file", "")), "cannot be written", True),
    Case("an output folder below a file", half_an_output, "cannot be written", True),
    Case("an output folder with a finished run", finished, "holds a finished run", True),
    Case("an output folder with an unfinished run", unfinished, "holds an unfinished run (checkpoint-2)", True),
    Case("an output folder with foreign files", foreign, "no run of this program", True),
    Case("an output folder in use", occupied, "in use by another run", True),
    Case("nothing to resume", lambda p: p.cacse(resume_from_checkpoint="last"), "nothing to resume", True),
    Case("a checkpoint that is not there", lambda p: p.cacse(resume_from_checkpoint="nowhere"), "no such folder", True),
    Case("a checkpoint that is damaged", damaged_checkpoint, "checkpoint-2 is damaged", True),
    # ---- other commands ----
    Case("an unknown command", lambda place: ["trian"], "did you mean train?"),
    Case("a distillation without a teacher", lambda p: p.distill(teacher=None), "no teacher"),
    Case("a distillation without a student", lambda p: p.distill(student=None), "no student"),
    Case("a student of another width", lambda p: p.distill(teacher=p.model("wider", hidden_size=40)), "dimensions"),
    Case(
        "a distillation of pairs",
        lambda p: p.distill(train_file=p.file("a.csv", "anchor,positive\n" + CSV_ROWS)),
        "distillation reads single sentences",
    ),
    Case(
        "a weight out of range",
        lambda p: p.distill(contrastive_weight="2"),
        "contrastive_weight must be within [0, 1]",
    ),
    Case(
        "an export of no checkpoint",
        lambda p: ["export", "--checkpoint", str(p.root), "--output_dir", str(p.here / "out")],
        "no config.json",
    ),
    Case(
        "an export of half a checkpoint",
        lambda p: [
            *("export", "--checkpoint", (cut_weights(folder := p.copy()), str(folder))[1]),
            *("--output_dir", str(p.here / "out")),
        ],
        "model.safetensors is damaged",
    ),
    Case(
        "vectors of no model",
        lambda p: ["encode", "--model", "no/such/model", "--input", str(p.text), "--output", str(p.here / "out.npy")],
        "no such folder",
    ),
    Case(
        "vectors of no text",
        lambda p: ["encode", "--model", p.tower, "--input", "missing.txt", "--output", str(p.here / "out.npy")],
        "missing.txt",
    ),
    Case(
        "an unknown task",
        lambda p: ["evaluate", "--model", p.tower, "--tasks", "STS99"],
        "STS99",
    ),
]

ACCEPTED: list[Case] = [
    text("text with CRLF", "a.txt", "a man\r\na dog\r\na cat\r\nthe park\r\n" * 3, ""),
    text("text with a BOM", "a.txt", b"\xef\xbb\xbf" + b"a man\na dog\na cat\nthe park\n" * 3, ""),
    text("text without a newline at its end", "a.txt", "a man\na dog\na cat\n" * 4 + "the park", ""),
    text("text with a line of 10 MB", "a.txt", "a man\na dog\na cat\n" * 4 + "a " * 5_000_000 + "\n", ""),
    text("text with duplicates and blanks", "a.txt", "a man\na dog\n\na man\n" * 6, ""),
    text("a csv with NaN cells", "a.csv", "text\n" + "a man\nNaN\na dog\n" * 6, ""),
]


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a folder, with its time."""
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.rglob("*")) if path.is_file()
    }


def try_case(place: Place, case: Case, number: int) -> tuple[int, list[str], bool]:
    """Run a case; the exit code, the lines on standard error, and whether everything that was there is as it was."""
    place.here = place.root / f"case-{number}"
    place.here.mkdir()
    arguments = case.make(place)
    run_folder = place.here / "run"
    if not case.own_output and arguments[0] in ("train", "distill"):
        fill_with_a_run(run_folder)
        arguments.append("--overwrite_output_dir")
    before = snapshot(place.here)
    said, spoken = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger("cacse_trainer").addHandler(handler)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(spoken):
            code = main.main([str(argument) for argument in arguments])
    finally:
        logging.getLogger("cacse_trainer").removeHandler(handler)
        while HELD:
            HELD.pop().release()
    untouched = all(snapshot(place.here).get(name) == value for name, value in before.items())
    return code, said.getvalue().splitlines(), untouched


def table() -> str:
    """All cases, their messages and whether existing output was untouched, in Markdown."""
    rows = ["| # | input | exit | message | output untouched |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as temporary:
        place = Place(Path(temporary))
        for number, case in enumerate(CASES, start=1):
            code, lines, untouched = try_case(place, case, number)
            errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
            message = " ⏎ ".join(errors).replace(temporary, "…").replace(str(Path(__file__).parents[2]), "…")
            rows.append(
                f"| {number} | {case.what} | {code} | {message.replace('|', '¦')} | {'yes' if untouched else 'NO'} |"
            )
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
    sys.exit(0)
