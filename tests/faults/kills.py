"""Kill a small run again and again at random moments, resume it each time, compare its end with an uninterrupted run's.

python -m tests.faults.kills --kills 50
"""

import argparse
import json
import random
import signal
import tempfile
import time
from collections import Counter
from multiprocessing import Process
from pathlib import Path

from cacse_trainer.training.checkpoints import STAGING
from tests.faults.runs import finish, going_on, is_done, kill, outcome, prepare, start


def kill_and_resume(folder: Path, kills: int, seed: int = 0) -> dict[str, object]:
    """Runs that are killed until there were ``kills`` kills, each run resumed until its end.

    Returns:
        ``kills``, ``resumes`` (restarts from a checkpoint), ``restarts`` (there was none yet), ``runs``, and where the
        kills struck: by the number of the newest checkpoint.

    Raises:
        AssertionError: a run ends otherwise than an uninterrupted one.
    """
    command, log, generator = prepare(folder / "parts"), folder / "log", random.Random(seed)
    whole = folder / "whole"
    assert finish(start([*command, "--output_dir", str(whole)], log)) == 0, log.read_text()[-3000:]
    expected = outcome(whole)
    began = time.monotonic()  # of a second run: the first one waits for the server's imports
    assert finish(start([*command, "--output_dir", str(folder / "again")], log)) == 0
    longest = time.monotonic() - began
    assert outcome(folder / "again") == expected
    counts, struck = Counter(), Counter()
    while counts["kills"] < kills:
        output, killed = folder / f"run-{counts['runs']}", False
        while not is_done(output):
            more = going_on(output)
            counts.update((["resumes"] if more else ["restarts"]) if killed else [])
            process = start([*command, "--output_dir", str(output), *more], log)
            if counts["kills"] < kills:
                wait_a_while(process, output, longest, generator)
            else:
                finish(process)
            killed = process.exitcode is None and kill(process) == -signal.SIGKILL
            if killed:
                counts["kills"] += 1
                newest = max((int(path.name[11:]) for path in output.glob("checkpoint-[0-9]*")), default=0)
                half = ", one half written" if (output / STAGING).exists() else ""
                struck[f"after checkpoint-{newest}{half}" if newest else "before the first checkpoint"] += 1
            else:
                assert process.exitcode == 0, log.read_text()[-3000:]
        found = outcome(output)
        assert found.keys() == expected.keys(), f"{output} left other files behind"
        differing = [name for name, value in expected.items() if found[name] != value]
        assert not differing, f"{output} ends otherwise in {differing}"
        leftovers = [path.name for path in output.rglob("*") if "partial" in path.name or path.name == ".lock"]
        assert not leftovers, leftovers
        counts["runs"] += 1
    return {**counts, "struck": dict(sorted(struck.items()))}


def wait_a_while(process: Process, output: Path, longest: float, generator: random.Random) -> None:
    """Until a moment somewhere in the run: by the clock, or, as often, shortly after some checkpoint was begun.

    A clock alone would mostly strike in start and export, which take longer than so small a training.
    """
    if generator.random() < 0.5:
        process.join(generator.uniform(0, longest))
        return
    step = generator.choice(range(2, 13, 2))
    while process.exitcode is None and not any(
        path.exists() for path in (output / STAGING / f"checkpoint-{step}", output / f"checkpoint-{step}")
    ):
        process.join(0.001)
    process.join(generator.uniform(0, longest / 50))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(kill_and_resume(Path(temporary), settings.kills, settings.seed), indent=1))
