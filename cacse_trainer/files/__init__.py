"""Files and folders that are there whole or not at all, and locks that end with their process.

Whatever is written bears a temporary name beside its place, ``.NAME.partial``, until all of it is on the disk; then it
is renamed. A folder changes names with the one that it replaces, which holds the list of what was written into it:
nothing else is ever replaced. Where the system cannot do so in one step the older one is called ``.NAME.old`` for a
moment, and gets its name back when a kill falls into it.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from stat import S_IMODE
from typing import Any, Union, get_args, get_origin

from cacse_trainer.files.locks import LOCK, give_back, only_one, private_folder, take

__all__ = ["LOCK", "give_back", "only_one", "private_folder", "take"]

RECORD = ".written.json"
"""In a folder that is replaced as a whole: the names of the files that were written into it."""
WEIGHTS = (
    *("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json"),
    *("adapter_config.json", "adapter_model.safetensors"),
)
MODEL_FILES = (
    *(*WEIGHTS, "config.json", "generation_config.json", "training_args.bin"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "chat_template.jinja"),
)
"""Patterns of the names under which models and tokenizers are saved."""
PASSING = ("__pycache__", ".*.partial", ".*.old", f".*{LOCK}")
"""Patterns of what comes and goes."""
CARD, MARKS = "README.md", {"library_name: sentence-transformers", "- cacse-trainer"}
OLDER_FOLDER = (
    *(*MODEL_FILES, CARD, "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"),
    *("ensemble_module.py", "*.onnx", "*.onnx.data", "report.json", "merge_report.json"),
)
"""The same of an exported folder, of the folders in it too, whose card is ours: older versions kept no list."""


# ---- files and folders ----


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Inside, a temporary file to write to; at the end it is moved to ``path``, after an exception deleted."""
    staged = _partial(path)
    staged.unlink(missing_ok=True)
    staged.touch()
    mode = S_IMODE(staged.stat().st_mode)
    try:
        yield staged
        _allow(staged, mode)
        put_in_place(staged, path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def writing_folder(final: Path, older: Sequence[str] = ()) -> Iterator[Path]:
    """Inside, an empty temporary folder to fill; at the end it becomes ``final``, after an exception it is deleted.

    A folder that is there is replaced, if all in it is ours; ``older``: see `foreign`.

    Raises:
        UserError: another process writes it, or there is something that this program did not write.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    with only_one(final):
        put_back(final)
        refuse_foreign(final, foreign(final, older))
        staged = _partial(final)
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        try:
            yield staged
            written = sorted(path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file())
            write_json(staged / RECORD, written)
            put_in_place(staged, final)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise


def foreign(folder: Path, older: Sequence[str] = ()) -> list[Path]:
    """The files in a folder that this program did not write, by its list and those of the folders inside.

    Args:
        folder: need not be there; a file that is there in its place is foreign.
        older: patterns of what it consists of where it was made by a version that kept no list; a folder of an encoder
            is known by its card.
    """
    if (folder / RECORD).is_file():
        older = ()
    elif (folder / CARD).is_file() and is_our_card((folder / CARD).read_text(encoding="utf-8", errors="replace")):
        older = older or OLDER_FOLDER
    elif not older:
        return [folder] if folder.is_file() else [path for path in sorted(folder.rglob("*")) if not path.is_dir()]
    ours = {path.parent / name for path in folder.rglob(RECORD) for name in (RECORD, *listed(path))}
    files = [path for path in sorted(folder.rglob("*")) if path not in ours and (path.is_symlink() or path.is_file())]
    kept = [path for path in files if not named_like(path.relative_to(folder).parts, PASSING)]
    return [path for path in kept if not named_like([path.name], older)]


def is_our_card(text: str) -> bool:
    """Whether a README.md is one that this program wrote, by the tag and the library in its front matter."""
    return text.startswith("---\n") and set(text.split("\n---\n")[0].split("\n")) >= MARKS


def refuse_foreign(place: Path, found: Sequence[Path]) -> None:
    """Raise a `UserError` where a place that is to be replaced holds foreign files."""
    if found:
        from cacse_trainer.errors import UserError

        what = "it" if found[0] == place else str(found[0].relative_to(place))
        raise UserError(
            f"{place} cannot be replaced: this program did not write {what}; move it away, or choose another place"
        )


def listed(record: Path) -> list[str]:
    """The names in a list of files; none where it is damaged or not there."""
    with contextlib.suppress(OSError, ValueError, TypeError):  # damaged: nothing is known to be ours
        return [str(name) for name in json.loads(record.read_text(encoding="utf-8"))]
    return []


def named_like(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether one of the names fits one of the patterns."""
    return any(fnmatch(name, pattern) for name in names for pattern in patterns)


def put_in_place(staged: Path, final: Path) -> None:
    """Give a written file or folder its name, once it is on the disk; an older one of that name goes only then.

    Files of a folder become readable as the folder is: safetensors makes them for their owner alone.

    Raises:
        OSError: it cannot be done; then ``final`` is what it was before, or already the new one.
    """
    if not staged.is_dir():
        _sync(staged)
        os.replace(staged, final)
        _sync(final.parent)
        return
    mode = S_IMODE(staged.stat().st_mode) & 0o666
    for path in [*staged.rglob("*"), staged]:
        if path.is_file():
            _allow(path, mode)
        _sync(path)
    put_back(final)
    if final.exists() and _exchange(staged, final):
        _sync(final.parent)
        shutil.rmtree(staged, ignore_errors=True)
        return
    old = _aside(final)
    try:
        if final.exists():
            if old.exists():
                delete_folder(old)
            os.replace(final, old)
        os.replace(staged, final)
    except BaseException:
        put_back(final)
        raise
    _sync(final.parent)
    if old.exists():
        delete_folder(old)


def _exchange(first: Path, second: Path) -> bool:
    """Let two paths change names in one step; False: the system, or this file system, cannot."""
    if sys.platform != "linux":
        return False
    import ctypes

    here, rename_exchange = -100, 2  # the first stands for the working folder
    try:
        rename = ctypes.CDLL(None).renameat2
    except AttributeError:  # an older C library
        return False
    return rename(here, os.fsencode(first), here, os.fsencode(second), rename_exchange) == 0


def put_back(final: Path) -> None:
    """Give a folder its name back if a kill fell between the two renames of `put_in_place`."""
    if not final.exists():
        with contextlib.suppress(OSError):  # as a rule there is none
            os.replace(_aside(final), final)


def delete_folder(path: Path) -> None:
    """Delete a folder; a kill leaves it whole, or under a temporary name."""
    doomed = path.with_name(f".{path.name.lstrip('.')}.partial")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all, and without secrets."""
    with writing(path) as staged:
        staged.write_text(without_secrets(text), encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON, whole or not at all."""
    write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


_secrets: set[str] = set()
SHORTEST_SECRET = 8
"""A shorter text is no token, and would take common words along."""


def keep_secret(text: str) -> None:
    """From here on `write_text` and `without_secrets` show ``***`` in the text's place."""
    if len(text) >= SHORTEST_SECRET:
        _secrets.add(text)


def without_secrets(text: str) -> str:
    """A text as it may be shown."""
    for secret in _secrets:
        text = text.replace(secret, "***")
    return text


def read_object(path: Path, mend: str, /, **kinds: Any) -> dict[str, Any]:
    """A JSON file that holds one object.

    Args:
        path: the file.
        mend: what to do where it is damaged.
        kinds: the entries that it must have, and their types, see `fits`.

    Raises:
        UserError: it cannot be read, is no JSON, no object, or lacks an entry of the right type.
    """
    from cacse_trainer.errors import UserError, one_line  # this module stands alone otherwise

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)[:200]}); {mend}") from error
    check_entries(found, str(path), mend, **kinds)
    return found


