"""The page of one training or distillation run, from what its ``training_report.json`` holds and nothing else."""

from collections.abc import Collection
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from cacse_trainer.report.curves import Series, line_chart, points_of
from cacse_trainer.report.page import Rows, Section, page

SPACE = {
    "alignment": "Mean squared distance of the positive pairs; lower: paraphrases lie closer together.",
    "uniformity": "log E exp(-2·distance²) over all pairs; lower: sentences are spread more evenly.",
    "average_cosine": "Over all pairs of distinct sentences; near 1 the space has collapsed.",
    "dead_dimensions": "Dimensions that hardly vary (under 1 % of the average deviation).",
}
"""What each measure of the embedding space says, by the end of its name in the log."""
CHOOSING = {"spearman": "Spearman ×100", "ndcg@10": "nDCG@10 ×100"}
"""The scores by which a dev set chooses and judges, by the end of their names in the log: graded pairs, retrieval."""
OPTIMISER = {"learning_rate": "learning rate", "grad_norm": "norm of the gradient"}
EXPORTED = "export"
"""Beside the page: the folder of the exported encoders."""
MOVED = jinja2.Template(
    """<figure class="wide"><figcaption>{{ sentence }}</figcaption>
<div class="note">{{ kept }} of its {{ of }} nearest neighbours stayed.</div><div class="sides">
{% for name, hits in (("before training", before), ("after", after)) %}<div><b>{{ name }}</b><ol>
{% for cosine, text in hits %}
<li{% if text not in shown %} class="new"{% endif %}><span>{{ "%.2f" % cosine }}</span>{{ text }}</li>{% endfor %}
</ol></div>{% endfor %}</div></figure>""",
    autoescape=True,
)
LONGEST = 240
"""Characters of a sentence that are shown."""
HIDDEN_SETTINGS = frozenset({"train_batch_size", "eval_batch_size", "hub_token"})


def training_page(report: dict[str, Any], title: str) -> str:
    """``report.html``, from the contents of ``training_report.json``; its title is the run's name."""
    settings = report["settings"]
    recipe = f"recipe {settings['recipe']}" if settings.get("recipe") else "no recipe"
    line, mood = verdict(report)
    shown = {name: value for name, value in settings.items() if name not in HIDDEN_SETTINGS}
    given = {name: shown[name] for name in report.get("given", []) if name in shown}
    score_note = "×100 on each dev set: Spearman's ρ of the cosine with the gold score; on retrieval sets nDCG@10."
    head, rows = scores(report)
    return page(
        title,
        " · ".join(part for part in (report["model"], recipe, report.get("finished")) if part),
        [
            Section("Scores", score_note, rows=rows, head=head, numeric=range(1, len(head))),
            Section("Exported encoders", rows=exports(report), head=("folder", "card", "how to load it")),
            Section("Dev scores over the steps", charts=dev_charts(report)),
            Section("Loss", loss_note(report), charts=loss_charts(report)),
            Section("Embedding space", "Measured on the sentences of the dev sets.", charts=space_charts(report)),
            Section("What moved most", MOVED_NOTE, charts=moved(report)),
            Section("Optimiser", charts=_charts(report, OPTIMISER)),
            Section("Repeat it", command=report.get("command")),
            Section("Data", rows=facts(report["data"])),
            Section("Model and batch", rows=facts(report["run"])),
            Section(
                "Settings", "As given by the recipe and the command line.", rows=facts(given), all_rows=facts(shown)
            ),
            Section("Environment", rows=facts(report["environment"])),
        ],
        verdict=line,
        mood=mood,
        tiles=figures(report),
    )


MOVED_NOTE = (
    "The sentences of the dev sets whose nearest neighbours changed most, with the three nearest and their cosines "
    "before training (the start as it is) and after; what came new among these is coloured."
)


def moved(report: dict[str, Any]) -> list[Markup]:
    """A card a sentence, see `cacse_trainer.evaluation.moved`."""
    cards = []
    for one in report.get("moved") or []:
        sides = {side: [(cosine, _short(text)) for cosine, text in one[side]] for side in ("before", "after")}
        shown = [text for _, text in sides["before"]]  # what is new after training has a colour
        cards.append(Markup(MOVED.render(**{**one, "sentence": _short(one["sentence"]), "shown": shown, **sides})))
    return cards


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def exports(report: dict[str, Any]) -> Rows:
    """Links to the exported folders and their cards, and the line that loads each."""
    rows = []
    for name in report["exported"]:
        folder = f"{EXPORTED}/{name}"
        links = [Markup('<a href="{}">{}</a>').format(quote(folder + end), text)
                 for end, text in (("/", folder), ("/README.md", "README.md"))]  # fmt: skip
        rows.append([*links, Markup("<code>{}</code>").format(f'cacse_trainer.SentenceEncoder("{folder}")')])
    return rows


