"""``cacse-trainer doctor``: what this machine has for the work, and what to do about what it has not.

cacse-trainer doctor --json
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from cacse_trainer.cli.common import OneLineParser, command_parser, run
from cacse_trainer.cli.output import tell_json
from cacse_trainer.errors import UserError
from cacse_trainer.runs.doctor import Finding, look

EPILOG = """ok: fine. note: it works, but something is missing or slow; the arrow says what to do.
fail: to be mended first; the exit code is then 1.
"""


def parser() -> OneLineParser:
    """The command's flags."""
    made = command_parser(
        "doctor",
        "Look at versions, GPU, bf16, extras, data, disk and hub access, and say what to do about each.",
        EPILOG,
    )
    add = made.add_argument
    add("--data_dir", type=Path, help="SentEval's data folder. Default: SentEval/data, here or in the checkout")
    add("--timeout", type=float, default=3.0, help="seconds to wait for the hub; default 3")
    return made


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    settings = parser().parse_args(arguments)
    if settings.timeout <= 0:
        raise UserError(f"timeout {settings.timeout:g}: give a number of seconds above 0")
    findings = []
    for finding in look(settings.data_dir, settings.timeout):
        findings.append(finding)
        if not settings.json and (finding.state != "ok" or not settings.quiet):
            print(_line(finding), flush=True)
    failed = [finding.what for finding in findings if finding.state == "fail"]
    tell_json({"ok": not failed, "findings": [asdict(finding) for finding in findings]})
    if failed:
        if not settings.json:
            print(f"error: to be mended: {', '.join(failed)}", file=sys.stderr)
        raise SystemExit(1)


def _line(finding: Finding) -> str:
    lines = [f"{finding.state:<5} {finding.what:<30} {finding.found}"]
    return "\n".join([*lines, *([f"{'':<36} → {finding.mend}"] if finding.mend else [])])


if __name__ == "__main__":
    sys.exit(run(main))
