"""The wheel is whole: installed without the checkout, its commands find recipes, sample and both packages."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from cacse_trainer.settings.resources import recipe_names
from cacse_trainer.version import __version__
from tests.conftest import ROOT

SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "cacse_trainer", "SentEval/senteval", "configs")


def call(*words: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(word) for word in words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
def test_the_installed_wheel_works_without_the_checkout(tmp_path, minilm):
    source, empty = tmp_path / "source", tmp_path / "empty"
    empty.mkdir()
    ignore = shutil.ignore_patterns("__pycache__")
    for name in (*SOURCES, "examples/sample"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    call(*pip, "wheel", source, "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, cwd=empty)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"cacse_trainer-{__version__}-")

    call(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=empty)
    bin_folder = tmp_path / "venv" / "bin"
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    # the libraries of this environment, without the checkout that is installed in it: nested .pth files are not read
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python = bin_folder / "python"
    call(*pip, "--python", python, "install", "--no-deps", "--no-index", "--force-reinstall", wheel, cwd=empty)

    where = "import cacse_trainer, senteval; print(cacse_trainer.__file__, senteval.__file__)"
    assert all(str(site) in path for path in call(python, "-c", where, cwd=empty).split())
    assert all((site / "cacse_trainer" / name).is_file() for name in ("py.typed", "report/page.html"))
    names = "from cacse_trainer.settings.resources import recipe_names; print(*recipe_names())"
    assert call(python, "-c", names, cwd=empty).split() == recipe_names()
    program = bin_folder / "cacse-trainer"
    assert call(program, "--version", cwd=empty).strip() == f"cacse-trainer {__version__}"
    said = call(program, "train", "--config", "quickstart", "--output_dir", "run", "--check", cwd=empty)
    assert "are fine" in said
    call(program, "completion", "bash", cwd=empty)