def loss_page(report: dict[str, Any], title: str) -> str:
    """The page of a run that is chosen by a validation loss and has no dev sets: a language model's fine-tuning.

    Args:
        report: ``training_report.json`` with ``baseline``, ``kept`` and ``kept_step``, validation losses.
        title: of the page.
    """
    baseline, kept = report["baseline"], report["kept"]
    line = "No validation loss was measured."
    if kept is not None:
        before = f"{baseline:.4f} before training, " if baseline is not None else ""
        line = f"Validation loss: {before}{kept:.4f} at step {report['kept_step']}, which was kept."
    chart = line_chart(
        [Series("validation loss", points_of(report["log_history"], "eval_loss"))],
        "validation loss",
        reference=("before training", baseline) if baseline is not None else None,
        mark=(report["kept_step"], kept) if kept is not None else None,
        x_end=report["steps"],
    )
    counts = {name: report[name] for name in ("records", "records_too_long", "answer_tokens", "parameters")}
    return page(
        title,
        f"{report['model']} · {report['finished']}",
        [
            Section("Loss", loss_note(report), charts=[chart, *loss_charts(report)]),
            Section("Optimiser", charts=_charts(report, OPTIMISER)),
            Section("Data and model", rows=facts(counts)),
            Section("Settings", all_rows=facts(report["settings"])),
            Section("Environment", rows=facts(report["environment"])),
        ],
        verdict=line,
        tiles=[
            ("steps", str(report["steps"])),
            ("records", str(report["records"])),
            ("trained parameters", f"{report['trainable_parameters'] / 1e6:.2f} M"),
            *costs(report),
        ],
    )


def verdict(report: dict[str, Any]) -> tuple[str, str]:
    """One line: did training help? And whether that is ``good`` or ``bad``."""
    best, baseline, metric = report.get("best"), report.get("baseline"), report.get("metric")
    if found := report.get("verdict"):
        return verdict_line(found), {"helped": "good", "unclear": ""}.get(found["outcome"], "bad")
    if metric is None:
        return "No dev set was scored: the last model was kept.", ""
    if best is None:
        return f"{metric} was never defined after training began.", "bad"
    where = f"best {best:.2f} at step {report['best_step']}"
    if baseline is None:
        return f"{metric}: {where}.", ""
    if best <= baseline:
        mend = "Try a lower learning rate, more text, or a larger batch."
        return f"Training did not help: {metric} {where}, {baseline:.2f} before training. {mend}", "bad"
    return f"{metric}: {baseline:.2f} before training, {where} ({best - baseline:+.2f}).", "good"


def verdict_line(verdict: dict[str, Any]) -> str:
    """A run's verdict for a person; see `cacse_trainer.runs.baseline.judge`."""
    words = {"helped": "helped", "unclear": "did not clearly help"}
    said = words.get(verdict["outcome"], "did not help")
    start, trained, low, high = (verdict[name] for name in ("start", "trained", "low", "high"))
    interval = "" if low is None else f", 95 % interval [{low:+.2f}, {high:+.2f}]"
    kind = "held out" if verdict["held_out"] else "the checkpoint was chosen on it"
    metric = "nDCG@10, " if verdict.get("metric") == "ndcg@10" else ""
    return (
        f"Training {said}: {verdict['set']} ({metric}{kind}) {start:.2f} for the start as it is, "
        f"{trained:.2f} trained ({trained - start:+.2f}{interval})."
    )


