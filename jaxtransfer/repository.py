"""Weights in a model repository of the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import errno
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from jaxtransfer.download import plain, redacted
from jaxtransfer.errors import DownloadError, JaxTransferError, ReferenceNotFoundError
from jaxtransfer.formats.base import file_beside, reading
from jaxtransfer.tree import nearest

PREFIX = "hf://"

_REFERENCE = re.compile(
    r"hf://(?:models/)?(?P<repo>(?!(?:datasets|spaces|kernels|buckets)/)[\w.-]+/[\w.-]+)"
    r"(?:@(?P<revision>refs/(?:pr/\d+|convert/[\w.-]+)|[^/]+))?(?:/(?P<file>.+))?"
)
"""Source: https://huggingface.co/docs/huggingface_hub/package_reference/hf_uris."""

_TIMEOUT = 10.0

_KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("model.safetensors", (".safetensors",)),
    ("flax_model.msgpack", (".msgpack",)),
    ("model.npz", (".npz",)),
    ("pytorch_model.bin", (".bin", ".pt", ".pth", ".ckpt")),
    ("tf_model.h5", (".h5", ".hdf5", ".keras")),
    ("model.onnx", (".onnx",)),
    ("model.ckpt.index", (".index",)),
    ("model.caffemodel", (".caffemodel",)),
    ("model.weights", (".weights",)),
    ("model.vec", (".vec",)),
)
"""Kinds of weights, the preferred first: the name they have by convention, and all their endings.

Source of most names: `huggingface_hub/constants.py`.
"""

_INDEX = ".index.json"
_SHARD = re.compile(r".*-\d+-of-\d+\.\w+")
_NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state)\b.*")
"""What trainers save beside weights, under the same endings."""

_COMPANIONS: Mapping[str, str] = {
    ".weights": r"[^/]+\.cfg",
    ".caffemodel": r"[^/]+\.prototxt",
    ".onnx": r"{name}[._]data.*",
    ".index": r"{stem}\.data-.*",
}
"""What a kind of weights cannot be read without: a pattern of file names in the same folder."""

_DESCRIPTIONS = ("config.json", "receipt.json")
"""What tells of a network and its weights; `Model.save` writes both."""

_LISTED = 20
"""How many names an error lists."""


class HubReference(NamedTuple):
    """An `hf://` reference, taken apart.

    Attributes:
        text: the whole of it, as it was written.
        repo: the repository, such as `org/name`.
        revision: a branch, a tag or a commit, if one is named.
        file: a file of the repository, if one is named.
    """

    text: str
    repo: str
    revision: str | None
    file: str | None


class Located(NamedTuple):
    """Where the values of some weights are.

    Attributes:
        name: the file of weights, or the index of its shards, in the repository.
        index: the index on this machine, if it is one.
        urls: by its name the URL of each file with values.
        headers: what to send with a request, the token among it.
    """

    name: str
    index: Path | None
    urls: Mapping[str, str]
    headers: Mapping[str, str]


def parse(text: str) -> HubReference:
    """Take an `hf://` reference apart.

    Raises:
        ReferenceNotFoundError: it is not written as one.

    >>> parse("hf://org/name@refs/pr/1/a/b.npz")[1:]
    ('org/name', 'refs/pr/1', 'a/b.npz')
    >>> parse("hf://org/name@feature%2Fx").revision
    'feature/x'
    """
    found = _REFERENCE.fullmatch(text)
    revision = unquote(found["revision"] or "") if found else ""
    if found is None or ".." in revision:
        raise ReferenceNotFoundError(
            f"{text}: expected hf://ORG/NAME[@REVISION][/FILE], of a model repository, found "
            "another form; write a / in the revision as %2F, and ORG even for an old model that is "
            "known without it (hf://openai-community/gpt2)"
        )
    return HubReference(text, found["repo"], revision or None, found["file"])


