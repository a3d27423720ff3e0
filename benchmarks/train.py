"""Training: CACSE beside the reference's way, SimCSE and pairs beside sentence-transformers' own trainer, in one run.

The ways train in turn on the same text with the same maximum length; each run is a number of steps, tokenisation of
ours and of sentence-transformers included. Before it, without dropout, they must give the same loss on the same batch.

The reference's way: float32, eager attention, every row padded to the maximum length, one token attended to with
queries and keys, tokenised beforehand (which is not counted). Ours: what `cacse-trainer train` does by default.

    python benchmarks/train.py --text wiki.txt --batch 16 32 --output train.json
    python benchmarks/train.py --compare pairs --pairs documents.jsonl --pair_columns title body
    python benchmarks/train.py --compare simcse --device cuda --model bert-base-random --batch 64 512 --output gpu.json
"""

import argparse
import copy
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import (
    BERT_BASE,
    BF16_PEAK,
    MINILM,
    in_turn,
    lines_of,
    model_folder,
    print_rates,
    quiet,
    rates,
    save,
    seconds_of,
)
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoTokenizer, PrinterCallback

from cacse_trainer import CacseBertModel, CacseTrainer, SentenceEmbeddingModel, load_pairs, load_sentences
from cacse_trainer.compute.varlen import remember_lengths
from cacse_trainer.data import ContrastiveCollator
from cacse_trainer.models.cascade import SingleTokenAttention
from cacse_trainer.models.computing import ComputeSettings
from cacse_trainer.settings.arguments import CacseTrainingArguments
from cacse_trainer.settings.precision import bf16_is_fast, resolve_bf16
from cacse_trainer.settings.resources import resolve_resource

TARGETS = {"cacse": {"ours": 6.0, "ours, embeddings frozen": 8.0}, "simcse": {"ours float32": 3.5, "ours bf16": 3.5}}
MOST_OFF = {"float32": 1e-4, "bf16": 2e-2}
"""Largest relative difference of the losses of one batch, without dropout."""
DROPOUT = 0.15


class FullAttention(nn.MultiheadAttention):
    """The attention over one token with its queries and keys multiplied, as in the reference; the same result."""

    def __init__(self, ours: SingleTokenAttention, heads: int):
        hidden = ours.value.in_features
        super().__init__(hidden, heads, batch_first=True)
        with torch.no_grad():
            self.in_proj_weight[2 * hidden :] = ours.value.weight
            self.in_proj_bias[2 * hidden :] = ours.value.bias
            self.out_proj.weight.copy_(ours.output.weight)
            self.out_proj.bias.copy_(ours.output.bias)

    def forward(self, value: Tensor) -> Tensor:  # type: ignore[override]
        token = value.unsqueeze(1)  # (B, 1, H)
        return super().forward(token, token, token)[0].squeeze(1)


