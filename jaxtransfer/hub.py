"""From a reference to weights to a file or folder on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from jaxtransfer.errors import ReferenceNotFoundError

EMBEDDED_PREFIX = "checkpoints/"

_PACKAGE = Path(__file__).resolve().parent


def embedded_checkpoints() -> dict[str, Path]:
    """The checkpoints that come with the package, by name, each a folder with a model."""
    # A wheel carries them inside the package, a clone beside it.
    for folder in (_PACKAGE / "checkpoints", _PACKAGE.parent / "checkpoints"):
        if folder.is_dir():
            return {
                path.name: path
                for path in sorted(folder.iterdir())
                if (path / "config.json").is_file()
            }
    return {}


def resolve(reference: str | Path) -> Path:
    """The file or folder that a reference leads to.

    Args:
        reference: a path, or `checkpoints/NAME` for a checkpoint that comes with the package. A
            path that exists goes first.

    Raises:
        ReferenceNotFoundError: there is nothing at the path, nor an embedded checkpoint of that
            name.

    >>> resolve("checkpoints/glyphs").name
    'glyphs'
    """
    path = os.path.expanduser(reference)
    # Unlike `Path.exists`, this is false where a name is too long to be a file's.
    if os.path.exists(path):
        return Path(path)
    embedded = embedded_checkpoints()
    name = Path(reference).as_posix()
    if name.startswith(EMBEDDED_PREFIX) and name.removeprefix(EMBEDDED_PREFIX) in embedded:
        return embedded[name.removeprefix(EMBEDDED_PREFIX)]
    known = ", ".join(EMBEDDED_PREFIX + key for key in embedded) or "none"
    raise ReferenceNotFoundError(
        f"{reference}: expected a path that exists or an embedded checkpoint ({known}), found "
        "neither; check the spelling and the folder you are in"
    )
