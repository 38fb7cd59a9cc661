"""A server on this machine that answers as huggingface.co, its CDN and plain web hosts do.

Paths, headers and codes are those that huggingface_hub asks for and understands: see
`file_download.py`, `hf_api.py` and `utils/_http.py` there.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Answer:
    """An answer that takes the place of the usual one."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass
class Served:
    """A file, and how the server behaves about it.

    Attributes:
        content: the file.
        etag: the ETag, if the server gives one.
        ranges: whether the server gives parts.
        answers: what is answered first, one a request.
        cuts: after how many bytes of the body the connection ends, one a request.
        declared: a Content-Length that is wrong; 0 leaves it out.
        headers: sent with the file too.
    """

    content: bytes
    etag: str = '"first"'
    ranges: bool = True
    answers: list[Answer] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    declared: int | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Repository:
    """A model repository.

    Attributes:
        files: by name.
        revisions: from a branch or tag to its commit.
        large: the names of files that the CDN gives.
        xet: whether it says that large files lie in a Xet storage, where there are none.
        gated: whether its files are refused, though their names are not.
        unlisted: answers the request for the names of the files.
    """

    files: dict[str, bytes]
    revisions: dict[str, str] = field(default_factory=lambda: {"main": "c" * 40})
    large: tuple[str, ...] = ()
    xet: bool = False
    gated: bool = False
    unlisted: Answer | None = None


def refusal(status: int, code: str) -> Answer:
    """How the Hub refuses, such as 401 and `GatedRepo`."""
    return Answer(status, {"X-Error-Code": code, "X-Error-Message": f"{code} it is"})


class Site:
    """One host; `requests` holds method, path and headers of all that it was asked."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.cdn: Site | None = None
        handler = type("Handler", (_Handler,), {"site": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop answering: connections are refused from now on."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def asked(self, path: str, method: str = "GET") -> list[dict[str, str]]:
        """The headers of all requests for a path."""
        return [headers for m, p, headers in self.requests if (m, p) == (method, path)]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing where a client has closed a connection that it no longer needs."""


class _Handler(BaseHTTPRequestHandler):
    site: Site
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        lower = {key.lower(): value for key, value in self.headers.items()}
        self.site.requests.append((self.command, path, lower))
        if path in self.site.files:
            self._send_file(self.site.files[path])
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._list(found[1], found[2] or "main")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/(.+)", path):
            self._resolve(found[1], found[2])
        else:
            self._send(Answer(404))

    def _list(self, name: str, revision: str) -> None:
        repository = self.site.repositories.get(name)
        if repository is None:
            return self._send(refusal(401, "RepoNotFound"))
        if repository.unlisted:
            return self._send(repository.unlisted)
        commit = _commit(repository, revision)
        if commit is None:
            return self._send(refusal(404, "RevisionNotFound"))
        siblings = [{"rfilename": name} for name in repository.files]
        body = json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode()
        self._send(Answer(200, {"Content-Type": "application/json"}, body))

    def _resolve(self, name: str, rest: str) -> None:
        repository = self.site.repositories.get(name)
        if repository is None:
            return self._send(refusal(401, "RepoNotFound"))
        if repository.gated:
            return self._send(refusal(403, "GatedRepo"))
        known = [*repository.revisions, *repository.revisions.values()]
        revision = next((known for known in known if rest.startswith(f"{known}/")), None)
        if revision is None:
            return self._send(refusal(404, "RevisionNotFound"))
        file = rest.removeprefix(f"{revision}/")
        commit = {"X-Repo-Commit": _commit(repository, revision) or ""}
        if file not in repository.files:
            return self._send(Answer(404, {"X-Error-Code": "EntryNotFound", **commit}))
        content = repository.files[file]
        digest = hashlib.sha256(content).hexdigest()
        if file not in repository.large:
            return self._send_file(Served(content, f'"{digest}"', headers=commit))
        cdn = self.site.cdn or self.site
        cdn.files.setdefault(f"/{digest}", Served(content))
        linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        location = {"Location": f"{cdn.url}/{digest}?signature=of-the-cdn"}
        xet = {"X-Xet-Hash": digest, "X-Xet-Refresh-Route": f"{self.site.url}/no-such-token"}
        self._send(Answer(302, {**commit, **linked, **location, **(xet if repository.xet else {})}))

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for key, value in answer.headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def _send_file(self, served: Served) -> None:
        if served.answers:
            return self._send(served.answers.pop(0))
        body, size = served.content, len(served.content)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        current = self.headers.get("If-Range", served.etag) == served.etag
        if asked and served.ranges and current:
            start, stop = int(asked[1]), int(asked[2] or size) + 1
            if start >= size:
                return self._send(Answer(416, {"Content-Range": f"bytes */{size}"}))
            body = body[start:stop]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{size}")
        else:
            self.send_response(200)
        for key, value in {"ETag": served.etag, **served.headers}.items():
            if value:
                self.send_header(key, value)
        if served.declared != 0:
            self.send_header("Content-Length", str(served.declared or len(body)))
        end = served.cuts.pop(0) if served.cuts and self.command == "GET" else len(body)
        if end < len(body) or served.declared is not None:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:end])


def _commit(repository: Repository, revision: str) -> str | None:
    if revision in repository.revisions.values():
        return revision
    return repository.revisions.get(revision)
