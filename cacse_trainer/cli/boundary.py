"""The one place where an exception becomes an exit code and a line for a person; it loads no library."""

import codecs
import contextlib
import io
import json
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType

from cacse_trainer.cli.output import tell_error
from cacse_trainer.errors import Interrupted, RunError, UserError, is_ours, one_line
from cacse_trainer.files import without_secrets

TRACEBACK = "CACSE_TRACEBACK"
"""The variable that shows the traceback of an unexpected exception on standard error, too."""


def guarded(work: Callable[[], int | None], explain: Callable[[BaseException], str | None] = lambda error: None) -> int:
    """Do some work of the command line; its exit code, whatever it raises.

    Args:
        work: returns an exit code, or None for 0.
        explain: one line for failures from outside that have nothing to do with the program; None for all others,
            which are faults of ours and whose traceback is written to a file.

    Returns:
        0 done, 2 the user's input is wrong, 129, 130, 141 and 143 ended by SIGHUP, by Ctrl-C, by a closed pipe and by
        SIGTERM, 1 else.
    """
    try:
        code = work() or 0
        sys.stdout.flush()  # here, where it can be answered for that nobody reads it
        return code
    except UserError as error:
        tell_error(str(error))
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except SystemExit as error:  # argparse's --help, SIGTERM
        return int(error.code or 0)
    except Interrupted as error:
        if os.environ.get("RANK", "0") == "0":  # the processes have agreed: said once
            print(error, file=sys.stderr)
        return error.exit_code
    except RunError as error:
        tell_error(str(error))
        return 1
    except Exception as error:
        if isinstance(error, BrokenPipeError) and is_ours(error):  # of a print: its reader is gone, as of | head -1
            _say_no_more()
            return 141
        known = explain(error)
        tell_error(known if known is not None else _fault(error))
        return 1


def _say_no_more() -> None:
    """Let go nowhere what is still to be written to a closed pipe, at the interpreter's end too."""
    for stream in filter(None, (sys.stdout, sys.__stdout__)):  # with --json the former is standard error
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _fault(error: Exception) -> str:
    """The line of an exception that should not have come this far; its traceback goes to a file of this user."""
    told = without_secrets("".join(traceback.format_exception(error)))
    where = f"{TRACEBACK}=1 shows where"
    with contextlib.suppress(OSError):
        handle, path = tempfile.mkstemp(".txt", "cacse-trainer-traceback-")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(told)
        where = f"traceback in {path}"
    if os.environ.get(TRACEBACK):
        print(told, file=sys.stderr)
    return f"unexpected {type(error).__name__}: {one_line(error)[:300]} (a fault of this program; {where})"


@contextlib.contextmanager
def leaving_on_ctrl_c() -> Iterator[None]:
    """Ctrl-C ends the process at once: for imports, of which some turn the exception into another one."""

    def leave(number: int, frame: FrameType | None) -> None:
        os.write(2, b"interrupted\n")
        os._exit(130)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)


def write_any_text() -> None:
    """Let standard output take every character: what its encoding lacks is written as JSON writes it, ``\\u2192``."""
    codecs.register_error("as_json", _as_json)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="as_json")


def _as_json(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end
