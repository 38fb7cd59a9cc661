from __future__ import annotations

import gc
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtransfer.tree import mapped
from jaxtransfer.tree.mapped import copy_values, map_descriptor, new_memory


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file of 8,193 numbers, and its bytes as a mapped array."""
    path = tmp_path_factory.mktemp("mapped") / "values"
    np.arange(8193, dtype=np.float32).tofile(path)
    with open(path, "rb") as opened:
        return path, map_descriptor(opened.fileno())


VIEWS = {
    "all": lambda a: a,
    "a part": lambda a: a[100:300],
    "axes in another order": lambda a: a.reshape(16, 32, 16).transpose(2, 0, 1),
    "backwards": lambda a: a[::-1],
    "backwards in another order": lambda a: a.reshape(64, 128).T[::-1, :],
    "columns": lambda a: a.reshape(64, 128)[:, 3:70],
    "every third": lambda a: a[5::3],
    "repeated": lambda a: np.broadcast_to(a[:7], (3, 7)),
    "one number": lambda a: a[9].reshape(()),
    "nothing": lambda a: a[:0],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("offset", [0, 3])
def test_every_view_of_a_file_is_copied_as_numpy_copies_it(file, view, offset):
    # With an offset the values are not aligned.
    values = view(file[1][offset : offset + 4 * 8192].view(np.float32))
    copy = np.empty(values.shape, values.dtype)
    copy_values(values, copy)
    assert copy.tobytes() == np.array(values).tobytes()


@given(st.integers(0, 100), st.permutations(range(3)))
def test_dense_views_are_read_and_not_looked_at(file, start, order):
    values = file[1].view(np.float32)[start : start + 6000].reshape(10, 20, 30).transpose(order)
    looked_at = []
    original = mapped._release
    mapped._release = lambda *arguments: looked_at.append(arguments)
    try:
        copy = np.empty(values.shape, np.float32)
        copy_values(values, copy)
    finally:
        mapped._release = original
    np.testing.assert_array_equal(copy, values)
    assert not looked_at


@pytest.mark.parametrize("size", [0, 1, 1000, 2**20, 2**21 + 5])
def test_new_memory_can_be_taken_over(size):
    memory = new_memory(size)
    assert memory.size == size and memory.flags.writeable
    assert size == 0 or memory.ctypes.data % 64 == 0
    memory[:] = 7


def test_large_reads_are_done_in_pieces(file, monkeypatch):
    monkeypatch.setattr(mapped, "_LARGEST_READ", 1000)
    copy = np.empty(8193, np.float32)
    copy_values(file[1].view(np.float32), copy)
    np.testing.assert_array_equal(copy, np.arange(8193))


def test_a_file_that_was_cut_while_in_use_is_told(tmp_path):
    (tmp_path / "a").write_bytes(bytes(8192))
    with open(tmp_path / "a", "rb") as opened:
        content = map_descriptor(opened.fileno())
    os.truncate(tmp_path / "a", 5000)
    with pytest.raises(OSError, match="ends at byte 5000; it was cut while in use"):
        copy_values(content, np.empty(8192, np.uint8))


def test_a_descriptor_is_closed_with_the_last_view(tmp_path):
    (tmp_path / "a").write_bytes(bytes(100))
    with open(tmp_path / "a", "rb") as opened:
        view = map_descriptor(opened.fileno())[10:20]
    descriptor = mapped._owner(view).descriptor  # pyright: ignore[reportOptionalMemberAccess]
    assert os.fstat(descriptor).st_size == 100
    del view
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
