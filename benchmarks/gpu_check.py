"""One check of a GPU, in at most seven minutes: is what we compute right there, how fast is it, what does it need.

Nothing is read from a network: the weights are random, the text is generated. Each part runs in a process of its own,
with a limit of its own, and says its JSON line at once, so that a part that breaks or hangs costs only itself.

golden      losses and gradients of the reference implementations, in double (tests/golden), against float32 without
            TF32 and bf16 there
families    each kind of model at toy size: vectors, loss and gradients against the CPU's in double
packed      the same without padding (on a CPU by a softmax a row in the kernel's place); then SimCSE with padding and
            without it, with dropout of the attention and without: sentences a second and peak memory
resume      a training broken off in the middle ends, bit for bit, where an unbroken one does
roads       the commands on toy models, as many as there is time for (tests/devices/roads.py); not on a CPU, where the
            tests do it
peer        sentence-transformers' trainer with MultipleNegativesRankingLoss, bf16, for `simcse_64` and `simcse_512`
simcse_…    sentences a second, peak memory and share of the chip's bf16 peak (every product counted); 8192 rows by
cacse_…     gradient caching; sentences a second are rows, whatever the number of views
tncse_…, diffcse_…, decoder_… (LoRA), distill_…
encode      a corpus to vectors, beside sentence-transformers, both in bf16 (on a CPU in float32)
whole       train with an evaluation, export, reload; the vectors beside the CPU's

The tests' own device (tests/devices; `--device other`) is no CPU on any machine, so that all parts run as on a GPU, at
toy size. The share of the peak is null there and on a CPU, on that device peak memory, too; that TF32 is off, and the
kernels for rows of any lengths, is shown by a GPU alone.

    python benchmarks/gpu_check.py                                       (toy size, two minutes on a CPU)
    python benchmarks/gpu_check.py --device other --output other.jsonl   (needs g++ and ninja)
    python benchmarks/gpu_check.py --estimate other.jsonl                (what an H100 would take, see gpu_estimate.py)
    python benchmarks/gpu_check.py --device cuda --output gpu_check.jsonl
    python benchmarks/gpu_check.py --device cuda --parts golden families simcse_512
"""

import argparse
import copy
import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from common import quiet
from common_models import OTHER, Check
from gpu_rates import CORPUS, TRAININGS, first_batch, measured, peer, with_and_without_padding
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import Tensor

from cacse_trainer import (
    SentenceEncoder,
    load_pairs,
)
from cacse_trainer.compute import packing, varlen
from cacse_trainer.importers.reference import convert_reference_checkpoint
from cacse_trainer.settings.resources import resolve_resource

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))
GOLDEN = ROOT / "tests" / "golden" / "cacse" / "bert_begin7_constraint4"
ONLY_CUDA = "the share of the bf16 peak, TF32, kernels for rows of any lengths; peak memory (a CPU tells the process's)"
LONGEST_ROAD = 25
"""Seconds of one of `roads`, so that none is begun that could not end."""
MARGIN = 4.0
"""How many times the CPU's own distance from the result in double a device's may be: its sums have another order."""


Computed = dict[str, dict[str, Tensor]]
"""Vectors, a loss and the gradients, each by name."""


def off(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """The length of the difference, of all tensors together, over the length of the exact ones."""
    far = sum((found[name].detach().cpu().double() - value).square().sum() for name, value in exact.items())
    return math.sqrt(far / sum(value.square().sum() for value in exact.values()))


def loss_and_gradients(
    model: Any, batch: dict[str, Tensor], device: str, dtype: torch.dtype, packed: bool = False
) -> Computed:
    """Of one batch, under autocast where the dtype is bfloat16; packed: without padding, as a GPU trains."""
    model = copy.deepcopy(model).to(device).train()
    model = model.double() if dtype == torch.float64 else model.float()
    rows = {name: value.to(device, copy=True) for name, value in batch.items()}
    if packed:
        model.use(replace(model.compute, length_buckets=None))
        varlen.remember_lengths(rows["attention_mask"], batch["attention_mask"].sum(dim=-1).numpy())
    autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16)
    with patch.object(packing, "FlatRows", wraps=packing.FlatRows) as flat, autocast:
        output = model(**rows)
    assert flat.called == packed, "the padded way was taken" if packed else "the way without padding was taken"
    loss = output.loss
    loss.backward()
    vectors = {name: value.detach() for name, value in output.items() if name.endswith("embeddings")}
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return {"vectors": vectors, "loss": {"loss": loss.detach()}, "gradients": gradients}


