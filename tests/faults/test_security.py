"""No pickle is run, no token is written, archives stay in their folder, temporary files are private."""

import ast
import re
from pathlib import Path

import pytest

from cacse_trainer.cli import train
from cacse_trainer.cli.common import run
from tests.conftest import ROOT
from tests.faults.runs import prepare

SOURCES = [
    path
    for folder in ("cacse_trainer", "SentEval", "scripts", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


FORBIDDEN = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "dill.load", "shelve.open"),
    *("eval", "exec", "os.system"),
}


def calls(path: Path):
    """(dotted name, its call) of every call in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_and_nothing_extracted_blindly(path):
    for name, call in calls(path):
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if name == "torch.load":
            assert ast.unparse(given["weights_only"]) == "True", f"{path}:{call.lineno}"
        elif name in ("np.load", "numpy.load"):
            assert ast.unparse(given.get("allow_pickle", ast.Constant(False))) == "False", f"{path}:{call.lineno}"
        elif name in FORBIDDEN:
            pytest.fail(f"{path}:{call.lineno}: {name}")
        elif name.endswith((".extractall", ".extract")):
            assert "filter" in given, f"{path}:{call.lineno}: an archive extracted without filter='data'"
        elif "trust_remote_code" in given:
            value = given["trust_remote_code"]
            assert not (isinstance(value, ast.Constant) and value.value is True) or "trust_remote_code" in re.sub(
                r"trust_remote_code=True", "", path.read_text()
            ), f"{path}:{call.lineno}: remote code without being asked"


def test_a_token_is_written_nowhere(tmp_path, capsys, caplog):
    """Not into the report, the pickled arguments, the checkpoints, the cards, nor the log."""
    token = "hf_" + "secret" * 5
    arguments = [*prepare(tmp_path / "parts"), "--max_steps", "2", "--hub_token", token]
    assert run(train.main, [*arguments, "--output_dir", str(tmp_path / "run")]) == 0
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in files)
    holding = [path for path in files if token.encode() in path.read_bytes()]
    said = capsys.readouterr()
    assert holding == [] and token not in said.out + said.err + caplog.text
