"""Imports run one way, and importing a module does nothing else."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cacse_trainer"

# What each part may import of this package besides itself; a name stands for the subpackage or module of that name.
EVERYWHERE = {"errors", "files", "version"}
BELOW_TRAINING = {"losses", "compute", "models", "encoding", "evaluation", "export", "data", "settings"}
BELOW_RUNS = {*BELOW_TRAINING, "training", "importers", "report"}
ALLOWED: dict[str, set[str]] = {
    "version": set(),
    "errors": set(),
    "files": set(),
    "losses": set(),
    "compute": {"losses"},
    "data": set(),
    "settings": set(),
    "models": {"losses", "compute"},
    "encoding": {"models", "compute", "data", "settings"},
    "integrations": {"encoding", "data"},
    "evaluation": {"encoding", "compute", "data", "settings"},
    "report": {"evaluation"},
    "export": {"models", "compute", "encoding", "evaluation", "settings"},
    "importers": {"models", "encoding", "evaluation"},
    "training": BELOW_TRAINING,
    "runs": BELOW_RUNS,
    "pipeline": {*BELOW_RUNS, "runs"},
    "demo": {*BELOW_RUNS, "runs"},
    "adaptation": {*BELOW_RUNS, "runs"},
    "instruct": {*BELOW_RUNS, "runs", "pipeline"},
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name != "__init__.py")


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found.update(name for name in names if name)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_directions(path):
    part = part_of(path)
    if part == "cli":
        return
    assert part in ALLOWED, f"{part} has no entry in the table of import directions"
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("cacse_trainer.")}
    assert ours <= {part, *EVERYWHERE, *ALLOWED[part]}, f"{part} may not import {sorted(ours - ALLOWED[part])}"


def test_losses_know_torch_only():
    for path in MODULES:
        if part_of(path) == "losses":
            outside = {name.split(".")[0] for name in imported(path)} - {
                "torch",
                "cacse_trainer",
                "typing",
                "collections",
                "contextlib",
            }
            assert not outside, f"{path.name}: {outside}"


def test_senteval_stands_alone():
    for path in (ROOT / "SentEval" / "senteval").rglob("*.py"):
        assert not any(name.startswith("cacse_trainer") for name in imported(path)), path


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_importing_reads_no_environment_and_parses_nothing(path):
    """At a module's top level stand definitions and registrations only."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.If):  # if __name__ == "__main__", if TYPE_CHECKING
            continue
        source = ast.unparse(node)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)):
            continue
        for word in ("os.environ", "getenv", "parse_args", "basicConfig", "print("):
            assert word not in source, f"{path.name}: {source}"
