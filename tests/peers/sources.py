"""The test suites of transformers and sentence-transformers, of the installed versions; nothing of them is kept here.

pip fetches transformers' source distribution once into a folder of its own (``CACSE_PEERS``, default
``~/.cache/cacse-trainer/peers``). What the suites import and the distribution leaves out, tests of generation and of
exporters, has empty stand-ins: no model here generates, and `tests/export/test_dynamic.py` runs the exporters.
sentence-transformers' distribution has no tests: they are cloned, or stand already in that folder, as
``sentence-transformers-VERSION``.
"""

import importlib
import os
import re
import subprocess
import sys
import tarfile
from importlib.metadata import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import transformers
from filelock import FileLock

PACKAGE = "peers_of_transformers"
FOLDER = Path(os.environ.get("CACSE_PEERS", Path.home() / ".cache" / "cacse-trainer" / "peers"))
SUITES = ("test_modeling_common", "test_configuration_common")
COMMON_SETTINGS = {
    "return_dict": False,
    "output_hidden_states": True,
    "architectures": ["X"],
    "problem_type": "regression",
}
"""What ConfigTester passes to a config of no other configs, and must find in it."""


def fetched(name: str, *options: str) -> Path:
    """The file that pip downloads for ``NAME==VERSION``; skips the test where no registry is reached."""
    stem = name.replace("==", "-")
    if not list(FOLDER.glob(f"{stem}*")):
        asked = ["--quiet", "--no-deps", "--retries", "1", *options, "--dest", str(FOLDER), name]
        command = [sys.executable, "-m", "pip", "download", *asked]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            pytest.skip(f"{name} cannot be fetched by pip: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    return next(FOLDER.glob(f"{stem}*"))


def checkout(package: str) -> Path:
    """The repository of the installed version of a package; skips the test where it cannot be cloned."""
    about = metadata(package)
    place = FOLDER / f"{package}-{about['Version']}"
    urls = dict(entry.split(", ", 1) for entry in about.get_all("Project-URL") or [])
    FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(FOLDER / "lock"):
        if not place.is_dir():
            asked = ["--quiet", "--depth", "1", "--branch", f"v{about['Version']}", urls["Repository"], str(place)]
            without_questions = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
            cloning = ["timeout", "120", "git", "clone", *asked]
            done = subprocess.run(cloning, capture_output=True, env=without_questions)
            if done.returncode != 0:
                pytest.skip(f"{package}'s repository cannot be cloned, and is not in {place}")
    return place


def suites(config: pytest.Config) -> Any:
    """transformers' ``ModelTesterMixin`` and ``ConfigTester``, by these names."""
    if PACKAGE not in sys.modules:
        FOLDER.mkdir(parents=True, exist_ok=True)
        with FileLock(FOLDER / "lock"):  # other workers of the same run want it, too
            place = _make_package()
        marks = {name for file in SUITES for name in re.findall(r"mark\.(\w+)", (place / f"{file}.py").read_text())}
        for name in sorted(marks):
            config.addinivalue_line("markers", f"{name}: of transformers' suites")
    modeling, configuration = (importlib.import_module(f"{PACKAGE}.{name}") for name in SUITES)
    return SimpleNamespace(ModelTesterMixin=modeling.ModelTesterMixin, ConfigTester=configuration.ConfigTester)


def _make_package() -> Path:
    version = transformers.__version__
    archive = fetched(f"transformers=={version}", "--no-binary", "transformers", "--no-build-isolation")
    sys.path.append(str(fetched("parameterized==0.9.0", "--only-binary", "parameterized")))
    place = FOLDER / f"suites-{version}"
    place.mkdir(exist_ok=True)
    with tarfile.open(archive) as packed:
        for name in SUITES:
            member = packed.extractfile(f"transformers-{version}/tests/{name}.py")
            assert member is not None
            (place / f"{name}.py").write_bytes(member.read())
    (place / "__init__.py").touch()  # the suite of configs looks for one beside it
    os.environ["TRANSFORMERS_TEST_DEVICE"] = "cpu"
    stand_ins: dict[str, dict[str, Any]] = {
        "": {"__path__": [str(place)]},
        ".exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
        ".generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
        ".utils.test_configuration_utils": {"config_common_kwargs": COMMON_SETTINGS},
    }
    for name, holds in stand_ins.items():
        module = sys.modules[PACKAGE + name] = ModuleType(PACKAGE + name)
        vars(module).update(holds)
    return place
