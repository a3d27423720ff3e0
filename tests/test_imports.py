"""Imports run one way, and importing a module does nothing else."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cacse_trainer"

# What each part may import of this package. A name stands for the subpackage or module of that name.
BASE = {"errors"}
ALLOWED = {
    "version": set(),
    "errors": set(),
    "distributed": set(),
    "memory": set(),
    "cores": set(),
    "losses": {"losses"},
    "models": {"models", "losses", "distributed"},
    "locks": set(),
    "checkpoints": BASE,
    "interruption": {"distributed"} | BASE,
    "data": {"data", "locks"} | BASE,
    "evaluation": {"evaluation", "distributed", "memory", "cores"} | BASE,
    "arguments": {"decoder_arguments"} | BASE,
    "decoder_arguments": set(),
    "distillation_arguments": set(),
    "recipes": {"arguments", "distillation_arguments"} | BASE,
    "resumable": {"checkpoints", "interruption", "distributed", "memory"} | BASE,
    "guards": {"data"} | BASE,
    "description": {"distributed"},
    "trainer": {"resumable", "guards", "description", "models", "data", "distributed", "evaluation", "arguments"}
    | BASE,
    "distillation": {"trainer", "models", "losses", "data", "distributed", "evaluation"} | BASE,
    "teachers": {"teachers", "models", "export", "evaluation", "distributed"} | BASE,
    "report": {"report"},
    "pipeline": {"pipeline", "report", "recipes", "arguments", "distillation_arguments", "evaluation"} | BASE,
    "instruct": {
        *("instruct", "encoder", "loading", "export", "pipeline", "models", "evaluation", "data", "report"),
        *("checkpoints", "recipes", "arguments"),
    }
    | BASE,
    "export": {"export", "models", "evaluation"} | BASE,
    "embedding": {"export", "models", "evaluation"} | BASE,
    "loading": {"embedding", "export", "models", "evaluation", "recipes"} | BASE,
    "vectors": {"vectors"} | BASE,
    "demo": {"demo", "encoder_base", "data", "vectors"} | BASE,
    "encode_corpus": {"encoder_vectors", "data", "distributed", "evaluation"} | BASE,
    "encoder_pool": BASE,
    "encoder_vectors": {"vectors", "encoder_pool", "evaluation", "distributed"} | BASE,
    "encoder_base": {"encoder_vectors", "data", "vectors"} | BASE,
    "encoder": {"models", "encoder_base", "encoder_vectors", "loading", "evaluation"} | BASE,
    "encoder_sum": {"encoder_base", "evaluation"} | BASE,
    "encoder_onnx": {"encoder_base", "encoder_vectors", "loading", "export", "evaluation", "recipes"} | BASE,
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
    assert ours <= ALLOWED[part], f"{part} may not import {sorted(ours - ALLOWED[part])}"


@pytest.mark.parametrize("part", ["losses", "distributed"])
def test_losses_and_distributed_know_torch_only(part):
    for path in MODULES:
        if part_of(path) == part:
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
