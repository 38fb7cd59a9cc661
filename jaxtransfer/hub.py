"""From a reference to weights to a file or folder on this machine."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from jaxtransfer import repository
from jaxtransfer.download import fetch, is_loopback, read_range, shown
from jaxtransfer.errors import DownloadError, FormatError, ReferenceNotFoundError
from jaxtransfer.formats import Inspection, inspect_weights, readers
from jaxtransfer.repository import Located

EMBEDDED_PREFIX = "checkpoints/"

_PACKAGE = Path(__file__).resolve().parent

_WEB_PREFIXES = ("https://", "http://")

_FIRST_BYTES = 2**16
"""How much of a file is asked for at once; the headers of most are shorter."""

_LONGEST_HEADER = 100_000_000
"""The longest header that is valid. Source: the README of safetensors, section "Format"."""


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
    """The file or folder that a reference leads to, fetched if it is not on this machine.

    A repository's weights are the best that it has where none are named: safetensors before Flax,
    NumPy, PyTorch, Keras, ONNX and others; of several files of one kind the one with the usual
    name, such as `model.safetensors`. All shards of an index, `config.json` and what else belongs
    to the weights (a `.cfg` of Darknet, a `.prototxt` of Caffe) come to lie beside them. Token,
    cache, endpoint and offline mode are those of the package huggingface_hub.

    Args:
        reference: one of

            - a path, or the prefix of a TensorFlow checkpoint's files; one that exists goes before
              `checkpoints/NAME`;
            - `checkpoints/NAME`, a checkpoint that comes with the package;
            - `hf://ORG/NAME[@REVISION][/FILE]`, a model repository of the Hugging Face Hub; a `/`
              in the revision is written `%2F`, except in `refs/pr/1` and `refs/convert/NAME`;
            - `https://HOST/FILE#sha256=HEX`, kept in the folder that `JAXTRANSFER_CACHE` names
              (`~/.cache/jaxtransfer` by default); the first 8 digits of the hash or more, as
              PyTorch writes them into names of files, tell damage, all 64 also malice.

    Raises:
        ReferenceNotFoundError: there is nothing that the reference leads to, or more than one
            thing.
        DownloadError: the weights cannot be fetched, or are others than the hash says.

    >>> resolve("checkpoints/glyphs").name
    'glyphs'
    """
    text = os.fspath(reference)
    if text.startswith(repository.PREFIX):
        return repository.fetch_weights(repository.parse(text))
    if text.startswith(_WEB_PREFIXES):
        return fetch(*_parse_web(text))
    from jaxtransfer.formats.tensorflow import is_prefix

    path = os.path.expanduser(reference)
    # Unlike `Path.exists`, this is false where a name is too long to be a file's.
    if os.path.exists(path) or is_prefix(Path(path)):
        return Path(path)
    embedded = embedded_checkpoints()
    name = Path(reference).as_posix()
    if name.startswith(EMBEDDED_PREFIX) and name.removeprefix(EMBEDDED_PREFIX) in embedded:
        return embedded[name.removeprefix(EMBEDDED_PREFIX)]
    known = ", ".join(EMBEDDED_PREFIX + key for key in embedded) or "none"
    raise ReferenceNotFoundError(
        f"{reference}: expected a path that exists or an embedded checkpoint ({known}), found "
        "neither; check the spelling and the folder you are in, or write hf://ORG/NAME or "
        "https://HOST/FILE#sha256=HEX for weights elsewhere"
    )


def weights_in(path: Path) -> Path:
    """The weights that a resolved reference leads to: itself, or the best file in a plain folder.

    Args:
        path: what `resolve` gave. A folder that is weights in itself, such as Orbax writes, stays;
            of another one, such as a clone of a repository, the file is chosen as `resolve` does.

    Raises:
        ReferenceNotFoundError: there are no weights in the folder, or there is not one best file.

    >>> weights_in(resolve("checkpoints/glyphs")).name
    'model.safetensors'
    """
    if not path.is_dir() or any(reader.matches(b"", path) for reader in readers()):
        return path
    names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
    return path / repository.choose_weights(names, str(path), str(path))


def inspect_remote(reference: str | Path) -> Inspection | None:
    """What a safetensors file elsewhere holds, from its header alone, before any download.

    Only names, shapes, dtypes and metadata are fetched, for each shard where an index names
    several. They are not compared with the hash of an `https://` reference: only all of the file
    can be.

    Args:
        reference: as for `resolve`.

    Returns:
        What is in the file, its name as `path`; `None` where only `resolve` can tell: for local
        references and other formats, and where the server gives no parts of files, refuses, or
        cannot be reached.

    Raises:
        ReferenceNotFoundError: there is nothing that the reference leads to, or more than one
            thing.
        FormatError: the header is damaged.
    """
    text = os.fspath(reference)
    with contextlib.suppress(DownloadError):
        if text.startswith(repository.PREFIX):
            return _inspect_headers(text, repository.locate_weights(repository.parse(text)))
        if text.startswith(_WEB_PREFIXES):
            url, _ = _parse_web(text)
            name = unquote(urlsplit(url).path).rpartition("/")[2] or "file"
            return _inspect_headers(shown(url), Located(name, None, {name: url}, {}))
    return None


def _parse_web(reference: str) -> tuple[str, str]:
    """The URL and the SHA-256, or its first digits, of an `https://` reference."""
    url, _, fragment = reference.partition("#")
    try:
        parts = urlsplit(url)
        is_url = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_url = False
    if not is_url:
        raise ReferenceNotFoundError(
            f"{reference}: expected https://HOST/FILE#sha256=HEX, found no such URL; check the "
            "spelling"
        )
    if parts.scheme == "http" and not is_loopback(url):
        raise ReferenceNotFoundError(
            f"{shown(url)}: expected https://, found http://, over which anybody may change the "
            "file; write https://"
        )
    digest = re.fullmatch(r"sha256=([0-9a-fA-F]{8,64})", fragment)
    if digest is None:
        found = f"#{fragment}" if fragment else "no hash"
        raise ReferenceNotFoundError(
            f"{shown(url)}: expected #sha256= and 64 hexadecimal digits, or the first "
            "of them (8 at least), behind the URL, found "
            f"{found}; the hash by which the file would be known must come from its publisher or, "
            "for a copy that you trust, from `sha256sum FILE` (files of huggingface.co need none: "
            "write hf://ORG/NAME/FILE)"
        )
    return url, digest[1].lower()


def _inspect_headers(where: str, weights: Located) -> Inspection | None:
    """Inspect files that are whole in their headers and their size only."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        for file, url in weights.urls.items():
            if not _write_header(url, weights.headers, folder / file):
                return None
        path = folder / weights.name.rpartition("/")[2]
        if weights.index is not None:
            shutil.copyfile(weights.index, path)
        try:
            return replace(inspect_weights(path), path=Path(weights.name))
        except FormatError as error:
            message = str(error).replace(f"{folder}{os.sep}", "")
            raise FormatError(f"{where}: {message}") from error


def _write_header(url: str, headers: Mapping[str, str], path: Path) -> bool:
    """Write a file with the header of the safetensors file at a URL, and a hole for its values."""
    first = read_range(url, 0, _FIRST_BYTES, headers)
    from jaxtransfer.formats.safetensors import matches

    if first is None or not matches(first[0], path):
        return False
    content, size = first
    header_bytes = 8 + min(int.from_bytes(content[:8], "little"), _LONGEST_HEADER)
    if len(content) < min(header_bytes, size):
        rest = read_range(url, len(content), min(header_bytes, size), headers)
        if rest is None:
            return False
        content += rest[0]
    path.write_bytes(content)
    try:
        os.truncate(path, size)
    except OSError:  # No file can be of this size here.
        return False
    return True
