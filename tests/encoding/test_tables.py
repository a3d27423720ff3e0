"""Tables of vectors as files: the same as numpy's own, and a full disk is an error and no signal."""

import errno
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cacse_trainer.encoding.vectors.tables import RowsHash, hash_of_rows, write_table


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8"])
def test_blocks_are_one_table(tmp_path, dtype):
    table = np.arange(60).reshape(20, 3).astype(dtype)
    write_table(tmp_path / "v.npy", [table[:7], table[7:19], table[19:]], 20)
    found = np.load(tmp_path / "v.npy", mmap_mode="r")
    assert found.dtype == table.dtype and (found == table).all()
    with pytest.raises(ValueError, match="7 rows instead of 20"):
        write_table(tmp_path / "v.npy", [table[:7]], 20)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_full_disk_is_an_error():
    with pytest.raises(OSError, match="No space") as raised:
        write_table(Path("/dev/full"), [np.zeros((4096, 8), dtype=np.float32)], 4096)
    assert raised.value.errno == errno.ENOSPC


def test_arrow_strings_are_hashed_as_the_texts():
    texts = ["", "one", "zwei ü", "𝄞 4 bytes", "", "12:three", "é" * 300]
    hashed = RowsHash()
    for part in (pa.array(texts[:2], pa.string()), pa.array([], pa.string()), pa.array(texts, pa.string())[2:]):
        hashed.add(part)
    assert (hashed.count, hashed.hexdigest()) == hash_of_rows(texts)


def test_texts_are_told_apart_by_their_borders():
    assert hash_of_rows(["ab", "c"]) != hash_of_rows(["a", "bc"])
    assert hash_of_rows(iter(["ab", ""]))[0] == 2 and hash_of_rows(["ab"]) != hash_of_rows(["ab", ""])