def compare(
    model: Any,
    batch: dict[str, Tensor],
    device: str,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    **way: bool,
) -> dict[str, Any]:
    """The device, in its way, against double on the CPU, padded, bounded by what the CPU itself errs."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    exact = loss_and_gradients(model, batch, "cpu", torch.float64)
    found: dict[str, Any] = {}
    for dtype in dtypes:
        here = loss_and_gradients(model, batch, "cpu", dtype)
        there = loss_and_gradients(model, batch, device, dtype, **way)
        for of, values in exact.items():
            name = f"{of} in {str(dtype).removeprefix('torch.')}"
            bound = MARGIN * max(off(here[of], values), torch.finfo(dtype).eps)
            found[name] = {"off": off(there[of], values), "bound": bound}
            assert found[name]["off"] <= bound, f"{name} lie {found[name]['off']:.2e} from double's, beyond {bound:.2e}"
    return found


def golden(check: Check) -> dict[str, Any]:
    """CACSE's reference values: losses of the towers and the cascade, the total, and the gradients."""
    names = ("submodel1", "submodel2", "constraint")
    model, _ = convert_reference_checkpoint(
        GOLDEN / "reference_state_dict.safetensors",
        *(str(GOLDEN / name) for name in names),
        cascade_start_layer=7,
        constraint_layers=4,
        cascade_dropout=0.0,
        constraint_dropout=0.0,
    )
    values = load_file(GOLDEN / "tensors.safetensors")
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    batch = {name: values[name].unflatten(0, (-1, 2)) for name in inputs if name in values}
    exact = loss_and_gradients(model, batch, "cpu", torch.float64)["loss"]
    assert off(exact, {"loss": values["float64.loss_total"]}) < 1e-10, "the CPU in double misses the reference"
    return compare(model, batch, check.device)


def families(check: Check) -> dict[str, Any]:
    """Each kind of model at toy size, without dropout."""
    found = {}
    for kind in ("simcse", "cacse", "tncse", "diffcse", "decoder"):
        trainer = check.trainer(kind, 8, 1, small=True)
        batch = {name: value.cpu() for name, value in first_batch(trainer).items() if isinstance(value, Tensor)}
        # what DiffCSE's generator fills in is an argmax, which bfloat16 may change
        dtypes = (torch.float32,) if kind == "diffcse" else (torch.float32, torch.bfloat16)
        found[kind] = compare(check.model(kind, small=True, dropout=0.0), batch, check.device, dtypes)
    return found


def packed(check: Check) -> dict[str, Any]:
    """What is saved by leaving the padding out, and that nothing changes by it."""
    if check.device == "cpu":
        from tests.varlen_reference import for_half

        varlen.kernel_for = for_half
    found: dict[str, Any] = {}
    for kind in ("simcse", "cacse"):
        batch = first_batch(check.trainer(kind, 8, 1, small=True))
        own = {name: value.cpu() for name, value in batch.items() if isinstance(value, Tensor)}
        found[kind] = compare(check.model(kind, small=True, dropout=0.0), own, check.device, packed=True)
    return {**found, **with_and_without_padding(check)}


