"""One HTML page of sections and tables, self-contained: its style is in it, and it loads nothing."""

import html
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

STYLE = """
:root{color-scheme:light dark;--ink:#1f2933;--soft:#5b6875;--paper:#fff;--card:#f6f7f9;--rule:#d9dee4;
--line-1:#2563eb;--line-2:#d97706;--line-3:#0d9488;--line-4:#9333ea;--good:#15803d;--bad:#b91c1c}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ed;--soft:#9aa5b1;--paper:#14181d;--card:#1d232a;--rule:#333c46;
--line-1:#60a5fa;--line-2:#fbbf24;--line-3:#2dd4bf;--line-4:#c084fc;--good:#4ade80;--bad:#f87171}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;color:var(--ink);
background:var(--paper);max-width:1080px;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.7rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .5rem;border-bottom:1px solid var(--rule);
padding-bottom:.3rem}h3{font-size:1rem;margin:1.4rem 0 .4rem}
p{margin:.4rem 0}.lead{color:var(--soft)}.verdict{font-size:1.1rem;margin:.8rem 0}
.good{color:var(--good)}.bad{color:var(--bad)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:.7rem;margin:1rem 0}
.tiles div{background:var(--card);border-radius:8px;padding:.6rem .8rem}
.tiles b{display:block;font-size:1.25rem;font-weight:600;font-variant-numeric:tabular-nums}
.tiles span{color:var(--soft);font-size:.82rem}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(245px,1fr));gap:.9rem;margin:.6rem 0}
.wide{grid-template-columns:minmax(245px,400px)}
figure{margin:0;background:var(--card);border-radius:8px;padding:.7rem .8rem .4rem;display:flex;flex-direction:column}
figure svg{width:100%;height:auto;margin-top:auto}figcaption{font-weight:600;font-size:.92rem}
.note{color:var(--soft);font-size:.8rem;line-height:1.35}
.legend{font-size:.8rem;display:flex;flex-wrap:wrap;gap:.2rem .9rem}
.legend i{display:inline-block;width:14px;height:3px;vertical-align:middle;margin-right:.35rem}
svg text{font:11px system-ui,"DejaVu Sans",sans-serif;fill:var(--soft)}.grid{stroke:var(--rule);stroke-width:1}
.reference{stroke:var(--soft);stroke-width:1.2;stroke-dasharray:5 4}
.mark{fill:none;stroke:var(--good);stroke-width:2}
.scroll{overflow-x:auto}table{border-collapse:collapse;margin:.5rem 0;font-size:.9rem}
td,th{text-align:left;padding:.28rem 1.1rem .28rem 0;border-bottom:1px solid var(--rule);vertical-align:top}
th{color:var(--soft);font-weight:500}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
pre{background:var(--card);border-radius:8px;padding:.7rem .9rem;overflow-x:auto;white-space:pre-wrap;
word-break:break-word;font-size:.85rem}
summary{cursor:pointer;color:var(--soft);margin:.5rem 0}
@media print{body{max-width:none}figure,.tiles div{break-inside:avoid}}
"""


@dataclass
class Section:
    """A heading with what stands below it.

    Args:
        heading: plain text.
        body: HTML; a section without is left out.
        note: one plain sentence under the heading.
    """

    heading: str
    body: str
    note: str = ""


def page(title: str, lead: str, head: str, sections: Sequence[Section]) -> str:
    """The whole document.

    Args:
        title, lead: plain text: the heading and the line below it.
        head: HTML above the first section.
        sections: in order.
    """
    parts = [f'<h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p>{head}']
    for section in sections:
        if section.body:
            note = f'<p class="lead">{html.escape(section.note)}</p>' if section.note else ""
            parts.append(f"<h2>{html.escape(section.heading)}</h2>{note}{section.body}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>\n{''.join(parts)}\n</body></html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """An HTML table of plain texts; empty without rows.

    Args:
        head: column names; none: no head row.
        rows: as many cells each.
        numeric: indices of the columns that are set flush right.
    """
    if not rows:
        return ""

    def row(cells: Sequence[str], tag: str) -> str:
        marked = (
            f"<{tag}{' class=n' if i in numeric else ''}>{html.escape(cell)}</{tag}>" for i, cell in enumerate(cells)
        )
        return f"<tr>{''.join(marked)}</tr>"

    top = row(head, "th") if head else ""
    return f'<div class="scroll"><table>{top}{"".join(row(cells, "td") for cells in rows)}</table></div>'


def tiles(figures: Sequence[tuple[str, str]]) -> str:
    """A row of figures: (label, value) each."""
    shown = "".join(
        f"<div><b>{html.escape(value)}</b><span>{html.escape(label)}</span></div>" for label, value in figures
    )
    return f'<div class="tiles">{shown}</div>'


def command(text: str) -> str:
    """A command as it is; a long one with a flag a line, as the shell takes it."""
    lines: list[list[str]] = [[]]
    for word in shlex.split(text):
        if word.startswith("--") and len(text) > 100:
            lines.append([])
        lines[-1].append(word)
    joined = " \\\n    ".join(shlex.join(words) for words in lines)
    return f"<pre>{html.escape(joined)}</pre>"


def grid(charts: Sequence[str]) -> str:
    """Charts side by side; empty without any."""
    shown = "".join(charts)
    return f'<div class="charts">{shown}</div>' if shown else ""


def details(summary: str, body: str) -> str:
    """HTML that is folded away until it is asked for."""
    return f"<details><summary>{html.escape(summary)}</summary>{body}</details>"