def fetch_weights(reference: HubReference) -> Path:
    """The weights of a repository and what belongs to them, from the cache or the Hub.

    Args:
        reference: names a file, or leaves the choice to the order of `_KINDS`.

    Returns:
        The file of weights, or the index of its shards; what belongs to it lies beside it.

    Raises:
        ReferenceNotFoundError: there is no such repository, revision or file, or no file is named
            and there is not one best.
        DownloadError: the files cannot be fetched or kept.
    """
    with _asking(reference):
        names = _list_files(reference)
        chosen = _choose(reference, names)
        path = _fetch(reference, chosen, reference.revision)
        # All files are of one commit, whatever happens to the branch meanwhile.
        commit = path.parents[chosen.count("/")].name
        for name in _companions(path, chosen, names):
            _fetch(reference, name, commit)
        return path


def locate_weights(reference: HubReference) -> Located:
    """Where weights are in a repository; only an index of shards is fetched.

    Args:
        reference: names a file, or leaves the choice to the order of `_KINDS`.

    Raises:
        ReferenceNotFoundError: as `fetch_weights` does.
        DownloadError: the Hub cannot be asked.
    """
    with _asking(reference):
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        chosen = _choose(reference, _list_files(reference))
        names, index = [chosen], None
        if chosen.endswith(_INDEX):
            index = _fetch(reference, chosen, reference.revision)
            names = [chosen[: -len(index.name)] + name for name in _shards(index)]
        urls = {
            name.rpartition("/")[2]: hf_hub_url(reference.repo, name, revision=reference.revision)
            for name in names
        }
        return Located(chosen, index, urls, build_hf_headers(library_name="jaxtransfer"))