def set_every_dropout(model: nn.Module, dropout: float) -> None:
    """Every dropout module to one probability (attention reads its module's)."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout


class Bench:
    """Text, sizes and device of one run."""

    def __init__(self, settings: argparse.Namespace, folder: Path, batch: int):
        self.settings, self.folder, self.batch = settings, folder, batch
        self.rows = Dataset.from_dict({"text": lines_of(settings.text, batch * settings.steps)})
        self.device = torch.device(settings.device)
        self.max_grad_norm = 1.0

    def trainer(self, model: Any, tokenizer: Any, bf16: str = "auto") -> CacseTrainer:
        """Ours, with the defaults of `cacse-trainer train`."""
        args = CacseTrainingArguments(
            str(self.folder / "ours"),
            per_device_train_batch_size=self.batch,
            num_train_epochs=1,
            learning_rate=1e-6,
            max_grad_norm=self.max_grad_norm,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            use_cpu=self.device.type == "cpu",
            bf16=bf16,
            mini_batch_size=self.settings.mini_batch_size,
        )
        return CacseTrainer(
            model=model,
            args=args,
            train_dataset=self.rows,
            processing_class=tokenizer,
            max_seq_length=self.settings.max_seq_length,
        )

    def ours(self, model: Any, tokenizer: Any, bf16: str = "auto") -> Callable[[], float]:
        """A way: all steps of `CacseTrainer.train`."""

        def run() -> float:
            # A copy: the Trainer leaves its autocast on the model's forward.
            return seconds_of(lambda: self.trainer(copy.deepcopy(model), tokenizer, bf16), resolve_bf16(bf16))

        return run

    def batch_of(self, tokenizer: Any, pad: bool) -> list[dict[str, Tensor]]:
        """All batches, padded to the longest row or to the maximum length."""
        length = self.settings.max_seq_length
        collate = ContrastiveCollator(tokenizer, length, pad_to_multiple_of=length if pad else None)
        rows = self.rows.to_list()
        made = [collate(rows[start : start + self.batch]) for start in range(0, len(rows), self.batch)]
        batches = [{name: ids.to(self.device) for name, ids in batch.items()} for batch in made]
        if self.device.type != "cpu" and not pad:  # as the trainer does, so that ours leave the padding out
            for batch, own in zip(batches, made, strict=True):
                remember_lengths(batch["attention_mask"], own["attention_mask"].sum(dim=-1).numpy())
        return batches


def loss_of(model: Any, batch: dict[str, Tensor], bf16: bool = False) -> float:
    """The loss of a batch without dropout."""
    before = {module: module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    set_every_dropout(model, 0.0)
    device = next(iter(batch.values())).device.type
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=bf16):
        loss = model.train()(**batch).loss.item()
    for module, dropout in before.items():
        module.p = dropout
    return loss


def check(losses: dict[str, float], reference: str) -> list[str]:
    """The names whose loss is not the reference's."""
    print(
        "loss of the first batch without dropout: " + ", ".join(f"{name} {loss:.5f}" for name, loss in losses.items())
    )
    wrong = []
    for name, loss in losses.items():
        bound = MOST_OFF["bf16" if "bf16" in name else "float32"]
        if abs(loss - losses[reference]) > bound * abs(losses[reference]):
            wrong.append(f"the loss of {name}")
    return wrong


def compare_cacse(bench: Bench, model_name: str) -> tuple[dict[str, Any], list[str]]:
    """CACSE with the paper's settings; k0 and m in proportion where the model has not 12 layers."""
    bench.max_grad_norm = 0.0  # the paper clips nothing
    path = model_folder(model_name, bench.folder)
    layers = AutoConfig.from_pretrained(path).num_hidden_layers
    tokenizer = AutoTokenizer.from_pretrained(path)

    def build(**changes: Any) -> CacseBertModel:
        torch.manual_seed(0)
        return CacseBertModel.from_towers(
            path,
            path,
            path,
            cascade_start_layer=layers * 7 // 12,
            constraint_layers=layers * 4 // 12,
            tower_dropout=[DROPOUT, DROPOUT],
            **changes,
        ).to(bench.device)

    reference = build(attn_implementation="eager")
    for module in list(reference.cascade.modules()):
        for name, part in module.named_children():
            if isinstance(part, SingleTokenAttention):
                setattr(module, name, FullAttention(part, heads=6).to(bench.device))
    padded = bench.batch_of(tokenizer, pad=True)

    def reference_way() -> float:
        optimizer = torch.optim.AdamW([p for p in reference.parameters() if p.requires_grad], lr=1e-6)
        started = time.perf_counter()
        reference.train()
        for batch in padded:
            optimizer.zero_grad()
            reference(**batch).loss.backward()
            optimizer.step()
        if bench.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        optimizer.zero_grad()
        return seconds

    model, frozen = build(), build(freeze_embeddings=True)
    losses = {"reference's way": loss_of(reference, padded[0])}
    trimmed = bench.batch_of(tokenizer, pad=False)[0]
    model.use(ComputeSettings())
    losses["ours in float32"] = loss_of(model, trimmed)
    if "bf16" in bench.settings.dtypes:
        losses["ours in bf16"] = loss_of(model, trimmed, bf16=True)
    wrong = check(losses, "reference's way")
    ways = {
        "reference's way": reference_way,
        "ours": bench.ours(model, tokenizer),
        "ours, embeddings frozen": bench.ours(frozen, tokenizer),
    }
    if bench.settings.all_ways:
        ways["ours, float32"] = bench.ours(model, tokenizer, bf16="false")
    seconds = in_turn(ways, bench.settings.runs)
    rows = rates(seconds, len(bench.rows), "reference's way")
    return {"ways": rows, "losses": losses, **extras(bench, model, tokenizer, seconds["ours"])}, wrong


