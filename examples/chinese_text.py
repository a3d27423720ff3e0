"""Chinese text, from sentences to a trained encoder: what has to be different, and what has not.

    python examples/chinese_text.py                                            a tiny model, to see the parts move
    python examples/chinese_text.py --model bert-base-chinese --train_file zh.txt --dev_file zh_pairs.tsv

Without --model everything is made here: some hundred sentences from a few patterns, graded pairs of the same patterns,
a vocabulary of single characters (as bert-base-chinese has), and a small BERT with random weights. That shows the
mechanics and says nothing of quality: for real use give a pretrained model and your own text. Nothing else changes: one
sentence a line, split at 。！？, and graded pairs of your own to choose the best checkpoint by.
"""

import argparse
import itertools
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast, logging

from cacse_trainer import SentenceEncoder
from cacse_trainer.cli.main import main as cacse_trainer

WHO = ["老师", "学生", "医生", "工人", "孩子", "司机", "作家", "邻居"]
WHERE = ["在公园里", "在学校", "在家里", "在医院", "在车站", "在图书馆"]
WHAT = ["看书", "唱歌", "吃饭", "跑步", "喝茶", "画画", "打电话", "等朋友"]


def write_sentences(path: Path) -> None:
    """Every combination of who, where and what: 384 sentences."""
    path.write_text(
        "\n".join(f"{a}{b}{c}。" for a, b, c in itertools.product(WHO, WHERE, WHAT)) + "\n", encoding="utf-8"
    )


def write_pairs(path: Path) -> None:
    """Pairs that share three, two, one or none of their parts; the score is how much they share, 0 to 5."""
    lines = ["sentence1\tsentence2\tscore"]
    for i in range(120):
        first = (i % 8, i % 6, (i * 3) % 8)
        shared = (i % 4, (i + 1) % 2, (i + 2) % 3)
        second = [x if keep else (x + 1 + i % 3) % n for x, keep, n in zip(first, shared, (8, 6, 8), strict=True)]
        alike = sum(x == y for x, y in zip(first, second, strict=True))
        texts = [f"{WHO[a]}{WHERE[b]}{WHAT[c]}" for a, b, c in (first, second)]
        lines.append(f"{texts[0]}\t{texts[1]}\t{5 * alike / 3:.2f}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_model(folder: Path) -> None:
    """A BERT of two layers over single characters, with random weights."""
    characters = sorted(set("".join([*WHO, *WHERE, *WHAT, "。"])))
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]) + "\n", encoding="utf-8"
    )
    tokenizer = BertTokenizerFast(vocab=str(vocabulary), tokenize_chinese_chars=True, model_max_length=64)
    logging.disable_progress_bar()  # of saving weights
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a pretrained Chinese encoder; default: a tiny one with random weights")
    parser.add_argument("--train_file", help="one sentence a line; default: made here")
    parser.add_argument("--dev_file", help="graded pairs; default: made here")
    parser.add_argument("--max_steps", default="60")
    parser.add_argument("--output_dir", default="runs/chinese")
    settings = parser.parse_args()
    parts = Path(f"{settings.output_dir}_parts")
    parts.mkdir(parents=True, exist_ok=True)
    write_sentences(parts / "sentences.txt")
    write_pairs(parts / "pairs.tsv")
    if settings.model is None:
        write_model(parts / "model")
    code = cacse_trainer(
        [
            *("train", "--model", settings.model or str(parts / "model"), "--pooling", "mean"),
            *("--train_file", settings.train_file or str(parts / "sentences.txt")),
            *("--dev_file", f"zh={settings.dev_file or parts / 'pairs.tsv'}", "--eval_steps", "20"),
            *("--max_steps", settings.max_steps, "--max_seq_length", "64", "--per_device_train_batch_size", "64"),
            *("--learning_rate", "3e-4" if settings.model is None else "3e-5", "--lr_scheduler_type", "constant"),
            *("--output_dir", settings.output_dir, "--overwrite_output_dir"),
        ]
    )
    if code != 0:
        raise SystemExit(code)
    encoder = SentenceEncoder(f"{settings.output_dir}/export/encoder")
    encoder.build_index(parts / "sentences.txt")
    for sentence, score in encoder.search("孩子在公园里唱歌", top_k=3, threshold=-1.0):
        print(f"  {score:.3f}  {sentence}")


if __name__ == "__main__":
    main()
