"""The methods that `quality.py` lets race: which stages each needs, with which settings, and what of them is judged."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cacse_trainer.pipeline.stages import Stage
from cacse_trainer.settings.resources import resolve_resource

METHODS = ["simcse", "cacse", "cacse_light", "two_towers", "tncse", "cacse_after", "two_towers_after", "diffcse"]
METHODS += ["simcse_half", "half_student", "simcse_student", "second_student", "third_student", "student"]
METHODS += ["tncse_student", "three", "three_student", "four", "four_student"]
METHODS += ["rank_two", "rank_four", "uc", "uc_student"]
JOINED = {
    "three": {"simcse/export/encoder": 1 / 3, "two_towers/export/ensemble": 2 / 3},
    "four": {"tncse/export/ensemble": 0.5, "two_towers/export/ensemble": 0.5},
    "uc": {"tncse/export/ensemble": 0.3, "diffcse/export/encoder": 0.7},
}
"""Ensembles of what two stages leave, and the shares."""


@dataclass
class Arm:
    """What all methods share.

    Args:
        name: of the arm.
        start: the encoder from which each begins.
        pooling: that is trained.
        text: sentences, one a line.
        dev: chooses the checkpoints.
        tests: sets of one's own, ``name=path``, that judge.
        tasks: SentEval's tasks that judge.
        data: SentEval's data.
    """

    name: str
    start: str
    pooling: str
    text: str
    dev: str
    tests: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    data: Path | None = None


@dataclass
class Entrant:
    """An encoder to be judged.

    Args:
        name: its row.
        stage: that makes it, with those before.
        models: folders below the seed's own; several are summed.
        weights: of the sum.
    """

    name: str
    stage: str
    models: list[str]
    weights: list[float] | None = None


def race(arm: Arm, settings: argparse.Namespace, seed: int, root: Path) -> tuple[list[Stage], list[Entrant]]:
    """The stages that the chosen methods need, those that others need first, and what they leave to be judged."""
    start, steps, generator = arm.start, settings.steps, str(root.parent / "generator")
    shared = {
        "train_file": resolve_resource(arm.text),
        "dev_file": [f"dev={arm.dev}"],
        "pooling": arm.pooling,
        "per_device_train_batch_size": settings.batch,
        "max_steps": steps,
        "eval_steps": max(1, steps // 6),
        "save_total_limit": 1,
    }
    pair = {"tower_a": start, "tower_b": start}
    trained_pair = {"tower_a": "stage:simcse/export/encoder", "tower_b": "stage:simcse_b/export/encoder"}
    tncse, two_towers = (
        [f"stage:{name}/export/{one}" for one in ("tower_a", "tower_b")] for name in ("tncse", "two_towers")
    )

    def student(of: dict[str, float]) -> dict[str, Any]:
        teachers = [{"path": f"stage:{path}", "weight": weight} for path, weight in of.items()]
        return {"config": "distill/quickstart", "student": start, "teachers": teachers}

    def student_of(joined: str) -> tuple[str, list[str], dict[str, Any]]:
        parts = {path.removesuffix("/ensemble"): weight for path, weight in JOINED[joined].items()}
        return "distill", [path.partition("/")[0] for path in parts], student(parts)

    def ranks(paths: list[str]) -> dict[str, Any]:
        return {"config": "distill/rank_minilm", "student": start, "teachers": [{"path": path} for path in paths]}

    half = {"max_steps": max(1, steps // 2)}  # both stages together see as many sentences as one of the others
    no_cascade = {"config": "cacse/minilm", "cascade_loss_weight": 0}
    made: dict[str, tuple[str, list[str], dict[str, Any]]] = {
        "simcse": ("train", [], {"config": "simcse/minilm", "model": start}),
        "simcse_b": ("train", [], {"config": "simcse/minilm", "model": start, "seed": seed + 100}),
        "cacse": ("train", [], {"config": "cacse/minilm", **pair}),
        "cacse_light": ("train", [], {"config": "cacse/minilm", "cascade_loss_weight": 0.01, **pair}),
        "two_towers": ("train", [], {**no_cascade, **pair}),
        "tncse": ("train", [], {"config": "tncse/minilm", **pair}),
        "cacse_after": ("train", ["simcse", "simcse_b"], {"config": "cacse/minilm", **trained_pair}),
        "two_towers_after": ("train", ["simcse", "simcse_b"], {**no_cascade, **trained_pair}),
        "diffcse": ("train", [], {"config": "diffcse/minilm", "model": start, "generator": generator}),
        "rank_two": ("distill", ["tncse"], ranks(tncse)),
        "rank_four": ("distill", ["tncse", "two_towers"], ranks([*tncse, *two_towers])),
        "simcse_half": ("train", [], {"config": "simcse/minilm", "model": start, "learning_rate": 6e-5, **half}),
        "half_student": ("distill", ["simcse_half"], {**student({"simcse_half/export/encoder": 1.0}), **half}),
        "simcse_student": ("distill", ["simcse"], student({"simcse/export/encoder": 1.0})),
        "second_student": ("distill", ["simcse_student"], student({"simcse_student/export/student": 1.0})),
        "third_student": ("distill", ["second_student"], student({"second_student/export/student": 1.0})),
        "student": ("distill", ["two_towers"], student({"two_towers/export": 1.0})),
        "tncse_student": ("distill", ["tncse"], student({"tncse/export": 1.0})),
        "three_student": student_of("three"),
        "four_student": student_of("four"),
        "uc_student": student_of("uc"),
    }
    pairs = ("cacse", "cacse_light", "two_towers", "tncse", "cacse_after", "two_towers_after")
    entrants, needed = [], {}

    def need(name: str) -> None:
        for other in made[name][1]:
            need(other)
        needed[name] = made[name]

    for name in settings.methods:
        if name in JOINED:
            parts = JOINED[name]
            makers = [path.partition("/")[0] for path in parts]
            for maker in makers:
                need(maker)
            last = max(makers, key=[*needed].index)
            entrants.append(Entrant(name, last, [*parts], [*parts.values()]))
            continue
        need(name)
        forms = {name: "student" if made[name][0] == "distill" else "encoder"}
        if name in pairs:
            forms = {name: "ensemble", f"{name}, tower A": "tower_a"}
        entrants += [Entrant(row, name, [f"{name}/export/{form}"]) for row, form in forms.items()]
    stages = [
        Stage(name, command, {"seed": seed, **shared, **own}, root / name, needs)
        for name, (command, needs, own) in needed.items()
    ]
    return stages, entrants
