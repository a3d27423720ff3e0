"""Runs sentence-transformers' own tests on an exported folder, in a process of its own, without the hub.

    python tests/peers/run_sentence_transformers.py CHECKOUT HUB FOLDER [FOLDER …]

The tests ask the hub for `NAME`; in the cache HUB that name is FOLDER, one after the other. Of a test with many sets of
parameters `SHARE`, spread over all. The last line on standard output is a JSON object: of each folder the tests by
name, with ``passed``, ``skipped``, or the last line of what went wrong.
"""

import json
import os
import sys
from collections import defaultdict
from pathlib import Path

NAME = "models--sentence-transformers-testing--stsb-bert-tiny-safetensors"
REVISION = "0" * 40
SHARE = 3
FILES = ("tests/sentence_transformer/test_model.py", "tests/base/test_model.py")


class Listener:
    """A plugin of pytest: chooses among the sets of parameters, and writes down what became of each test."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}

    def pytest_collection_modifyitems(self, items) -> None:
        alike = defaultdict(list)
        for item in items:
            alike[item.originalname].append(item)
        items[:] = [one for cases in alike.values() for one in cases[:: max(1, len(cases) // SHARE)]]

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" or not report.passed:
            told = report.longreprtext.strip().splitlines()[-1:] if report.failed else []
            self.outcomes[report.nodeid.rpartition("::")[2]] = told[0] if told else report.outcome


def point_to(hub: Path, folder: Path) -> None:
    """Make the name on the hub this folder."""
    place = hub / NAME
    for part in ("refs", "snapshots"):
        (place / part).mkdir(parents=True, exist_ok=True)
    (place / "refs" / "main").write_text(REVISION)
    link = place / "snapshots" / REVISION
    link.unlink(missing_ok=True)
    link.symlink_to(folder)


def main(checkout: str, hub: str, *folders: str) -> None:
    """See above."""
    os.environ.update(HF_HUB_CACHE=hub, HF_HUB_OFFLINE="1")
    os.chdir(checkout)
    sys.path.insert(0, checkout)
    import pytest  # after the environment, which the libraries read when they are imported

    found = {}
    for folder in folders:
        point_to(Path(hub), Path(folder))
        listener = Listener()
        pytest.main(["-q", "-p", "no:cacheprovider", "--tb=line", *FILES], plugins=[listener])
        found[folder] = listener.outcomes
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
