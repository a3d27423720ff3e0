"""Tiny decoders of random weights, by the script that makes them for users."""

import runpy
from functools import cache
from pathlib import Path

from tests.conftest import ROOT

SCRIPT = ROOT / "scripts" / "make_tiny_decoder.py"


@cache
def make_tiny_decoder(folder: Path, kind: str = "llama") -> str:
    """Folder of a 3-layer decoder of this kind with its tokenizer, made once below ``folder``."""
    made = folder / kind
    make = runpy.run_path(str(SCRIPT))["make_tiny_decoder"]
    make(made, kind, vocab_size=700, hidden_size=32, layers=3, initializer_range=0.15)
    return str(made)