def figures(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures on top."""
    run = report["run"]
    shown = [
        ("steps", str(report["steps"])),
        ("rows a step", str(run["global_batch"] * run["gradient_accumulation_steps"])),
        ("negatives of each row", str(run["effective_negatives"])),
        ("trained parameters", f"{run['trainable_parameters'] / 1e6:.1f} M"),
        *costs(report),
    ]
    if report.get("gpu_memory_gb") is not None:
        shown.append(("peak memory of the GPU", f"{report['gpu_memory_gb']:.1f} GB"))
    return shown


def costs(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures of every run: time and memory."""
    return [
        ("wall time", duration(report["wall_seconds"])),
        ("peak memory of the process", f"{report['peak_memory_gb']:.1f} GB"),
    ]


def duration(seconds: float) -> str:
    """Seconds for a person.

    >>> duration(74.5), duration(5400)
    ('1 min 14 s', '1 h 30 min')
    """
    whole = int(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def number(value: float) -> str:
    """Four significant digits, without an exponent where that is readable.

    >>> number(72.28077), number(4075.0), number(3e-05)
    ('72.28', '4075', '3e-5')
    """
    if 0 < abs(value) < 1e-3:
        digits, _, exponent = f"{value:.2e}".partition("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.0f}" if abs(value) >= 1000 and value == round(value) else f"{value:.4g}"


def scores(report: dict[str, Any]) -> tuple[list[str], Rows]:
    """Head and rows by dev set: before training, the teacher, the best checkpoint, every exported folder."""
    curves = dev_curves(report)
    exported = (dev for found in report["exported"].values() for dev in found)
    names = list(dict.fromkeys([*curves, *((report.get("start") or {}).get("scores", {})), *exported]))
    rows: list[tuple[str, dict[str, float | None]]] = []
    if start := report.get("start"):
        rows.append((f"{start['name']} as it is, {start['pooling']} pooling", start["scores"]))
    untrained = {name: points[0][1] for name, points in curves.items() if points and points[0][0] == 0}
    if untrained:
        rows.append(("before training, read as it is trained", untrained))
    if teacher := report.get("teacher", {}).get("scores"):
        rows.append(("teacher", teacher))
    best = report.get("best_step")
    if best is not None:
        found = {name: dict(points).get(best) for name, points in curves.items()}
        rows.append((f"best checkpoint (step {best})", found))
    rows += [(f"exported: {name}", dict(found)) for name, found in report["exported"].items()]
    cells = [[label, *(score_text(found.get(name), "–") for name in names)] for label, found in rows if names]
    return ["", *names], cells


def score_text(value: float | None, undefined: str = "undefined") -> str:
    """A score for a table."""
    return undefined if value is None else f"{value:.2f}"


def dev_curves(report: dict[str, Any], *measures: str) -> dict[str, list[tuple[float, float | None]]]:
    """A measure over the steps by dev set; default: the score by which the set chooses."""
    return {
        name: points_of(report["log_history"], f"eval_{name}_{measure}")
        for name, measure in _sets(report, measures or tuple(CHOOSING)).items()
    }


def _sets(report: dict[str, Any], measures: Collection[str]) -> dict[str, str]:
    """Which of the measures is logged of each dev set."""
    logged = [key.removeprefix("eval_") for key in _keys(report) if key.startswith("eval_")]
    found = ((key, measure) for key in logged for measure in measures if key.endswith(f"_{measure}"))
    return {key.removesuffix(f"_{measure}"): measure for key, measure in found}


def dev_charts(report: dict[str, Any]) -> list[Markup]:
    """One chart a dev set, the start's score dashed and the chosen checkpoint ringed; and of other dev measures."""
    charts = []
    chosen = str(report.get("metric")).removeprefix("eval_")
    kinds = _sets(report, CHOOSING)
    for name, points in dev_curves(report).items():
        untrained = next((y for x, y in points if x == 0 and y is not None), None)
        start = ((report.get("start") or {}).get("scores") or {}).get(name, untrained)
        best = dict(points).get(report.get("best_step") or -1) if chosen == f"{name}_{kinds[name]}" else None
        charts.append(
            line_chart(
                [Series(name, points)],
                f"{name}: {CHOOSING[kinds[name]]}",
                reference=("the start", start) if start is not None else None,
                mark=(report["best_step"], best) if best is not None else None,
                x_end=report["steps"],
            )
        )
    return charts + _charts(report, {"eval_transfer_avg": "transfer tasks, dev accuracy"})


def loss_charts(report: dict[str, Any]) -> list[Markup]:
    """The loss, and each part on its own scale."""
    keys = [key for key in _keys(report) if key == "loss" or key.startswith("loss_")]
    if len(keys) == 2:  # one part is the loss itself
        keys = ["loss"]
    keys.sort(key=lambda key: key != "loss")  # stable: the parts in the order of the log
    return _charts(report, {key: f"part: {key[5:]}" if key.startswith("loss_") else key for key in keys})


def loss_note(report: dict[str, Any]) -> str:
    """How often it was averaged."""
    every = report["settings"].get("logging_steps")
    shown = "Of every step" if every == 1 else f"Mean over every {every:g} steps"
    return f"{shown}; each part has a scale of its own." if every else ""


def space_charts(report: dict[str, Any]) -> list[Markup]:
    """One chart a measure, a line a dev set."""
    charts = []
    for measure, meaning in SPACE.items():
        lines = [Series(name, points) for name, points in dev_curves(report, measure).items()]
        charts.append(line_chart(lines, measure.replace("_", " "), note=meaning, x_end=report["steps"]))
    return charts


def _charts(report: dict[str, Any], names: dict[str, str]) -> list[Markup]:
    """A chart with one line for each key of the log, under its name."""
    return [
        line_chart([Series(name, points_of(report["log_history"], key))], name, x_end=report["steps"])
        for key, name in names.items()
    ]


def facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values."""
    return [(name.replace("_", " ") if " " not in name else name, _text(value)) for name, value in found.items()]


def _text(value: Any) -> str:
    if value is None or value == "None":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:,}".replace(",", "\u202f")
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_text(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "–"
    return str(value)


def _keys(report: dict[str, Any]) -> list[str]:
    """Names in the log, in the order of their first appearance."""
    return list(dict.fromkeys(key for entry in report["log_history"] for key in entry))
