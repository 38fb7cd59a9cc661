"""Files fetched over HTTPS into a cache, where each is known by its SHA-256."""

from __future__ import annotations

import contextlib
import email.utils
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urljoin, urlsplit

from jaxtransfer.errors import DownloadError, ReferenceNotFoundError
from jaxtransfer.formats.base import sha256_of

CACHE_VARIABLE = "JAXTRANSFER_CACHE"

_WAITS = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each further attempt: there is one attempt more than there are waits."""

_LONGEST_WAIT = 60.0
"""For how many seconds a server may ask to wait; who asks for more is not asked again."""

_TIMEOUT = 30.0
"""For how many seconds a server may be silent."""

_PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Answers that another attempt may change.

Source: https://www.rfc-editor.org/rfc/rfc9110#section-15 and, for 425 and 429, RFC 8470 and 6585.
"""

_REDIRECTS = 10

_Result = TypeVar("_Result")


class _Passing(Exception):
    """Trouble that another attempt may end; `wait` is what the server asks for, in seconds."""

    def __init__(self, found: str, wait: float | None = None):
        super().__init__(found)
        self.wait = wait


def cache_folder() -> Path:
    """The folder of downloaded files.

    `JAXTRANSFER_CACHE` names it; without that it is `jaxtransfer` in `XDG_CACHE_HOME`, or else in
    `~/.cache`.
    """
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(os.path.expanduser(named))
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"), "jaxtransfer")


def fetch(url: str, sha256: str) -> Path:
    """The file at a URL, from the cache if it is there, and never another one than was asked for.

    A download that was cut off goes on where it ended, in this call or a later one. Processes that
    want the same file wait for the one that fetches it. Proxies, certificates and `HF_HUB_OFFLINE`
    are those of the package huggingface_hub, whose HTTP client is used.

    Args:
        url: where the file is; it may redirect.
        sha256: the SHA-256 of the file, or its first digits, in lower-case hexadecimal digits.

    Raises:
        ReferenceNotFoundError: there is nothing at the URL.
        DownloadError: the file cannot be fetched or kept, or has another SHA-256.
    """
    from filelock import FileLock

    folder = cache_folder()
    path = folder / f"{sha256}-{_file_name(url)}"
    if _is_whole(path, sha256):
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.lock")):
            if not _is_whole(path, sha256):
                partial = path.with_name(f"{path.name}.part")
                _attempted(url, lambda: _receive(url, partial))
                _check_hash(url, partial, sha256)
                partial.replace(path)
                _validator(partial).unlink(missing_ok=True)
    except OSError as error:
        raise DownloadError(
            f"{shown(url)}: expected to keep the file in {folder}, found: "
            f"{error.strerror or error}; make room there and make it writable, or name another "
            f"folder in {CACHE_VARIABLE}"
        ) from error
    return path


def read_range(
    url: str, start: int, stop: int, headers: Mapping[str, str]
) -> tuple[bytes, int] | None:
    """Some bytes of the file at a URL, fewer where the file ends, and the size of the file.

    Args:
        url: where the file is; it may redirect.
        start: the first byte.
        stop: the byte after the last.
        headers: sent along; `Authorization` goes to the first host only.

    Returns:
        `None` where the server gives no parts of files.

    Raises:
        ReferenceNotFoundError: there is nothing at the URL.
        DownloadError: the server cannot be reached, or refuses.
    """
    asked = {**headers, "Accept-Encoding": "identity", "Range": f"bytes={start}-{stop - 1}"}

    def read() -> tuple[bytes, int] | None:
        with _opened(url, asked) as response:
            _check_status(url, response)
            part = _content_range(response)
            if part is None or part[0] != start:
                return None
            content = bytearray()
            for chunk in response.iter_raw():
                content += chunk
                if len(content) >= stop - start:
                    break
            return bytes(content[: stop - start]), part[1]

    return _attempted(url, read)