def resume(check: Check) -> dict[str, Any]:
    """Four steps, and two, a checkpoint and two more."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what cuBLAS wants for the same sums every time
    torch.use_deterministic_algorithms(True, warn_only=True)
    how: dict[str, Any] = {"small": True, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}
    found = {}
    for kind in ("simcse", "cacse", "diffcse", "decoder", "distill"):
        whole = check.trainer(kind, 8, 4, name=f"resume-{kind}", **how)
        whole.train()
        again = check.trainer(kind, 8, 4, name=f"resumed-{kind}", **how)
        again.train(resume_from_checkpoint=str(check.folder / f"resume-{kind}" / "checkpoint-2"))
        ends = [trainer.model.state_dict() for trainer in (whole, again)]
        differing = [name for name, value in ends[0].items() if not torch.equal(value, ends[1][name])]
        assert not differing, f"{kind}: {len(differing)} of {len(ends[0])} tensors differ after the resume"
        found[kind] = f"{len(ends[0])} tensors equal"
    return found


def roads(check: Check) -> dict[str, Any]:
    """Every command, on toy models; those for which no time is left are named."""
    if check.device == "cpu":
        return {"skipped": "the tests do it on a CPU"}
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "senteval"), str(ROOT / "SentEval")]
    from senteval_samples import write_all

    from tests.devices.roads import roads as names
    from tests.devices.roads import run_all

    os.environ["SENTEVAL_SAMPLE"] = str(write_all(check.folder / "senteval"))
    codes, began = {}, time.monotonic()
    for line in run_all(check.device, check.folder):
        codes[line["road"]] = line["code"]
        if time.monotonic() - began > check.seconds - LONGEST_ROAD:
            break
    failed = [name for name, code in codes.items() if code != 0]
    assert not failed, f"roads that failed: {', '.join(failed)}"
    late = [name for name in names(check.folder, check.device) if name not in codes]
    return {"roads": len(codes), "no_time_for": late}


def encode(check: Check) -> dict[str, Any]:
    """Sentences a second, both in bf16 but on a CPU; the peer sorts by length and pads, as its `encode` does."""
    lines = check.sentences(64 if check.toy else CORPUS)
    ours, theirs = (
        SentenceEncoder(check.encoder(), "mean", device=check.device, compute="bf16" if check.bf16 else "float32"),
        SentenceTransformer(check.encoder(), device=check.device),
    )
    batch = 8 if check.toy else 512
    found: dict[str, Any] = {}
    vectors = {}
    for name, encoder in (("ours", ours), ("sentence-transformers", theirs)):
        with torch.autocast(check.device, torch.bfloat16, enabled=name != "ours" and check.bf16):
            encoder.encode(lines[: 2 * batch], batch_size=batch)  # the first one allocates
            began = time.perf_counter()
            vectors[name] = encoder.encode(lines, batch_size=batch, normalize_embeddings=True)
            found[name] = len(lines) / (time.perf_counter() - began)
    cosines = (torch.as_tensor(vectors["ours"]) * torch.as_tensor(vectors["sentence-transformers"])).sum(-1)
    return {
        **found,
        "times_as_fast": found["ours"] / found["sentence-transformers"],
        "least_cosine": cosines.min().item(),
        "computed_in": ours.compute,
    }


def whole(check: Check) -> dict[str, Any]:
    """Train, evaluate, export; the export's vectors on the device and on the CPU, and in sentence-transformers."""
    trainer = check.trainer(
        "simcse", 8, 4, small=True, eval_dataset={"dev": load_pairs(resolve_resource("sample:dev.tsv"))}
    )
    trainer.train()
    scores = trainer.evaluate()
    trainer.export(check.folder / "export")
    folder, lines = check.folder / "export" / "encoder", check.sentences(64)
    exact = {"vectors": torch.as_tensor(SentenceEncoder(folder, device="cpu").encode(lines)).double()}
    others = {
        "here": SentenceEncoder(folder, device=check.device),
        "peer": SentenceTransformer(str(folder), device=check.device),
    }
    found = {
        name: off({"vectors": torch.as_tensor(other.encode(lines, normalize_embeddings=True))}, exact)
        for name, other in others.items()
    }
    assert max(found.values()) < 1e-4, f"vectors differ from the CPU's: {found}"
    return {**found, "evaluated": {name: value for name, value in scores.items() if "spearman" in name}}