def compare_simcse(bench: Bench, model_name: str) -> tuple[dict[str, Any], list[str]]:
    """Unsupervised SimCSE over the CLS vector."""
    return compare_contrastive(bench, model_name, "cls_before_pooler", "cls")


def compare_pairs(bench: Bench, model_name: str) -> tuple[dict[str, Any], list[str]]:
    """Pairs over the mean of the states, as `adapt` trains titles and bodies: few rows are short, little is padded."""
    pairs = load_sentences(resolve_resource(bench.settings.pairs), bench.settings.pair_columns)
    bench.rows = pairs.select([number % len(pairs) for number in range(len(bench.rows))])
    return compare_contrastive(bench, model_name, "mean", "mean")


def compare_contrastive(
    bench: Bench, model_name: str, pooling: str, peers_pooling: str
) -> tuple[dict[str, Any], list[str]]:
    """InfoNCE with τ = 0.05 beside MultipleNegativesRankingLoss with scale 20."""
    path = model_folder(model_name, bench.folder)
    tokenizer = AutoTokenizer.from_pretrained(path)
    length = bench.settings.max_seq_length
    model = SentenceEmbeddingModel.from_encoder(path, pooling=pooling, dropout=0.1).to(bench.device)
    modules = [
        Transformer(path, max_seq_length=length),
        Pooling(model.config.hidden_size, pooling_mode=peers_pooling),
    ]
    peer = SentenceTransformer(modules=modules, device=str(bench.device))
    set_every_dropout(peer, 0.1)
    peer_loss = MultipleNegativesRankingLoss(peer, scale=20.0)
    sides = [list(bench.rows[bench.rows.column_names[side]]) for side in (0, -1)]  # the same where it is one column
    pairs = Dataset.from_dict(dict(zip(("anchor", "positive"), sides, strict=True)))

    def peer_way(bf16: bool) -> Callable[[], float]:
        def build() -> SentenceTransformerTrainer:
            args = SentenceTransformerTrainingArguments(
                str(bench.folder / "peer"),
                per_device_train_batch_size=bench.batch,
                num_train_epochs=1,
                learning_rate=1e-6,
                bf16=bf16,
                use_cpu=bench.device.type == "cpu",
                report_to="none",
                disable_tqdm=True,
                save_strategy="no",
                logging_strategy="no",
                dataloader_drop_last=True,
            )
            fresh = copy.deepcopy(peer)
            loss = MultipleNegativesRankingLoss(fresh, scale=20.0)
            return SentenceTransformerTrainer(fresh, args, train_dataset=pairs, loss=loss)

        return lambda: seconds_of(build, bf16)

    how = {"truncation": True, "max_length": length, "padding": True, "return_tensors": "pt"}
    features = [dict(tokenizer(side[: bench.batch], **how).to(bench.device)) for side in sides]
    set_every_dropout(peer, 0.0)
    with torch.no_grad():
        losses = {"sentence-transformers": peer_loss(features, None).item()}
    set_every_dropout(peer, 0.1)
    first = bench.batch_of(tokenizer, pad=False)[0]
    model.use(ComputeSettings())
    losses.update({f"ours in {dtype}": loss_of(model, first, dtype == "bf16") for dtype in bench.settings.dtypes})
    wrong = check(losses, "sentence-transformers")
    ways = {}
    for dtype in bench.settings.dtypes:
        bf16 = dtype == "bf16"
        ways[f"sentence-transformers {dtype}"] = peer_way(bf16)
        ways[f"ours {dtype}"] = bench.ours(model, tokenizer, bf16=str(bf16))
    seconds = in_turn(ways, bench.settings.runs)
    found: dict[str, Any] = {}
    for dtype in bench.settings.dtypes:  # each dtype against the peer's own
        names = [name for name in ways if name.endswith(dtype)]
        found.update(rates({name: seconds[name] for name in names}, len(bench.rows), names[0]))
    return {"ways": found, "losses": losses, **extras(bench, model, tokenizer, seconds[names[1]])}, wrong


