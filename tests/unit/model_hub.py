"""A hub of models on this machine: as much of the Hugging Face hub's API as `huggingface_hub` asks for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit

# what the hub answers instead: status, and the header by which its clients know the reason
GATED = (403, "GatedRepo")
GATED_WITHOUT_TOKEN = (401, "GatedRepo")
PRIVATE = (401, "RepoNotFound")
BUSY = (503, "")
FORBIDDEN = (403, "")


@dataclass
class Repository:
    """Files by name at each commit, the newest last; `tags` name commits."""

    commits: dict[str, Mapping[str, bytes]]
    tags: dict[str, str] = field(default_factory=dict)
    refuses: tuple[int, str] | None = None  # every request
    refuses_files: tuple[int, str] | None = None  # those for files alone, as a gated model's
    cuts: str | None = None  # the file that ends early

    def commit(self, revision: str) -> str | None:
        newest = list(self.commits)[-1]
        found = {"main": newest, **self.tags}.get(revision, revision)
        return found if found in self.commits else None


class Hub:
    """`with Hub({"a/b": Repository(...)}) as hub:` serves on `hub.url`; `hub.requests` are the paths asked for."""

    def __init__(self, repositories: Mapping[str, Repository]):
        self.repositories = repositories
        self.requests: list[str] = []
        hub = self

        class Handler(_Handler):
            served = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def files(self) -> list[str]:
        """Names of the files that were asked for with GET."""
        return [path.rpartition("/")[2] for path in self.requests if path.startswith("GET") and "/resolve/" in path]


class _Handler(BaseHTTPRequestHandler):
    served: Hub

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *arguments: object) -> None:
        """Be silent."""

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.served.requests.append(f"{self.command} {path}")
        is_api = path.startswith("api/models/")
        parts = path.removeprefix("api/models/").split("/")
        repository = self.served.repositories.get("/".join(parts[:2]))
        if repository is None:
            return self._refuse(404, "RepoNotFound")
        refuses = repository.refuses or (None if is_api else repository.refuses_files)
        if refuses is not None:
            return self._refuse(*refuses)
        commit = repository.commit(parts[3] if len(parts) > 3 else "main")
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        files = repository.commits[commit]
        if is_api:
            return self._listing(parts, commit, files)
        name = "/".join(parts[4:])
        if name not in files:
            return self._refuse(404, "EntryNotFound")
        self._file(repository, commit, name, files[name], with_body)

    def _listing(self, parts: list[str], commit: str, files: Mapping[str, bytes]) -> None:
        if "tree" in parts:
            entries = [{"type": "file", "path": n, "size": len(c), "oid": _etag(c)} for n, c in files.items()]
            return self._send(200, json.dumps(entries).encode())
        siblings = [{"rfilename": n, "size": len(c), "blobId": _etag(c)} for n, c in files.items()]
        self._send(200, json.dumps({"id": "/".join(parts[:2]), "sha": commit, "siblings": siblings}).encode())

    def _file(self, repository: Repository, commit: str, name: str, content: bytes, with_body: bool) -> None:
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        headers = {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        body, whole = content[first:], len(content) - first
        if with_body and repository.cuts == name:
            body = body[: whole // 2]
            self.close_connection = True
        self._send(206 if first else 200, body if with_body else b"", {**headers, "Content-Length": str(whole)})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code} if code else {})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
