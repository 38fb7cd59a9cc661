"""Folders of images: a folder a class, `split/class/name.jpg` or `class/name.jpg`."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxtransfer.data.files import as_data_error, open_image
from jaxtransfer.data.splits import slice_indices, split_names
from jaxtransfer.data.stored import StoredData, stored_data
from jaxtransfer.errors import DataError

SUFFIXES = frozenset(
    ".bmp .gif .jfif .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
SPLITS = frozenset("train training val valid validation dev test testing".split())
"""Names of folders that hold folders of classes, where a folder of images has splits."""

ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB\x60\x82"}
"""What the last bytes of a whole file are, by format.

Source: ISO/IEC 10918-1, table B.1 (EOI); W3C PNG specification, 11.2.5 (IEND).
"""


@dataclass(frozen=True)
class ImageFiles:
    """Image files by number.

    Attributes:
        root: the folder that `names` are relative to.
        names: the path of each file.
        sizes: bytes of each file.
    """

    root: Path
    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> bytes:
        return (self.root / self.names[index]).read_bytes()

    def name(self, index: int) -> str:
        """The path of a file."""
        return str(self.root / self.names[index])

    def fingerprint(self) -> str:
        """A hash of all names and sizes; no file is read."""
        digest = hashlib.sha256()
        for name, size in zip(self.names, self.sizes, strict=True):
            digest.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
        return digest.hexdigest()


def image_folder(
    path: str | Path,
    split: str = "train",
    *,
    classes: Sequence[str] | None = None,
    unreadable: str = "refuse",
) -> StoredData:
    """Labelled images of a folder: `split/class/name.jpg` or `class/name.jpg`.

    Files are known by their suffix, in upper or lower case, and may lie in folders within that of
    their class. Hidden files and folders are left out; symbolic links are followed. The examples
    of a split stand in the order of the hashes of their names, so that each slice has examples of
    all classes and keeps its own when files are added.

    Args:
        path: the folder. Where it has folders called train, val, test or the like, these are its
            splits; else it is as a whole a split called train.
        split: names of splits, and slices of them, as `slice_split` takes them: "train",
            "train[:80%]", "train+val".
        classes: the names of the classes in the order of their labels; `None` for the names of the
            folders in all splits, sorted.
        unreadable: what to do with files that are no images. "refuse" looks at the first and last
            bytes of each file, and raises an error that lists all that are damaged; "skip" decodes
            every file once, warns of those that are damaged and leaves them out, so that nothing
            unreadable is met later.

    Raises:
        DataError: there is no such folder, split, class or image, an image lies outside of the
            folders of the classes, the folder of a class is empty, or files are unreadable.

    Example:
        `jt.finetune(model, jt.image_folder("hymenoptera", "train"))`
    """
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"{path}: expected a folder of images, found none")
    folders = _split_folders(root, split_names(split))
    listed = {name: _list_split(root, folder) for name, folder in folders.items()}
    found = sorted({label for files in listed.values() for _, label in files})
    names = tuple(found if classes is None else map(str, classes))
    if set(found) - set(names):
        raise DataError(f"{path}: expected folders of {', '.join(names)}, found {found}")
    counts = {name: len(files) for name, files in listed.items()}
    chosen = [
        listed[name][i] for name, positions in slice_indices(counts, split) for i in positions
    ]
    files, kept, skipped = check_files(root, [file for file, _ in chosen], unreadable)
    labels = np.array([names.index(chosen[i][1]) for i in kept], np.int32)
    return stored_data(files, labels, names, skipped)


def _split_folders(root: Path, asked: Sequence[str]) -> dict[str, Path]:
    """The folder of each split; the root itself, called train, where it has no splits."""
    folders = {folder.name: folder for folder in _visible_folders(root)}
    splits = {
        name: folder
        for name, folder in folders.items()
        if name.lower() in SPLITS or (name in asked and any(_visible_folders(folder)))
    }
    return splits or {"train": root}


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _list_split(root: Path, folder: Path) -> list[tuple[str, str]]:
    """The path from the root and the class of each image of a split, by the hash of the path."""
    stray = [p.name for p in folder.iterdir() if p.is_file() and _is_image(p.name)]
    if stray:
        raise DataError(
            f"{folder}: expected each image in the folder of its class, found {len(stray)} beside "
            f"these folders, such as {sorted(stray)[0]}"
        )
    listed, empty = [], []
    for of_class in _visible_folders(folder):
        before = len(listed)
        listed += [(str(file.relative_to(root)), of_class.name) for file in _images(of_class)]
        empty += [of_class.name] if len(listed) == before else []
    if empty or not listed:
        raise DataError(
            f"{folder}: expected images in the folder of each class, found none in "
            f"{', '.join(empty) or 'any'}; delete folders that are no classes"
        )
    return sorted(listed, key=lambda pair: _hash(str((root / pair[0]).relative_to(folder))))


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.replace(os.sep, "/").encode(errors="surrogateescape")).digest()


def _images(folder: Path) -> Iterator[Path]:
    seen = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        folders[:] = [] if real in seen else [f for f in folders if not f.startswith(".")]
        if real not in seen:
            yield from (Path(here, name) for name in names if _is_image(name))
        seen.add(real)  # a link may lead back to a folder above it


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def check_files(
    root: Path, names: Sequence[str], unreadable: str
) -> tuple[ImageFiles, np.ndarray, tuple[str, ...]]:
    """The files that can be read, their positions, and why each of the others cannot be read.

    Args:
        root: the folder that `names` are relative to.
        names: the path of each file.
        unreadable: "refuse" or "skip", as `image_folder` says.

    Raises:
        DataError: files are unreadable and to be refused, or all of them are.
    """
    checks: dict[str, Callable[[Path], int]] = {"refuse": _check_ends, "skip": _check_all}
    if unreadable not in checks:
        raise DataError(f"unreadable: expected 'refuse' or 'skip', found {unreadable!r}")

    def check(name: str) -> int | str:
        try:
            return checks[unreadable](root / name)
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(check, names))
    problems = tuple(result for result in results if isinstance(result, str))
    good = {i: size for i, size in enumerate(results) if isinstance(size, int)}
    listing = "\n - ".join(problems)
    if problems and (unreadable == "refuse" or not good):
        raise DataError(
            f"{root}: expected {len(names)} image files, found {len(problems)} unreadable ones; "
            f"mend or delete them, or give unreadable='skip' to go on without them:\n - {listing}"
        )
    if problems:
        warnings.warn(
            f"{root}: {len(problems)} of {len(names)} files are left out:\n - {listing}",
            stacklevel=3,
        )
    files = ImageFiles(root, tuple(names[i] for i in good), tuple(good.values()))
    return files, np.array([*good], int), problems


def _check_all(path: Path) -> int:
    """Decode a file; give its size in bytes."""
    with as_data_error(str(path)):
        content = path.read_bytes()
        open_image(content).load()
        return len(content)


def _check_ends(path: Path) -> int:
    """Look at a file's header and last bytes, and decode it only where they look cut off."""
    from PIL import Image

    with as_data_error(str(path)):
        with Image.open(path) as image, path.open("rb") as file:
            end = ENDS.get(image.format or "")
            size = file.seek(0, os.SEEK_END)
            file.seek(-min(size, 16), os.SEEK_END)
            is_whole = end is None or end in file.read()
    # Some cameras write more behind the end of the image, so that only decoding can tell.
    return size if is_whole else _check_all(path)
