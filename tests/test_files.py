"""Whatever breaks off while something is written: the old or the new is there whole, and nothing else; locks go."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cacse_trainer import files
from cacse_trainer.encoding.model_card import CardFacts, render_card
from cacse_trainer.errors import UserError
from cacse_trainer.files import (
    RECORD,
    delete_folder,
    foreign,
    give_back,
    make_readable,
    only_one,
    put_back,
    put_in_place,
    read_object,
    take,
    write_text,
    writing,
    writing_folder,
)


class Killed(BaseException):
    """No handler of an exception sees a kill; this one is raised where ``put_back`` cannot undo it either."""


def strike(monkeypatch, number: int, error: BaseException, for_good: bool = False) -> list[int]:
    """Let the ``number``-th rename or sync fail, and with ``for_good`` all that come after; returns the count."""
    calls = [0]

    def broken(function):
        def call(*arguments):
            calls[0] += 1
            if calls[0] == number or (for_good and calls[0] > number):
                raise error
            return function(*arguments)

        return call

    for name in ("replace", "fsync"):
        monkeypatch.setattr(os, name, broken(getattr(os, name)))
    return calls


def write_folder(folder: Path, content: str) -> None:
    with writing_folder(folder) as staged:
        (staged / "inner").mkdir()
        for name in ("a", "inner/b"):
            (staged / name).write_text(content)


def contents(folder: Path) -> set[str]:
    return {(folder / name).read_text() for name in ("a", "inner/b")}


def test_a_folder_is_the_old_or_the_new_one_wherever_the_disk_fails(tmp_path, monkeypatch):
    """Each sync and each rename in turn; the program goes on, so that all is in place at once."""
    folder, number, seen = tmp_path / "folder", 0, set()
    while True:
        number += 1
        write_folder(folder, "old")
        with monkeypatch.context() as patch:
            calls = strike(patch, number, OSError(errno.EIO, "the disk"))
            with contextlib.suppress(OSError):
                write_folder(folder, "new")
            if calls[0] < number:
                break
        assert contents(folder) in ({"old"}, {"new"})
        assert not (tmp_path / ".folder.partial").exists()
        seen |= contents(folder)
    assert number > 8 and seen == {"old", "new"} and contents(folder) == {"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_folder_is_the_old_or_the_new_one_wherever_a_kill_falls(tmp_path, monkeypatch, in_one_step):
    """After it nothing is done any more; the next call puts back what lies aside, and clears up.

    Where two folders change names in one step, nothing ever lies aside.
    """
    folder, number, aside = tmp_path / "folder", 0, 0
    if not in_one_step:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    elif sys.platform != "linux":
        pytest.skip("names are exchanged on Linux only")
    while True:
        number += 1
        write_folder(folder, "old")
        with monkeypatch.context() as patch:
            calls = strike(patch, number, Killed(), for_good=True)
            patch.setattr(files, "put_back", lambda final: None)
            with contextlib.suppress(Killed):
                write_folder(folder, "new")
            if calls[0] < number:
                break
        aside += not folder.exists()
        put_back(folder)
        assert contents(folder) in ({"old"}, {"new"})
    assert aside == (0 if in_one_step else 1)  # between the two renames
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_what_was_put_aside_is_not_lost_to_the_next_writing(tmp_path):
    """A kill fell between the renames, and the next writing fails before its own."""
    write_folder(tmp_path / "folder", "old")
    os.replace(tmp_path / "folder", tmp_path / ".folder.old")
    with pytest.raises(FileExistsError), writing_folder(tmp_path / "folder") as staged:
        staged.mkdir()
    assert contents(tmp_path / "folder") == {"old"}
    write_folder(tmp_path / "folder", "new")
    assert contents(tmp_path / "folder") == {"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("number", range(1, 5))
def test_a_file_is_the_old_or_the_new_one(tmp_path, monkeypatch, number):
    """Its own sync, its rename, the sync of its folder; the fourth never comes."""
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with monkeypatch.context() as patch:
        calls = strike(patch, number, OSError(errno.ENOSPC, "No space left on device"))
        if number < 4:
            with pytest.raises(OSError, match="No space"):
                write_text(path, "new")
        else:
            write_text(path, "new")
            assert calls[0] == 3
    assert path.read_text() == ("old" if number < 3 else "new")
    assert [found.name for found in tmp_path.iterdir()] == ["file.txt"]


def test_a_disk_that_is_full_leaves_no_temporary(tmp_path):
    def full(staged: Path) -> None:
        staged.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"), writing(tmp_path / "file") as staged:
        full(staged)
    with pytest.raises(OSError, match="No space"), writing_folder(tmp_path / "folder") as staged:
        full(staged / "file")
    assert list(tmp_path.iterdir()) == []


def test_all_is_readable_as_the_umask_says(tmp_path):
    """safetensors makes files for their owner alone; both ways of writing take that back."""
    tensors = {"x": torch.zeros(2)}
    for mask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(mask)
        try:
            with writing(tmp_path / "alone.safetensors") as staged:
                save_file(tensors, staged)
            with writing_folder(tmp_path / "folder") as staged:
                save_file(tensors, staged / "model.safetensors")
        finally:
            os.umask(before)
        for path in (tmp_path / "alone.safetensors", tmp_path / "folder" / "model.safetensors"):
            assert path.stat().st_mode & 0o777 == mode


def test_leftovers_of_a_kill_are_written_over(tmp_path):
    (tmp_path / ".file.partial").write_text("much longer than what comes")
    write_text(tmp_path / "file", "short")
    (tmp_path / ".folder.partial" / "old").mkdir(parents=True)
    write_folder(tmp_path / "folder", "new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == [RECORD, "a", "b", "file", "folder", "inner"]


def test_a_written_file_gets_another_name(tmp_path):
    (tmp_path / "pairs.csv.partial").write_text("rows")
    put_in_place(tmp_path / "pairs.csv.partial", tmp_path / "pairs.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.csv"]


def test_a_folder_half_deleted_bears_another_name(tmp_path, monkeypatch):
    write_folder(tmp_path / "folder", "old")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *arguments, **settings: None)
        delete_folder(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == [".folder.partial"]
    write_folder(tmp_path / "folder", "new")
    delete_folder(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


# ---- locks ----


def test_a_lock_is_had_once_and_its_file_goes(tmp_path):
    path = tmp_path / ".lock"
    held = take(path)
    assert held is not None and held.is_locked
    assert take(path) is None
    give_back(held)
    assert not path.exists()
    again = take(path)
    assert again is not None
    give_back(again)


def test_a_lock_file_that_its_owner_deletes_is_no_lock(tmp_path):
    """Deleted while another one has it open: who comes then makes a new one, and only that one counts."""
    first = take(tmp_path / ".lock")
    assert first is not None
    (tmp_path / ".lock").unlink()
    second = take(tmp_path / ".lock")
    first.release()
    assert second is not None and take(tmp_path / ".lock") is None
    give_back(second)


HOLDER = """
import os, sys, time
from pathlib import Path
from cacse_trainer.files import take
held = take(Path(sys.argv[1]))
assert held.is_locked
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(600)
"""


def test_a_worker_does_not_keep_the_lock_of_a_killed_run(tmp_path):
    """As a data loader's worker that is still at its batch when the run is started again."""
    path = tmp_path / ".lock"
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    try:
        assert take(path) is None
        process.kill()
        process.wait()
        os.kill(worker, 0)  # it lives
        held = take(path)
        assert held is not None and held.is_locked
        give_back(held)
    finally:
        process.kill()
        os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_everybody_has_one(tmp_path, monkeypatch, recwarn, number):
    def flock(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    path = tmp_path / ".lock"
    held, another = take(path), take(path)
    assert held is not None and another is not None and not held.is_locked
    give_back(held)
    give_back(another)
    assert not path.exists() and not recwarn.list


def test_a_private_folder_is_not_deleted_where_there_are_no_locks(tmp_path, monkeypatch):
    """Nobody can tell whether its owner lives."""

    def flock(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first, second = files.private_folder("ours-"), files.private_folder("ours-")
    assert set(tmp_path.iterdir()) == {first, second}


def test_a_place_where_no_file_can_be_is_not_taken_for_a_locked_one(tmp_path):
    with (
        pytest.raises(UserError, match=r"nowhere/x cannot be written: .*No such"),
        only_one(tmp_path / "nowhere/x"),
    ):
        pass


def test_importing_it_costs_nothing():
    """Every command's --help does; neither torch nor filelock is loaded for that."""
    code = (
        "import sys, types; package = sys.modules['cacse_trainer'] = types.ModuleType('cacse_trainer'); "
        "package.__path__ = [sys.argv[1]]; import cacse_trainer.files; print({'torch', 'filelock'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(files.__file__).parents[1])], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


# ---- what is ours ----


def test_only_what_was_written_is_replaced(tmp_path):
    """A file that somebody put into the folder, or into one inside, is named, and all stays as it is."""
    folder = tmp_path / "folder"
    write_folder(folder, "old")
    with writing_folder(folder / "graphs") as staged:
        (staged / "c").write_text("of another command")
    assert foreign(folder) == []
    write_folder(folder, "new")
    for place in ("notes.txt", "inner/notes.txt"):
        (folder / place).write_text("mine")
        with pytest.raises(UserError, match=f"did not write {place}"):
            write_folder(folder, "newer")
        assert contents(folder) == {"new"} and (folder / place).read_text() == "mine"
        (folder / place).unlink()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "empty", "new")
    for place in (tmp_path, tmp_path / "file"):  # a folder of folders that are ours is not ours
        with pytest.raises(UserError, match="did not write"), writing_folder(place):
            pass


CARD_OF_OURS = render_card(CardFacts(title="tower_a", what=""))


def test_a_folder_of_an_older_version_is_known_by_its_card(tmp_path):
    folder = tmp_path / "tower_a"
    (folder / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "1_Pooling/config.json", "README.md"):
        (folder / name).write_text("{}")
    assert len(foreign(folder)) == 4  # another program's
    for text in ("made with cacse-trainer, my notes", "---\ntags:\n- cacse-trainer\n---\n", f"mine\n{CARD_OF_OURS}"):
        (folder / "README.md").write_text(text)
        assert len(foreign(folder)) == 4  # a person's
    (folder / "README.md").write_text(CARD_OF_OURS)
    assert foreign(folder) == []
    (folder / "thesis.txt").write_text("mine")
    assert foreign(folder) == [folder / "thesis.txt"]


def test_two_at_once_do_not_write_one_folder(tmp_path):
    folder = tmp_path / "folder"
    with writing_folder(folder), pytest.raises(UserError, match="another process"), writing_folder(folder):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_weights_become_readable_as_the_umask_says(tmp_path):
    path, closed = tmp_path / "model.safetensors", tmp_path / "closed.safetensors"
    for weights, mask, mode in ((path, 0o022, 0o644), (closed, 0o077, 0o600)):
        save_file({"x": torch.zeros(2)}, weights)
        before = os.umask(mask)
        make_readable([weights])
        os.umask(before)
        assert weights.stat().st_mode & 0o777 == mode
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("text", ["{", "", "[1]", "\x00"])
def test_a_damaged_record_is_one_line(tmp_path, text):
    (tmp_path / "facts.json").write_text(text)
    with pytest.raises(UserError, match=r"facts.json: .*; begin anew"):
        read_object(tmp_path / "facts.json", "begin anew")