def check_entries(found: Any, where: str, mend: str, /, **kinds: Any) -> None:
    """Refuse what was read from JSON unless it is an object with entries of these types; see `read_object`."""
    from cacse_trainer.errors import UserError

    if not isinstance(found, dict):
        raise UserError(f"{where}: holds no JSON object but {str(found)[:40]!r}; {mend}")
    for name, kind in kinds.items():
        if not fits(found.get(name), kind):
            what = f"{name!r} is {str(found[name])[:40]!r}" if name in found else f"has no {name!r}"
            raise UserError(f"{where}: is damaged ({what}); {mend}")


def fits(value: Any, kind: Any) -> bool:
    """Whether a value read from JSON is of a type as an annotation writes it, the items of lists and objects too."""
    inside = get_args(kind)
    if get_origin(kind) in (Union, type(int | None)):
        return any(fits(value, one) for one in inside)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(fits(item, inside[0]) for item in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(fits(item, inside[1]) for item in value.values())
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is Any or not isinstance(kind, type):
        return True
    return isinstance(value, (int, float) if kind is float else kind)


def plain(value: Any) -> Any:
    """A value as strict JSON knows it: NaN and infinity become null, unknown objects text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    digest = hashlib.sha256()
    for block in _blocks(path):
        digest.update(block)
    return digest.hexdigest()


def crc32_of(path: Path) -> int:
    """CRC-32 of a file's bytes: finds accidents, not forgeries."""
    value = 0
    for block in _blocks(path):
        value = zlib.crc32(block, value)
    return value


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            yield block


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def make_readable(paths: Iterable[Path]) -> None:
    """Let files be read by whom the umask says: safetensors makes them for their owner alone."""
    for path in paths:
        probe = _partial(path)
        probe.touch()
        _allow(path, S_IMODE(probe.stat().st_mode))
        probe.unlink()


def _allow(path: Path, mode: int) -> None:
    before = S_IMODE(path.stat().st_mode)
    if before | mode != before:  # some file systems have modes, and change none
        path.chmod(before | mode)


def _sync(path: Path) -> None:
    """Wait until a file's bytes, or the names in a folder, are on the disk."""
    if os.name == "nt":  # folders cannot be synced there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that does not do so
            raise
    finally:
        os.close(handle)