def _fetch(reference: HubReference, name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        path = hf_hub_download(reference.repo, name, revision=revision, library_name="jaxtransfer")
    except RemoteEntryNotFoundError as error:
        raise ReferenceNotFoundError(
            f"{reference.text}: expected the file {name} in {reference.repo}, found none of that "
            "name; the repository is incomplete: tell its owner, or name another file"
        ) from error
    return Path(path)


def _list_files(reference: HubReference) -> list[str]:
    """The files of a repository; where the Hub does not tell, those that are in the cache."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]
        OfflineModeIsEnabled,
    )

    try:
        info = HfApi().model_info(reference.repo, revision=reference.revision, timeout=_TIMEOUT)
        return [sibling.rfilename for sibling in info.siblings or ()]
    except (HTTPError, OfflineModeIsEnabled):
        if cached := _list_cached(reference):
            return cached
        raise


def _list_cached(reference: HubReference) -> list[str]:
    """The files of a repository that are in the cache of huggingface_hub."""
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    wanted = reference.revision or "main"
    with contextlib.suppress(CacheNotFound):
        for repo in scan_cache_dir(constants.HF_HUB_CACHE).repos:
            if (repo.repo_type, repo.repo_id) != ("model", reference.repo):
                continue
            for found in repo.revisions:
                if wanted == found.commit_hash or wanted in found.refs:
                    paths = (file.file_path for file in found.files)
                    return sorted(
                        path.relative_to(found.snapshot_path).as_posix() for path in paths
                    )
    return []


def _choose(reference: HubReference, names: Sequence[str]) -> str:
    """The file that is asked for, or else the best one."""
    if reference.file is None:
        return choose_weights(names, reference.text, f"hf://{reference.repo}")
    if reference.file in names:
        return reference.file
    raise ReferenceNotFoundError(
        f"{reference.text}: expected the file {reference.file} in {reference.repo}, found "
        f"none of that name; the nearest are: {_listing(nearest(reference.file, names, 5))}"
    )


def choose_weights(names: Sequence[str], where: str, folder: str) -> str:
    """The best file of weights among others: the first kind of `_KINDS` of which there is one.

    Args:
        names: the files.
        where: what leads to them, for the message.
        folder: how a file among them is named, with `/` and its name after it.

    Raises:
        ReferenceNotFoundError: there are none, or there is not one best.
    """
    for usual, endings in _KINDS:
        found = _of_kind(endings, names)
        by_convention = [name for name in (usual, usual + _INDEX) if name in found]
        if by_convention or len(found) == 1:
            return (by_convention or found)[0]
        if found:
            raise ReferenceNotFoundError(
                f"{where}: expected one file of weights, found several; name one, as "
                f"{folder}/FILE: {_listing(found)}"
            )
    raise ReferenceNotFoundError(
        f"{where}: expected weights in its main folder, found none; if one of its files holds "
        f"them, name it, as {folder}/FILE: {_listing(names)}"
    )


def _of_kind(endings: tuple[str, ...], names: Sequence[str]) -> list[str]:
    """The files with one of the endings, of shards with an index the index alone."""
    found = [
        name
        for name in sorted(names)
        if "/" not in name
        and name.removesuffix(_INDEX).endswith(endings)
        and not _NO_WEIGHTS.fullmatch(name)
    ]
    if any(name.endswith(_INDEX) for name in found):
        found = [name for name in found if not _SHARD.fullmatch(name)]
    return found


def _listing(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(names[:_LISTED]) or "none") + more


def _companions(path: Path, chosen: str, names: Sequence[str]) -> list[str]:
    """The files that belong to fetched weights, as they are named in the repository."""
    folder = chosen[: -len(path.name)]
    beside = [name.removeprefix(folder) for name in names if name.startswith(folder)]
    pattern = _COMPANIONS.get(path.suffix, "").format(
        name=re.escape(path.name), stem=re.escape(path.stem)
    )
    found = [name for name in beside if name in _DESCRIPTIONS or re.fullmatch(pattern, name)]
    if path.name.endswith(_INDEX):
        found += _shards(path)
    return [folder + name for name in found]


def _shards(index: Path) -> list[str]:
    """The files that an index names, none outside its folder."""
    with reading(index, "index of shards"):
        shards = list(dict.fromkeys(json.loads(index.read_bytes())["weight_map"].values()))
        for name in shards:
            file_beside(index, name)
    return shards


@contextlib.contextmanager
def _asking(reference: HubReference) -> Iterator[None]:
    """Turn what goes wrong in huggingface_hub, and below it, into an error of the package."""
    try:
        yield
    except JaxTransferError:
        raise
    except Exception as error:
        raise _error(reference, error) from error


def _error(reference: HubReference, error: BaseException) -> JaxTransferError:
    from huggingface_hub import constants, errors

    # Where the library looks for a file in its cache in vain, the reason for that is the cause.
    if isinstance(error, errors.LocalEntryNotFoundError):
        error = error.__cause__ or error
    site, repo, where = constants.ENDPOINT, reference.repo, reference.text
    if isinstance(error, errors.GatedRepoError):
        return DownloadError(
            f"{where}: expected to be let in, found that the owner of {repo} asks for consent "
            f"first; accept the conditions at {site}/{repo}, and log in: set HF_TOKEN or run "
            "`hf auth login`"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ReferenceNotFoundError(
            f"{where}: expected a branch, a tag or a commit {reference.revision or 'main'}, found "
            f"none in {repo}; the revisions are listed at {site}/{repo}/commits/main"
        )
    if isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError)):
        return ReferenceNotFoundError(
            f"{where}: expected a model repository {repo}, found none at {site}, or none that you "
            "may see; check the spelling, and for a private one set HF_TOKEN or run `hf auth login`"
        )
    if isinstance(error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)):
        return DownloadError(
            f"{where}: expected all its files in {constants.HF_HUB_CACHE}, for HF_HUB_OFFLINE is "
            "set, found some missing; unset it, or fetch them where there is a network"
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return DownloadError(
            f"{where}: expected to keep its files in {constants.HF_HUB_CACHE}, found: "
            f"{error.strerror}; make room there, or name another folder in HF_HUB_CACHE"
        )
    return DownloadError(
        f"{where}: expected its files from {site}, found {_found(error)}; {_remedy(error)}"
    )


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _found(error: BaseException) -> str:
    status, said = _status(error), getattr(error, "server_message", None)
    if status is None:
        return plain(error)
    return f"the answer {status}" + (f" ({redacted(said)})" if said else "")


def _remedy(error: BaseException) -> str:
    status = _status(error)
    if status == 429:
        return "wait some minutes, or set HF_TOKEN: who logs in may ask more often"
    if status in (401, 403):
        return "check that the token in HF_TOKEN is valid and may read this repository"
    return (
        "check the network and HF_ENDPOINT and try again; HF_HUB_DISABLE_XET=1 fetches over plain "
        "HTTPS"
    )
