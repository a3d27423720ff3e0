"""Figures of the package's structure, for comparing two commits of it.

python scripts/house.py                                  this checkout
git worktree add ../before v0.1.0 && python scripts/house.py ../before .
"""

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "cacse_trainer"


def modules(root: Path) -> dict[str, ast.Module]:
    """The package's modules by their path below it."""
    package = root / PACKAGE
    return {
        path.relative_to(package).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(package.rglob("*.py"))
    }


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the dotted name of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def model_classes(trees: dict[str, ast.Module]) -> set[str]:
    """Names of the classes that models/ defines, but for configurations and outputs."""
    names = {
        node.name
        for name, tree in trees.items()
        if name.startswith("models/")
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    return {name for name in names if name.endswith(("Model", "Bundle"))}


def renames_by_hand(tree: ast.Module) -> bool:
    """Whether a module gives a file or folder its final name itself."""
    return any(
        name in ("os.replace", "os.rename") or (name.endswith(".replace") and len(call.args) == 1 and not call.keywords)
        for name, call in calls(tree)
    )


def figures(root: Path) -> dict[str, int]:
    """What is counted, by name."""
    trees = modules(root)
    lines = {name: len((root / PACKAGE / name).read_text(encoding="utf-8").splitlines()) for name in trees}
    classes = model_classes(trees)
    asked = [
        call
        for name, tree in trees.items()
        if not name.startswith("models/")
        for called, call in calls(tree)
        if called == "isinstance" and classes & {n.id for n in ast.walk(call.args[1]) if isinstance(n, ast.Name)}
    ]
    roads = [
        call
        for tree in trees.values()
        for called, call in calls(tree)
        if ast.unparse(call) in ("dict.fromkeys(sentences)", "dict.fromkeys(checked(sentences))")
    ]
    return {
        "modules at the root (without __init__)": sum("/" not in name and name != "__init__.py" for name in trees),
        "lines of the package": sum(lines.values()),
        "lines of cli/": sum(count for name, count in lines.items() if name.startswith("cli/")),
        "longest module, lines": max(lines.values()),
        "isinstance on models outside models/": len(asked),
        "roads from sentences to vectors": len(roads),
        "files that rename by hand": sum(
            renames_by_hand(tree) for name, tree in trees.items() if not name.startswith("files")
        ),
    }


def main() -> None:
    """Print a column of figures a checkout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="*", type=Path, default=[Path(__file__).resolve().parent.parent])
    columns = [figures(root) for root in parser.parse_args().roots]
    for name in columns[0]:
        print(f"{name:<42}", *(f"{column[name]:>8}" for column in columns))


if __name__ == "__main__":
    main()
