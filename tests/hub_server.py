"""A small Hugging Face Hub for tests, on this machine and with the faults of a network.

It answers as the Hub does: infos, listings, revisions, files by redirects (large ones from another
origin), ranges, access by token, error codes in headers. Nothing in it waits for time to pass: a
slow answer waits for an event, and a connection is cut after a number of bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, Self
from urllib.parse import parse_qs, unquote

LARGE = (".safetensors", ".parquet", ".gz", ".bin")
"""Files that Git LFS holds: their ETag is a SHA-256, and they come from the other origin."""

Access = Literal["public", "gated", "private"]


@dataclass
class Repository:
    kind: Literal["models", "datasets"]
    name: str
    access: Access = "public"
    members: set[str] = field(default_factory=set)
    """Tokens that may read it, if it is not public."""
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], ref: str = "main") -> str:
        """Add a commit and move ``ref`` to it; returns its id."""
        content = sorted((name, hashlib.sha1(data).hexdigest()) for name, data in files.items())
        commit = hashlib.sha1(repr((self.name, len(self.commits), content)).encode()).hexdigest()
        self.pin(commit, files, ref)
        return commit

    def pin(self, commit: str, files: Mapping[str, bytes], ref: str = "main") -> None:
        """Add a commit with a given id."""
        self.commits[commit] = dict(files)
        self.refs[ref] = commit

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)


@dataclass(frozen=True)
class Request:
    """A request that was answered."""

    method: str
    path: str
    range: str | None
    authorization: str | None
    status: int
    sent: int
    """Bytes of the body that were sent."""


@dataclass
class Fault:
    """What happens to the next ``times`` requests whose method and path match."""

    pattern: str
    method: str
    times: int
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    after: int | None = None
    """Bytes of the body that are sent before the connection is cut, or before the wait."""
    wait: threading.Event | None = None
    wrong: bool = False
    """Whether the body has the right length and another content."""
    action: Callable[[], object] | None = None
    """Called before the answer."""


class HubServer:
    """Serves repositories; `url` is what HF_ENDPOINT should be. Use it as a context manager."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.xet = False
        """Whether large files are said to be on Xet as well."""
        self.ranges = True
        """Whether a part of a file can be had; the whole is sent otherwise."""
        self._events: list[threading.Event] = []
        self._lock = threading.Lock()
        # Two origins, as the Hub and its content delivery network.
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(self)) for _ in range(2)]
        self.url, self.cdn = (f"http://127.0.0.1:{one.server_port}" for one in self._servers)

    def __enter__(self) -> Self:
        self._threads = [
            threading.Thread(target=one.serve_forever, args=[0.01], daemon=True)
            for one in self._servers
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for event in self._events:
            event.set()
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()

    def repository(
        self,
        name: str,
        files: Mapping[str, bytes] | None = None,
        *,
        kind: Literal["models", "datasets"] = "models",
        access: Access = "public",
    ) -> Repository:
        """Add a repository, with a first commit on `main` if there are ``files``."""
        made = self.repositories[kind, name] = Repository(kind, name, access)
        if files is not None:
            made.commit(files)
        return made

    def refuse(
        self, pattern: str, status: int, *, method: str = "", times: int = 1, **headers: str
    ) -> None:
        """Answer matching requests with an error; ``retry_after`` becomes `Retry-After`."""
        named = {name.replace("_", "-").title(): value for name, value in headers.items()}
        self.faults.append(Fault(pattern, method, times, status, named))

    def cut(self, pattern: str, after: int, *, times: int = 1) -> None:
        """Cut the connection after so many bytes of a file's body."""
        self.faults.append(Fault(pattern, "GET", times, after=after))

    def corrupt(self, pattern: str, *, times: int = 1) -> None:
        """Send other bytes than those that the ETag promises."""
        self.faults.append(Fault(pattern, "GET", times, wrong=True))

    def before(self, pattern: str, action: Callable[[], object]) -> None:
        """Call ``action`` before the next matching request is answered."""
        self.faults.append(Fault(pattern, "", 1, action=action))

    @contextmanager
    def hold(self, pattern: str, *, method: str = "", after: int | None = None) -> Iterator[None]:
        """Inside the block, matching requests get no answer, or none after so many bytes."""
        event = threading.Event()
        self._events.append(event)
        fault = Fault(pattern, method, 1_000_000, after=after, wait=event)
        self.faults.append(fault)
        try:
            yield
        finally:
            self.faults.remove(fault)
            event.set()

    def taken(self, pattern: str = "") -> list[Request]:
        """The requests for bodies of files, in order."""
        return [
            one
            for one in self.requests
            if one.method == "GET"
            and re.search(pattern, one.path)
            and re.search(r"^/cdn/|^/api/resolve-cache/", one.path)
        ]

    def fault(self, method: str, path: str) -> Fault | None:
        """The fault of this request, counted as used."""
        with self._lock:
            for one in self.faults:
                if one.times and one.method in {"", method} and re.search(one.pattern, path):
                    one.times -= 1
                    return one
        return None

    def find(self, kind: str, name: str) -> Repository | None:
        return self.repositories.get((kind, name))

    def blob(self, sha256: str) -> bytes | None:
        return next(
            (
                data
                for repository in self.repositories.values()
                for files in repository.commits.values()
                for data in files.values()
                if hashlib.sha256(data).hexdigest() == sha256
            ),
            None,
        )


def etag_of(name: str, data: bytes) -> str:
    """The SHA-256 of a large file, and git's SHA-1 of any other."""
    if name.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0%s" % (len(data), data)).hexdigest()


_API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+(?:/[^/]+)?)"
    r"(?:/(?P<verb>revision|tree|paths-info)/(?P<revision>[^/]+)(?P<rest>/.*)?)?"
)
_RESOLVE = re.compile(
    r"/(?P<prefix>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)"
)
_CACHED = re.compile(
    r"/api/resolve-cache/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)/(?P<revision>[^/]+)/(?P<file>.+)"
)
_CDN = re.compile(r"/cdn/(?P<sha256>[0-9a-f]{64})/.*")


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        pass

    Handler.hub = hub
    return Handler


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        self._body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.path, _, self._query = self.path.partition("?")
        self._fault = self.hub.fault(self.command, self.path)
        fault = self._fault
        try:
            if fault is not None and fault.action is not None:
                fault.action()
            if fault is not None and fault.wait is not None and fault.after is None:
                fault.wait.wait()
            if fault is not None and fault.status is not None:
                self._send(fault.status, b'{"error": "refused by the test"}', **fault.headers)
            elif match := _CDN.fullmatch(self.path):
                self._file(self.hub.blob(match["sha256"]))
            elif match := _CACHED.fullmatch(self.path):
                self._small(match)
            elif match := _RESOLVE.fullmatch(self.path):
                self._resolve(match)
            elif match := _API.fullmatch(self.path):
                self._api(match)
            else:
                self._send(200 if self.path == "/" else 404, b"")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client did not wait

    # What a repository lets whom see

    def _token(self) -> str | None:
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        return token if kind == "Bearer" else None

    def _refused(self, repository: Repository | None, *, file: bool) -> bool:
        """Whether the request was refused, as the Hub words and codes it."""
        token = self._token()
        if repository is not None and (
            repository.access == "public"
            or token in repository.members
            or (repository.access == "gated" and not file)
        ):
            return False
        if repository is not None and repository.access == "gated":
            wording = (
                "Please log in." if token is None else "Your request to access it is not approved."
            )
            self._error(
                401 if token is None else 403,
                "GatedRepo",
                f"Access to {repository.name} is restricted. {wording}",
            )
        elif token is None:
            # An unknown and a private repository look the same from outside.
            code = "RepoNotFound" if file else None
            self._error(401, code, "Invalid username or password.")
        else:
            self._error(404, "RepoNotFound", "Repository not found")
        return True

    def _error(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, json.dumps({"error": message}).encode(), **headers)

    def _commit(self, repository: Repository, revision: str) -> str | None:
        commit = repository.resolve(unquote(revision))
        if commit is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # Answers

    def _api(self, match: re.Match[str]) -> None:
        repository = self.hub.find(match["kind"], match["name"])
        if self._refused(repository, file=False):
            return
        assert repository is not None
        commit = self._commit(repository, match["revision"] or "main")
        if commit is None:
            return
        files = repository.commits[commit]
        if match["verb"] == "tree":
            inside = unquote(match["rest"] or "").strip("/")
            self._json(_tree(files, inside, recursive="recursive" in self._query))
        elif match["verb"] == "paths-info":
            wanted = parse_qs(self._body.decode()).get("paths", [])
            if not wanted and self._body:
                wanted = json.loads(self._body)["paths"]
            self._json([_entry(name, files[name]) for name in wanted if name in files])
        else:
            blobs = "blobs" in self._query
            self._json(
                {
                    "_id": "0",
                    "id": repository.name,
                    "sha": commit,
                    "private": repository.access == "private",
                    "gated": "manual" if repository.access == "gated" else False,
                    "disabled": False,
                    "downloads": 0,
                    "likes": 0,
                    "tags": [],
                    "siblings": [_sibling(name, data, blobs) for name, data in files.items()],
                }
            )

    def _resolve(self, match: re.Match[str]) -> None:
        kind = "datasets" if match["prefix"] else "models"
        repository = self.hub.find(kind, match["name"])
        if self._refused(repository, file=True):
            return
        assert repository is not None
        commit = self._commit(repository, match["revision"])
        if commit is None:
            return
        name = unquote(match["file"])
        data = repository.commits[commit].get(name)
        if data is None:
            self._error(404, "EntryNotFound", "Entry not found")
            return
        etag = etag_of(name, data)
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if name.endswith(LARGE):
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
            if self.hub.xet:
                headers |= {"X-Xet-Hash": etag, "X-Xet-Refresh-Route": f"{self.hub.url}/xet"}
            self._send(302, b"", **headers, Location=f"{self.hub.cdn}/cdn/{etag}/{name}")
        else:
            to = f"/api/resolve-cache/{kind}/{match['name']}/{commit}/{match['file']}"
            self._send(307, b"", **headers, Location=to)

    def _small(self, match: re.Match[str]) -> None:
        repository = self.hub.find(match["kind"], match["name"])
        if self._refused(repository, file=True):
            return
        assert repository is not None
        name = unquote(match["file"])
        data = repository.commits[match["revision"]][name]
        self._file(data, ETag=f'"{etag_of(name, data)}"', **{"X-Repo-Commit": match["revision"]})

    def _file(self, data: bytes | None, **headers: str) -> None:
        """A file's bytes, or the range that was asked for; small ones compressed if that is wanted."""
        if data is None:
            self._send(404, b"")
            return
        headers |= {"Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None or not self.hub.ranges:
            if "gzip" in self.headers.get("Accept-Encoding", "") and self.command == "GET":
                headers["Content-Encoding"] = "gzip"
                data = gzip.compress(data)
            self._send(200, data, **headers)
            return
        start = int(asked[1])
        end = min(int(asked[2]) if asked[2] else len(data), len(data) - 1)
        if start >= len(data):
            self._send(416, b"", **headers, **{"Content-Range": f"bytes */{len(data)}"})
            return
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        self._send(206, data[start : end + 1], **headers)

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), **{"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        fault = self._fault
        if fault is not None and fault.wrong:
            body = bytes(255 - byte for byte in body)
        count = len(body) if self.command != "HEAD" else 0
        if fault is not None and fault.after is not None:
            count = min(count, fault.after)
        # Before the first byte: whoever has read the answer finds the request in the list.
        self.hub.requests.append(
            Request(
                self.command,
                self.path,
                self.headers.get("Range"),
                self.headers.get("Authorization"),
                status,
                count,
            )
        )
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body[:count])
        self.wfile.flush()
        if fault is None or fault.after is None or self.command == "HEAD":
            return
        if fault.wait is not None:
            fault.wait.wait()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


def _sibling(name: str, data: bytes, blobs: bool) -> dict[str, object]:
    entry: dict[str, object] = {"rfilename": name}
    if blobs:
        entry |= {"size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
        if name.endswith(LARGE):
            entry["lfs"] = {"sha256": etag_of(name, data), "size": len(data), "pointerSize": 134}
    return entry


def _entry(name: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {
        "type": "file",
        "path": name,
        "size": len(data),
        "oid": hashlib.sha1(data).hexdigest(),
    }
    if name.endswith(LARGE):
        entry["lfs"] = {"oid": etag_of(name, data), "size": len(data), "pointerSize": 134}
    return entry


def _tree(files: Mapping[str, bytes], inside: str, *, recursive: bool) -> list[dict[str, object]]:
    below = f"{inside}/" if inside else ""
    found: dict[str, dict[str, object]] = {}
    for name, data in files.items():
        if not name.startswith(below):
            continue
        head, slash, _ = name.removeprefix(below).partition("/")
        if slash:
            folder = {"type": "directory", "path": f"{below}{head}", "size": 0, "oid": "0" * 40}
            found.setdefault(f"{below}{head}", folder)
        if recursive or not slash:
            found[name] = _entry(name, data)
    return list(found.values())