def extras(bench: Bench, model: Any, tokenizer: Any, seconds: list[float]) -> dict[str, Any]:
    """What a whole run costs: the evaluation in steps, time for a million sentences; on a GPU memory and its share."""
    settings = bench.settings
    trainer = bench.trainer(model, tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.eval_dataset = {"dev": load_pairs(resolve_resource(settings.dev_file))}
    trainer.evaluate()  # the first one allocates
    started = time.perf_counter()
    trainer.evaluate()
    evaluation, step = time.perf_counter() - started, statistics.median(seconds) / settings.steps
    steps = 1_000_000 / bench.batch
    found = {
        "step_seconds": step,
        "evaluation_seconds": evaluation,
        "evaluation_in_steps": evaluation / step,
        "hours_for_1M_sentences_evaluated_every_100_steps": (steps * step + steps / 100 * evaluation) / 3600,
    }
    if bench.device.type == "cuda":
        batch = bench.batch_of(tokenizer, pad=False)[0]
        with FlopCounterMode(display=False) as flops, torch.autocast("cuda", torch.bfloat16):
            model.train()(**batch).loss.backward()
        model.zero_grad()
        name = torch.cuda.get_device_name()
        peak = next((value for kind, value in BF16_PEAK.items() if kind in name), None)
        rate = flops.get_total_flops() / step
        found["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        found["share_of_bf16_peak"] = rate / peak if peak is not None else None
    print("\n" + "\n".join(f"{name:52}{value}" for name, value in found.items()))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", nargs="+", choices=["cacse", "simcse", "pairs"], default=["cacse", "simcse"])
    parser.add_argument("--model", help=f"default: {BERT_BASE} (BERT-base, random) for cacse, MiniLM for the others")
    parser.add_argument("--batch", type=int, nargs="+", help="rows a step; default: 16 for cacse, 64 for the others")
    parser.add_argument("--steps", type=int, default=3, help="a run")
    parser.add_argument("--runs", type=int, default=3, help="of each way, in turn; the medians are compared")
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=["float32", "bf16"],
        default=["float32", "bf16"] if bf16_is_fast() else ["float32"],
        help="of SimCSE's runs; default: float32, and bf16 where the hardware has it",
    )
    parser.add_argument("--all_ways", action="store_true", help="cacse: ours in float32, too")
    parser.add_argument("--max_seq_length", type=int, default=64)
    parser.add_argument("--mini_batch_size", type=int, help="of ours: gradient caching")
    parser.add_argument("--text", default="sample:sentences.txt", help="a sentence a line")
    parser.add_argument("--pairs", default="sample:handbook.csv", help="of --compare pairs")
    parser.add_argument("--pair_columns", nargs=2, default=["in_plain_words", "sentence"], help="anchor and positive")
    parser.add_argument("--dev_file", default="sample:dev.tsv", help="graded pairs, for the evaluation's cost")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--output", type=Path, help="JSON file; the plot lies beside it")
    settings = parser.parse_args()
    if settings.device == "cuda" and not torch.cuda.is_available():
        print("nothing measured: no CUDA device here")
        return 0
    quiet()
    report: dict[str, Any] = {"targets": TARGETS}
    wrong: list[str] = []
    plots: dict[str, dict[str, float]] = {}
    compared = {
        "cacse": (compare_cacse, BERT_BASE, [16]),
        "simcse": (compare_simcse, MINILM, [64]),
        "pairs": (compare_pairs, MINILM, [64]),
    }
    with tempfile.TemporaryDirectory() as folder:
        for kind in settings.compare:
            compare, default_model, default_batches = compared[kind]
            name = settings.model or default_model
            for batch in settings.batch or default_batches:
                title = f"{kind}, {name.rpartition(':')[2]}, batch {batch}, length {settings.max_seq_length}"
                print(f"\n{title}, {settings.device}, {torch.get_num_threads()} threads", flush=True)
                found, differing = compare(Bench(settings, Path(folder), batch), name)
                print_rates(title, found["ways"])
                report[title] = found
                plots[title] = {way: row["sentences_per_second"] for way, row in found["ways"].items()}
                wrong += [f"{title}: {difference}" for difference in differing]
                gc.collect()
    save(settings.output, report, plots, "sentences a second")
    if wrong:
        print(f"THE RESULTS DIFFER: {'; '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
