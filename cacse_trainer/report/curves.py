"""The curves of a run: one metric over the steps, and a picture of the loss and the dev scores."""

from pathlib import Path
from typing import Any


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