def shown(url: str) -> str:
    """A URL without what may be secret: a password, or the signature in a query.

    >>> shown("https://me:secret@example.org:8443/a.bin?signature=1#sha256=0")
    'https://example.org:8443/a.bin'
    """
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def is_loopback(url: str) -> bool:
    """Whether a URL leads to this machine.

    >>> is_loopback("http://127.0.0.1:8000/a"), is_loopback("http://127.0.0.1.example.org/a")
    (True, False)
    """
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def _file_name(url: str) -> str:
    name = unquote(urlsplit(url).path.rpartition("/")[2])
    return re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)[-100:] or "file"


def _validator(partial: Path) -> Path:
    """Where the ETag of the file is kept that a partial download is the beginning of."""
    return partial.with_name(f"{partial.name}.etag")


def _is_whole(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_of(path).startswith(sha256)


def _check_hash(url: str, partial: Path, sha256: str) -> None:
    found, size = sha256_of(partial), partial.stat().st_size
    if found.startswith(sha256):
        return
    partial.unlink()
    _validator(partial).unlink(missing_ok=True)
    raise DownloadError(
        f"{shown(url)}: expected a file with the SHA-256 {sha256}, found {size} bytes with "
        f"{found}, which were deleted; compare the hash with the publisher's, for the file may "
        "have been replaced or tampered with"
    )


def _attempted(url: str, attempt: Callable[[], _Result]) -> _Result:
    """What `attempt` returns, tried again a few times while the trouble may pass."""
    from huggingface_hub.errors import (
        # The HTTP client of huggingface_hub is httpx or httpx2; this is the base of its errors.
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]
        OfflineModeIsEnabled,
    )

    waits = iter(_WAITS)
    while True:
        try:
            return attempt()
        except OfflineModeIsEnabled as error:
            raise DownloadError(
                f"{shown(url)}: expected to be online, found HF_HUB_OFFLINE set and the file not "
                "in the cache; unset it, or give the path of a local file"
            ) from error
        except (_Passing, HTTPError) as error:
            wait, asked = next(waits, None), getattr(error, "wait", None)
            if wait is None or (asked or 0) > _LONGEST_WAIT:
                raise DownloadError(_gave_up(url, error, asked)) from error
        time.sleep(wait if asked is None else asked)


def _gave_up(url: str, error: Exception, asked: float | None) -> str:
    found = str(error) if isinstance(error, _Passing) else plain(error)
    wish = "" if asked is None else f" and the wish to wait {asked:.0f} seconds"
    return (
        f"{shown(url)}: expected an answer and all of the file, found {found}{wish}; check "
        "the network and try again later: a download goes on where it ended"
    )


def plain(error: BaseException) -> str:
    """What an error of a library says, on one line and without secrets.

    >>> plain(ValueError("Illegal header value b'Bearer hf_abc'"))
    "ValueError: Illegal header value b'Bearer …'"
    """
    said = redacted(str(error))
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def redacted(text: str) -> str:
    r"""A text on one line, without tokens and the queries of URLs, which may hold signatures.

    >>> redacted("no access\nto https://host/file?signature=12")
    'no access to https://host/file?…'
    """
    text = re.sub(r"(?<=\?)[^\s'\"<>)]+", "…", " ".join(text.split()))
    return re.sub(r"(?<=Bearer )[^\s'\"]+|\bhf_[A-Za-z0-9]{8,}", "…", text)


@contextlib.contextmanager
def _opened(url: str, headers: Mapping[str, str]) -> Iterator[Any]:
    """The answer to a GET, after redirects; its body is not read yet."""
    first = url
    for _ in range(_REDIRECTS + 1):
        with contextlib.closing(_send(url, headers)) as response:
            if not response.has_redirect_location:
                yield response
                return
            target = _redirect(url, response.headers["Location"])
        if urlsplit(target).netloc != urlsplit(url).netloc:
            headers = {k: v for k, v in headers.items() if k.lower() != "authorization"}
        url = target
    raise DownloadError(
        f"{shown(first)}: expected a file, found more than {_REDIRECTS} redirects; check the URL"
    )


