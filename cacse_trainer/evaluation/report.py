"""What a training run leaves behind besides weights: training_report.json and a plot of loss and dev score."""

import json
import math
import platform
import resource
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

LIBRARIES = (
    "cacse-trainer",
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "scipy",
    "numpy",
    "sentence-transformers",
)


def environment() -> dict[str, Any]:
    """Versions and hardware, for reports and results."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"python": platform.python_version(), **versions, "device": device, "threads": torch.get_num_threads()}


def peak_memory_gb() -> float:
    """This process's largest resident memory so far, in GB."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (1e9 if sys.platform == "darwin" else 1e6)


def plain(value: Any) -> Any:
    """A value as strict JSON knows it: NaN and infinity become null, unknown objects text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write a report as strict JSON, whole or not at all."""
    write_text(path, json.dumps(plain(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def curve(log_history: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """``[{step, value}, …]`` of one logged metric, one entry a step."""
    points = {entry["step"]: entry[metric] for entry in log_history if metric in entry}
    return [{"step": step, "value": value} for step, value in sorted(points.items())]


def plot_run(
    path: Path, log_history: list[dict[str, Any]], dev_metrics: list[str], dev_label: str = "Spearman ×100"
) -> None:
    """A picture of the loss and its parts (left) and the dev scores (right) over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    losses = sorted({key for entry in log_history for key in entry if key == "loss" or key.startswith("loss_")})
    for axis, names, label in ((left, losses, "loss"), (right, dev_metrics, dev_label)):
        for name in names:
            points = curve(log_history, name)
            axis.plot(
                [point["step"] for point in points],
                [point["value"] for point in points],
                marker="." if axis is right else None,
                label=name.removeprefix("eval_"),
            )
        axis.set_xlabel("step")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        if names:
            axis.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
