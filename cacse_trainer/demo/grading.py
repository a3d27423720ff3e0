"""Grading pairs of sentences: a page in the browser, by buttons or keys, or line by line in a terminal."""

import html
from collections.abc import Callable
from typing import Any

import jinja2

from cacse_trainer.demo.serving import load_gradio, serve_page
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.grading import GRADES, Grading

CSS = """
.gradio-container { max-width: 820px !important; margin: 0 auto !important; }
#pair, #keys { padding: 0 !important; }
.pair { display: grid; gap: 0.7rem; }
.pair p { margin: 0; padding: 1rem 1.1rem; border: 1px solid var(--border-color-primary); border-radius: 8px;
  background: var(--block-background-fill); font-size: 1.15rem; line-height: 1.45; overflow-wrap: anywhere; }
.pair h2 { margin: 0.6rem 0 0; font-size: 1.15rem; }
.pair .told { opacity: 0.75; }
.pair code { overflow-wrap: anywhere; }
.progress { display: flex; align-items: center; gap: 0.8rem; font-variant-numeric: tabular-nums; }
.progress div { flex: 1; height: 0.5rem; border-radius: 4px; background: var(--border-color-primary);
  overflow: hidden; }
.progress i { display: block; height: 100%; background: var(--primary-500); }
.grades { display: grid !important; grid-template-columns: repeat(6, 1fr); gap: 0.5rem; }
.grades button { min-width: 0 !important; height: 100%; padding: 0.6rem 0.3rem !important;
  font-size: 0.82rem !important;  line-height: 1.25; white-space: pre-line; font-weight: 400; }
.grades button::first-line { font-size: 1.2rem; font-weight: 600; }
@media (max-width: 640px) { .grades { grid-template-columns: repeat(2, 1fr); } }
"""
KEYS = """<script>
const buttons = {u: "undo", Backspace: "undo", s: "skip"};
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || /^(INPUT|TEXTAREA)$/.test(event.target.tagName))
    return;
  const name = /^[0-5]$/.test(event.key) ? "grade-" + event.key : buttons[event.key];
  const button = name && document.querySelector("#" + name);
  if (button) { event.preventDefault(); button.click(); }
});
</script>"""
"""0 to 5, u or Backspace, s."""
SHOWN = jinja2.Template(
    """<div class="progress"><span>{{ counts.graded }} graded{% if counts.skipped %}, {{ counts.skipped }} skipped
{% endif %}</span><div><i style="width:{{ 100 - 100 * counts.left / counts.pairs }}%"></i></div>
<span>{{ counts.left }} left</span></div>
<div class="pair">{% if pair %}<h2>How alike are they in meaning?</h2><p>{{ pair.first }}</p><p>{{ pair.second }}</p>
{% else %}<h2>All pairs are done. Thank you.</h2><div>{{ counts.graded }} grades stand in <code>{{ output }}</code>:
<br><code>cacse-trainer train … --dev_file {{ output }}</code></div>{% endif %}</div>""",
    autoescape=True,
)
PROMPT = "0-5, s(kip), u(ndo), q(uit): "


def shown(grading: Grading) -> tuple[str, str]:
    """HTML of how far it has come with the pair to be graded, and that pair's number; "" where none is left."""
    number = grading.current
    pair = grading.pairs[number] if number is not None else None
    page = SHOWN.render(counts=grading.counts, pair=pair, output=str(grading.output))
    return page, "" if number is None else str(number)


def build_grading_page(grading: Grading) -> Any:
    """The page as Gradio blocks.

    Raises:
        UserError: gradio is not installed.
    """
    gr = load_gradio()

    def answer(work: Callable[[int], object], is_undo: bool = False) -> Callable[[str], tuple[str, str]]:
        """An answer to the pair that the browser shows: a second click before the next one comes is for the same."""

        def run(number: str) -> tuple[str, str]:
            try:
                if number or is_undo:
                    work(int(number or 0))
            except UserError as error:
                raise gr.Error(html.escape(str(error)), print_exception=False) from error
            return shown(grading)

        return run

    with gr.Blocks(analytics_enabled=False, title="Grade pairs") as page:
        place = gr.HTML(elem_id="pair")
        number = gr.Textbox(visible="hidden", elem_id="number")
        places = [place, number]
        with gr.Row(elem_classes="grades"):
            for grade, words in GRADES.items():
                button = gr.Button(f"{grade}\n{words}", elem_id=f"grade-{grade}")
                button.click(answer(lambda one, grade=grade: grading.grade(one, grade)), number, places)  # type: ignore[misc]
        with gr.Row():
            undo, skip = (
                gr.Button(f"{word} ({word[0].lower()})", elem_id=word.lower(), min_width=120)
                for word in ("Undo", "Skip")
            )
            undo.click(answer(lambda _: grading.undo(), is_undo=True), number, places)
            skip.click(answer(grading.skip), number, places)
        gr.HTML('<div class="pair"><div class="told">Keys: 0 to 5, u takes the last answer back, s skips. Each answer '
                "is written at once: close the page whenever you like.</div></div>", elem_id="keys")  # fmt: skip
        page.load(lambda: shown(grading), None, places)
    return page


def serve_grading(grading: Grading, host: str, port: int) -> tuple[Any, str]:
    """Show the page; see `serve_page`."""
    return serve_page(build_grading_page(grading), "grade", host, port, CSS, KEYS)


def grade_in_terminal(grading: Grading, ask: Callable[[str], str] = input, say: Callable[[str], None] = print) -> None:
    """Ask for the grades line by line, until all are given, or ``q`` or the end of the input.

    Args:
        grading: what is to be graded.
        ask: gives the answer to a prompt.
        say: shows a text.
    """
    say("\n".join(f"{grade}  {words}" for grade, words in GRADES.items()))
    while (number := grading.current) is not None:
        pair, counts = grading.pairs[number], grading.counts
        say(f"\n[{counts['pairs'] - counts['left'] + 1} of {counts['pairs']}]\n  {pair.first}\n  {pair.second}")
        try:
            said = ask(PROMPT).strip().lower()
        except EOFError:
            return
        if said in map(str, GRADES):
            grading.grade(number, int(said))
        elif said == "s":
            grading.skip(number)
        elif said == "u":
            grading.undo()
        elif said == "q":
            return
