"""Folders and text files that results go to."""

from __future__ import annotations

from pathlib import Path

from jaxtransfer.errors import OutputError
from jaxtransfer.formats.base import atomic_write


def make_folder(folder: str | Path) -> Path:
    """Make a folder, and those above it, unless it is there; check that files can be written in it.

    Raises:
        OutputError: the folder cannot be made, or nothing can be written in it.
    """
    folder = Path(folder)
    trial = folder / ".jaxtransfer-trial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink(missing_ok=True)  # another process of the run may have been faster
    except OSError as error:
        raise OutputError(
            f"{folder}: expected a folder that can be written, found: {error.strerror or error}; "
            f"choose "
            "another folder or mend its permissions"
        ) from error
    return folder


def write_text(text: str, path: str | Path) -> None:
    """Write a text file as a whole or not at all.

    Raises:
        OutputError: the file cannot be written there.
    """
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
