"""The documentation is a promise: its commands parse or run, its names exist, it builds and loads nothing."""

import ast
import importlib
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import cacse_trainer
from cacse_trainer import losses
from cacse_trainer.cli.main import COMMANDS
from cacse_trainer.settings.resources import recipe_names
from tests.conftest import ROOT
from tests.documents import blocks, check_command, commands
from tests.stand_ins import enter, link_tree, make_place, run, why_not

PAGES = sorted((ROOT / "docs").rglob("*.md"))
LOSSES = ("nt_xent", "info_nce", "distillation_loss", "cosent_loss", "angle_loss")
"""With a page of their own; the others share one."""
SMALL = {  # what makes a command of the quick start short
    "train": ["--max_steps", "2", "--eval_steps", "2", "--save_steps", "2"],
    "distill": ["--max_steps", "2", "--eval_steps", "2", "--save_steps", "2"],
    "pipeline": ["--set", "common.max_steps=1", "common.eval_steps=1", "common.save_steps=1"],
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT / "docs"))


def all_commands() -> list:
    return [pytest.param(c, id=f"{name_of(page)}: {shlex.join(c)}"[:90]) for page in PAGES for c in commands(page)]


@pytest.mark.parametrize("command", all_commands())
def test_every_command_is_one_that_the_program_takes(command, tmp_path):
    check_command(command, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks(page):
    """They compile, and what they import from this package is there."""
    for code in blocks(page.read_text(encoding="utf-8"), "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cacse_trainer"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_every_recipe_and_command_is_told_of():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    listed = (ROOT / "docs" / "reference" / "recipes.md").read_text(encoding="utf-8")
    assert [name for name in recipe_names() if f"`{name}`" not in listed] == []
    assert [name for name in COMMANDS if f"cacse-trainer {name}" not in text] == []
    told = re.findall(r"^\| `([\w-]+)` \|", (ROOT / "docs/reference/commands.md").read_text(), flags=re.MULTILINE)
    assert sorted(told) == sorted(COMMANDS)


def test_recipe_blocks_parse():
    from cacse_trainer.cli.train import parser

    known = {action.dest for action in parser()._actions}
    for page in PAGES:
        for code in blocks(page.read_text(encoding="utf-8"), "yaml"):
            assert set(yaml.safe_load(code)) <= known, page


def test_it_builds_strictly_and_loads_nothing(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= len(PAGES)
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"<(script|img|iframe)[^>]+src=[\"']?(https?:)?//", text), page
        assert not re.search(r"<link[^>]+rel=[\"']?(stylesheet|preconnect)[^>]+href=[\"']?(https?:)?//", text), page
    reference = tmp_path / "site" / "reference" / "python"
    shown = {"CacseConfig": "cascade_start_layer", "SentenceEncoder": "build_index", "nt_xent": "temperature"}
    for name, told in shown.items():
        assert told in (reference / f"{name}.html").read_text(encoding="utf-8")


def test_every_name_of_the_public_surface_has_a_page():
    pages = {page.stem for page in (ROOT / "docs" / "reference" / "python").glob("*.md")}
    assert pages - {"other_losses"} == {*cacse_trainer.__all__, *LOSSES} - {"__version__"}
    others = (ROOT / "docs" / "reference" / "python" / "other_losses.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: cacse_trainer\.losses\.(\w+)$", others, flags=re.MULTILINE)
    assert sorted([*listed, *LOSSES]) == sorted(losses.__all__)


def test_the_page_of_settings_is_that_of_the_parsers():
    """Of transformers' own settings only where its version is the page's."""
    script = runpy.run_path(str(ROOT / "scripts" / "write_settings.py"))
    page, made = script["PAGE"].read_text(encoding="utf-8"), script["text"]()
    if script["heading"]() not in page:
        page, made = (text.partition("## Of transformers")[0] for text in (page, made))
    assert page == made, "call python scripts/write_settings.py"


@pytest.fixture(scope="module")
def place(tmp_path_factory, senteval_sample) -> Path:
    """The folder that `make_place` fills."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        make_place(folder, senteval_sample)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in [ROOT / "README.md", *PAGES] if commands(page)], ids=lambda page: page.name
)
def test_the_commands_of_a_page_run(page, place, tmp_path, monkeypatch):
    """One after the other, with a tiny stand-in for everything that they name; see `NOT_RUN` for the others."""
    link_tree(place, tmp_path / "place")
    enter(tmp_path / "place", monkeypatch)
    given = [words for words in commands(page) if why_not(words) is None]
    assert [shlex.join(words) for words in given if run(words, monkeypatch) != 0] == []


@pytest.mark.slow
def test_the_quick_start_runs_as_written(tmp_path, minilm):
    """Its commands in order, with fewer steps, in an empty folder; then its Python and that of the encoder's guide."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"}

    def call(words: list[str]) -> str:
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr[-3000:]}"
        assert "Warning" not in done.stderr and "Traceback" not in done.stderr
        return done.stdout

    said = {}
    for command in commands(ROOT / "docs" / "quickstart.md"):
        if command[0] == "cacse-trainer":
            said[command[1]] = call([*command, *SMALL.get(command[1], [])])
    assert "music" in said["search"] or "plays" in said["search"]
    assert (tmp_path / "vectors.npy").is_file() and "tower_a" in said["export"]
    for folder in ("runs/quickstart", "runs/pipeline_small"):
        assert (tmp_path / folder / "report.html").is_file()
    for name in ("quickstart.md", "guides/encode_and_search.md", "migrating.md"):
        page = ROOT / "docs" / name
        for code in blocks(page.read_text(encoding="utf-8"), "python"):
            call([sys.executable, "-c", code])