PARTS: dict[str, tuple[Callable[[Check], dict[str, Any]], int]] = {
    "golden": (golden, 40),
    "families": (families, 60),
    "packed": (packed, 75),
    "resume": (resume, 60),
    "simcse_64": (measured(TRAININGS["simcse_64"]), 40),
    "simcse_512": (measured(TRAININGS["simcse_512"]), 40),
    "simcse_8192": (measured(TRAININGS["simcse_8192"]), 60),
    "peer": (peer, 60),
    "cacse_64": (measured(TRAININGS["cacse_64"]), 40),
    "cacse_512": (measured(TRAININGS["cacse_512"]), 60),
    "encode": (encode, 60),
    "diffcse_64": (measured(TRAININGS["diffcse_64"]), 40),
    "tncse_64": (measured(TRAININGS["tncse_64"]), 40),
    "distill_64": (measured(TRAININGS["distill_64"]), 40),
    "decoder_64": (measured(TRAININGS["decoder_64"]), 60),
    "whole": (whole, 40),
    "roads": (roads, 150),
}
"""Each part and its seconds, the most telling ones first: what is behind may fall to the time."""


def call(part: str, settings: argparse.Namespace, seconds: float, send: Any) -> None:
    """One part, in its own process, that has so many seconds."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            found: dict[str, Any] = PARTS[part][0](Check(settings.device, settings.size, Path(folder), seconds))
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()[-2000:]}
    send.send({"part": part, **found, "seconds": round(time.perf_counter() - began, 1)})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda", OTHER], default="cpu", help=f"{OTHER}: the tests' own")
    parser.add_argument("--size", choices=["toy", "base"], help="default: base (BERT-base) on cuda, toy on a CPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--minutes", type=float, default=7, help="in all; what does not begin before is left out")
    parser.add_argument("--patience", type=float, default=1, help="times each part's limit, where other work is done")
    parser.add_argument("--output", type=Path, help="JSON lines, written part by part")
    parser.add_argument(
        "--estimate",
        type=Path,
        metavar="LINES",
        help=f"run nothing: tell what an H100 would take, from the lines of --device {OTHER} (see gpu_estimate.py)",
    )
    settings = parser.parse_args()
    settings.size = settings.size or ("base" if settings.device == "cuda" else "toy")
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # the other way to ask begins CUDA here, and no child could
    if settings.device == "cuda" and not torch.cuda.is_available():
        print("nothing checked: no CUDA device here")
        return 0
    if settings.device == OTHER or settings.estimate is not None:
        from tests.devices.other_device import register

        register()  # the children inherit it
        os.environ["ACCELERATE_TORCH_DEVICE"] = OTHER
    quiet()
    if settings.estimate is not None:
        from gpu_estimate import tell

        return tell(settings.estimate, {part: PARTS[part][1] for part in settings.parts}, settings.minutes)
    if settings.device != "cuda":
        print(f"only with CUDA: {ONLY_CUDA}")
    forking = multiprocessing.get_context("fork")  # the libraries are loaded once; CUDA begins in the children only
    began, failed = time.monotonic(), []
    for part in settings.parts:
        left = 60 * settings.minutes - (time.monotonic() - began)
        line: dict[str, Any] = {"part": part, "left_out": "no time was left"}
        if left > 5:
            receive, send = forking.Pipe(duplex=False)
            limit = min(left, settings.patience * PARTS[part][1])
            process = forking.Process(target=call, args=(part, settings, limit, send))
            process.start()
            send.close()
            line = {"part": part, "error": f"not done after {limit:.0f} s"}
            try:
                if receive.poll(limit):
                    line = receive.recv()
            except EOFError:
                line["error"] = "its process died"
            process.kill()
            process.join()
        failed += [part] if "error" in line else []
        print(json.dumps(line), flush=True)
        if settings.output is not None:
            with settings.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    print(f"failed: {', '.join(failed)}" if failed else f"{len(settings.parts)} parts are fine")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
