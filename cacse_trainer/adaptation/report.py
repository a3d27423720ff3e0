"""What an adaptation tells: ``report.html``, whose first screen is the verdict, and the same in numbers."""

from pathlib import Path
from typing import Any

from cacse_trainer.adaptation.plan import PAGE, REPORT
from cacse_trainer.adaptation.verdict import HELPED, UNCLEAR
from cacse_trainer.encoding.model_card import table
from cacse_trainer.evaluation.dev_sets import Retrieval
from cacse_trainer.files import plain, write_json, write_text
from cacse_trainer.report.curves import Series, line_chart, points_of
from cacse_trainer.report.page import Rows, Section, page
from cacse_trainer.report.training import duration, facts, loss_charts, loss_note

METRICS = Retrieval.metrics
MOVED = ("query", "before", "after")
LONGEST = 160
"""Characters of a text that a table shows."""


def write_report(folder: Path, found: dict[str, Any], training: dict[str, Any]) -> None:
    """Write both; the numbers last, which say that the adaptation is finished."""
    write_text(folder / PAGE, adaptation_page(plain(found), training, folder.resolve().name))
    write_json(folder / REPORT, found)


def adaptation_page(found: dict[str, Any], training: dict[str, Any], title: str) -> str:
    """The page, from the contents of ``adaptation.json`` and of the training's report."""
    verdict, start = found["verdict"], found["start"]
    mood = {HELPED: "good", UNCLEAR: ""}.get(verdict["outcome"], "bad")
    head, rows = forms_table(found["forms"])
    test, dev = found["test"], found["dev"]
    judged = (
        f"{test['queries']} queries that nothing was chosen by, among {test['documents']} passages; the encoders read "
        "by the pooling that the start's folder states."
    )
    chosen = f"How much of the training is kept, in the mean with the start: {dev['queries']} dev queries choose."
    return page(
        title,
        f"{start['name']} and {found['documents']['documents']} documents · recommended: {found['recommended']}",
        [
            Section("On held-out queries", judged, rows=rows, head=head, numeric=range(1, len(head))),
            Section(
                "Dev part over the steps",
                " ".join(filter(None, (by_words(found), ended_early(found)))),
                charts=dev_charts(found, training),
            ),
            Section(
                "Queries that gained most",
                rows=moved(verdict["gained"]),
                head=MOVED,
                numeric=(1, 2),
            ),
            Section("Queries that lost most", rows=moved(verdict["lost"]), head=MOVED, numeric=(1, 2)),
            Section(
                "Shares of the training",
                chosen,
                rows=[(name, f"{score:.2f}") for name, score in found["shares"].items()],
                head=("share", verdict["metric"]),
                numeric=(1,),
            ),
            Section(
                "What else was watched",
                "general: how far general sentences keep the start's order of similarities (the start has 100).",
                rows=[(name, *(f"{score:.2f}" for score in pair)) for name, pair in found["watched"].items()],
                head=("set", "start", "trained"),
                numeric=(1, 2),
            ),
            Section("Rows", rows=kinds_table(found["plan"]), head=("kind", "in the text", "trained"), numeric=(1, 2)),
            Section("Text", rows=facts(found["documents"])),
            Section("Loss", loss_note(training), charts=loss_charts(training)),
            Section("Repeat it", command=" ".join(found["command"]) or None),
            Section("Settings", all_rows=facts({**found["settings"], **training["settings"]})),
            Section("Environment", rows=facts(training["environment"])),
        ],
        verdict=verdict["sentence"],
        mood=mood,
        tiles=[
            ("steps", str(found["training"]["steps"])),
            ("rows a step", str(training["run"]["global_batch"])),
            ("share of the training kept", f"{found['share']:g}"),
            ("wall time", duration(found["wall_seconds"])),
        ],
    )


def forms_table(forms: list[dict[str, Any]]) -> tuple[list[str], Rows]:
    """Head and rows: every encoder and form of it on the test part, with its speed and size where they are known."""
    head = ["", *METRICS, "passages a second", "MB"]
    rows = [
        [
            one["name"],
            *(f"{one['scores'][metric]:.2f}" for metric in METRICS),
            "–" if one["sentences_a_second"] is None else f"{one['sentences_a_second']:.0f}",
            "–" if one["size_mb"] is None else f"{one['size_mb']:.1f}",
        ]
        for one in forms
    ]
    return head, rows


def dev_charts(found: dict[str, Any], training: dict[str, Any]) -> list[Any]:
    """The dev part's score over the steps, the start's dashed."""
    metric = found["verdict"]["metric"]
    points = points_of(training["log_history"], f"eval_dev_{metric}")
    reference = ("the start", found["start"]["dev"][metric])
    return [
        line_chart([Series("dev", points)], f"dev part: {metric} ×100", reference=reference, x_end=training["steps"])
    ]


def by_words(found: dict[str, Any]) -> str:
    """What BM25 finds on the dev part; "" where it was not asked."""
    scores = found["dev"]["bm25"]
    return "" if scores is None else f"BM25, by words alone: {scores[found['verdict']['metric']]:.2f}."


def ended_early(found: dict[str, Any]) -> str:
    """That the training ended before its plan, and why; "" where it did not."""
    made, planned = found["training"], found["plan"]["steps"]
    if made["steps"] >= planned:
        return ""
    return (
        f"The training ended at step {made['steps']} of {planned}: the dev part had not risen since step "
        f"{made['best_step']}."
    )


def moved(queries: list[list[Any]]) -> Rows:
    """Queries with their scores before and after."""
    return [(text[:LONGEST], f"{before:.0f}", f"{after:.0f}") for text, before, after in queries]


def kinds_table(plan: dict[str, Any]) -> Rows:
    """Rows by kind."""
    return [(kind, str(count), str(plan["rows"].get(kind, 0))) for kind, count in plan["counts"].items()]


def card_section(found: dict[str, Any]) -> str:
    """What the encoder's card says of the verdict, in Markdown."""
    head, rows = forms_table(found["forms"])
    names = {cells[0]: " | ".join(cells[1:]) for cells in rows}
    test = found["test"]
    return (
        f"{found['verdict']['sentence']}\n\n{table(names, *head)}\n\n"
        f"Measured on {test['queries']} held-out queries among {test['documents']} passages of the text that it was "
        f"adapted to; share of the training in the mean with {found['start']['name']}: {found['share']:g}."
    )
