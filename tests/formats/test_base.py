from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from jaxtransfer.errors import FormatError, OutputError, ReferenceNotFoundError
from jaxtransfer.formats.base import Inspection, TensorInfo, atomic_write, checked_arrays, sha256_of


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_atomic_write_writes_the_whole_file_and_nothing_beside_it(tmp_path):
    atomic_write(tmp_path / "a.txt", lambda path: path.write_text("first"))
    atomic_write(str(tmp_path / "a.txt"), lambda path: path.write_text("second"))
    assert (tmp_path / "a.txt").read_text() == "second"
    assert names(tmp_path) == ["a.txt"]


def test_atomic_write_gives_new_files_the_usual_permissions_even_if_the_writer_replaces_them(
    tmp_path,
):
    def write(path: Path) -> None:
        path.unlink()
        path.write_text("text")
        path.chmod(0o600)

    (tmp_path / "usual").write_text("")
    atomic_write(tmp_path / "a.txt", write)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "usual").stat().st_mode
    )


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (ValueError("midway"), ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(28, "No space left on device"), OutputError),
    ],
)
def test_atomic_write_keeps_the_old_file_when_the_writer_fails_midway(tmp_path, failure, expected):
    (tmp_path / "a.txt").write_text("old")

    def write(path: Path) -> None:
        path.write_text("half of it")
        raise failure

    with pytest.raises(expected):
        atomic_write(tmp_path / "a.txt", write)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_full_disk_is_told_with_path_and_remedy(tmp_path):
    def write(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"a\.txt: .*No space left on device; make room"):
        atomic_write(tmp_path / "a.txt", write)


def test_atomic_write_says_what_is_in_the_way(tmp_path):
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(OutputError, match=r"file\.txt/x: .*a file is in its way"):
        atomic_write(tmp_path / "file.txt" / "x", lambda path: path.write_text(""))
    with pytest.raises(OutputError, match="no folder .*absent: create it first"):
        atomic_write(tmp_path / "absent" / "x", lambda path: path.write_text(""))
    with pytest.raises(OutputError, match="found a folder"):
        atomic_write(tmp_path, lambda path: path.write_text(""))


def test_atomic_write_never_renames_onto_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="a pipe"):
        atomic_write(tmp_path / "pipe", lambda path: path.write_text(""))
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_sha256_is_that_of_the_content(tmp_path):
    content = os.urandom(300_000)
    (tmp_path / "a").write_bytes(content)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_sha256_of_nothing_and_of_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for absent in ("absent", "absent/a", "file/a"):
        with pytest.raises(ReferenceNotFoundError, match=absent):
            sha256_of(tmp_path / absent)
    with pytest.raises(FormatError, match="directory"):
        sha256_of(tmp_path)


def test_checked_arrays_copies_only_what_must_be_laid_out_anew():
    plain = np.arange(6.0).reshape(2, 3)
    arrays = checked_arrays({"plain": plain, "t": plain.T, "s": np.float32(1), "b": plain > 1}, "x")
    assert arrays["plain"] is plain
    assert arrays["t"].flags.c_contiguous and np.array_equal(arrays["t"], plain.T)
    assert arrays["s"].shape == ()
    big_endian = checked_arrays({"w": plain.astype(">f8")}, "x")["w"]
    assert big_endian.dtype.isnative and np.array_equal(big_endian, plain)


def test_checked_arrays_tells_all_problems_at_once():
    flat = {"": 1, "a\0b": 1, "\ud800": 1, 3: 1, "nested": {"w": 1}, "text": ["a", None]}
    with pytest.raises(OutputError) as caught:
        checked_arrays(flat, "there.npz")  # pyright: ignore[reportArgumentType]
    message = str(caught.value)
    assert message.startswith("there.npz: expected")
    assert message.count(" ! ") == len(flat)
    assert "flatten the tree first" in message


def test_an_inspection_counts():
    tensors = (TensorInfo("a", (2, 3), "float32", 24), TensorInfo("b", (), "bfloat16", 2))
    inspection = Inspection(Path("x"), "npz", tensors)
    assert inspection.parameters == 7
    assert inspection.bytes == 26
    assert isinstance(hash(inspection), int)