def _send(url: str, headers: Mapping[str, str]) -> Any:
    from huggingface_hub import get_session
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    session = get_session()
    try:
        request = session.build_request("GET", url, headers=dict(headers), timeout=_TIMEOUT)
        return session.send(request, stream=True, follow_redirects=False)
    except (HTTPError, OSError):
        raise
    except Exception as error:  # The library has several for URLs that it cannot take.
        raise ReferenceNotFoundError(
            f"{shown(url)}: expected a URL that can be asked for, found {plain(error)}; check the "
            "spelling"
        ) from error


def _redirect(url: str, location: str) -> str:
    """Where an answer sends us, unless that is less well protected than where we are."""
    with contextlib.suppress(ValueError):
        target = urljoin(url, location)
        schemes = urlsplit(url).scheme, urlsplit(target).scheme
        if schemes[1] == "https":
            return target
        if schemes == ("http", "http") and (is_loopback(target) or not is_loopback(url)):
            return target
    raise DownloadError(
        f"{shown(url)}: expected a redirect to https://, found one to {redacted(location)}, where "
        "the file would come unprotected; ask for a URL that stays on https://"
    )


def _check_status(url: str, response: Any) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    found = f"the answer {status} {response.reason_phrase}".rstrip()
    if status in _PASSING:
        raise _Passing(found, _retry_after(response.headers.get("Retry-After", "")))
    if status in (404, 410):
        raise ReferenceNotFoundError(
            f"{shown(url)}: expected a file, found nothing ({found}); check the URL"
        )
    raise DownloadError(
        f"{shown(url)}: expected a file, found {found}; where one must log in, download it with a "
        "browser and give its path"
    )


def _retry_after(value: str) -> float | None:
    """The seconds that a `Retry-After` asks for, which is a number or a date."""
    if value.isdecimal():
        return float(value)
    with contextlib.suppress(ValueError, OverflowError):
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    return None


def _content_range(response: Any) -> tuple[int, int] | None:
    """First byte and whole size from an answer with a part of a file."""
    found = re.fullmatch(
        r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", response.headers.get("Content-Range", "")
    )
    if response.status_code != 206 or found is None:
        return None
    return int(found[1]), int(found[2])


def _receive(url: str, partial: Path) -> None:
    """Fetch the file, or what is missing of it, to `partial`."""
    validator = _validator(partial)
    done = partial.stat().st_size if partial.exists() else 0
    etag = validator.read_text() if done and validator.exists() else ""
    headers = {"Accept-Encoding": "identity"}
    if etag:
        # With If-Range, a server whose file has changed since sends all of it.
        headers.update({"Range": f"bytes={done}-", "If-Range": etag})
    with _opened(url, headers) as response:
        if etag and response.status_code == 416:  # Nothing is missing; the hash will tell.
            return
        _check_status(url, response)
        part = _content_range(response)
        if response.status_code == 206 and not (etag and part and part[0] == done):
            validator.unlink(missing_ok=True)
            raise _Passing("another part of the file than was asked for")
        if response.status_code == 200:
            done = 0
        length = response.headers.get("Content-Length", "")
        total = done + int(length) if length.isdecimal() else None
        _check_room(url, partial, done, total)
        with (
            open(partial, "ab" if done else "wb") as file,
            _progress_bar(_file_name(url), done, total) as advance,
        ):
            if not done:
                found = response.headers.get("ETag", "")
                validator.write_text("" if found.startswith("W/") else found)
            for chunk in response.iter_raw():
                file.write(chunk)
                advance(len(chunk))
            file.flush()
            os.fsync(file.fileno())


def _check_room(url: str, partial: Path, done: int, total: int | None) -> None:
    free = shutil.disk_usage(partial.parent).free
    if total is not None and total - done > free:
        raise DownloadError(
            f"{shown(url)}: expected room for {total - done} bytes in {partial.parent}, found "
            f"{free}; make room there, or name another folder in {CACHE_VARIABLE}"
        )


@contextlib.contextmanager
def _progress_bar(name: str, done: int, total: int | None) -> Iterator[Callable[[int], object]]:
    """A progress bar on a terminal; elsewhere nothing is printed."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, completed=done, total=total)
        yield lambda count: progress.advance(task, count)
