"""A hub in this process: the part of the Hugging Face hub's HTTP interface that pulling and pushing need."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

BIG = ".onnx"
"""What is sent by the protocol for large files."""


@dataclass
class Repository:
    """Commits in the order in which they were made, each the whole content; branches by name."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        sha = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


class Hub(ThreadingHTTPServer):
    """The server. `asked` are method and path of every request; `down`: all of them fail."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.tokens: list[str | None] = []
        self.down = False
        self.sha: str | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def repository(self, name: str) -> Repository:
        return self.repositories.setdefault(name, Repository())


@contextmanager
def running() -> Iterator[Hub]:
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(self._get())

    def do_HEAD(self) -> None:
        self._answer(self._get())

    def do_POST(self) -> None:
        self._answer(self._post(self._body()))

    def do_PUT(self) -> None:
        body = self._body()
        self.server.large[hashlib.sha256(body).hexdigest()] = body
        self._answer((200, {}, b""))

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, answer: tuple[int, dict[str, str], bytes]) -> None:
        status, headers, body = answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _seen(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        self.server.tokens.append(self.headers.get("Authorization"))
        return path

    def _refusal(self, name: str) -> tuple[int, dict[str, str], bytes] | None:
        found = self.server.repositories.get(name)
        allowed = self.headers.get("Authorization") == "Bearer hf_right"
        if self.server.down:
            return 503, {}, b"down"
        if found is None or (found.private and not allowed):
            return 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b""
        if found.gated and not allowed:
            return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}, b""
        return None

    def _get(self) -> tuple[int, dict[str, str], bytes]:
        path = self._seen()
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self._refusal(found[1]) or self._info(found[1], found[2] or "main")
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._refusal(found[1]) or self._file(found[1], found[2], found[3])
        return 404, {}, b""

    def _info(self, name: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        repository = self.server.repositories[name]
        sha = repository.resolve(revision)
        if sha is None and repository.commits:
            return 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"}, b""
        files = repository.commits.get(sha or "", {})
        return _json(
            {"id": name, "sha": self.server.sha or sha, "siblings": [{"rfilename": f} for f in files]}
        )

    def _file(self, name: str, revision: str, file: str) -> tuple[int, dict[str, str], bytes]:
        repository = self.server.repositories[name]
        sha = repository.resolve(revision)
        content = repository.commits.get(sha or "", {}).get(file)
        if content is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}, b""
        etag = hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": str(sha)}
        begin = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if begin:
            start = int(begin[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return 206, headers, content[start:]
        return 200, headers, content

    def _post(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        path = self._seen()
        if self.headers.get("Authorization") != "Bearer hf_right":
            return 401, {}, b'{"error": "Invalid username or password."}'
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if "organization" in asked else asked["name"]
            if name in self.server.repositories:
                return 409, {}, json.dumps({"url": f"{self.server.address}/{name}"}).encode()
            self.server.repository(name).private = "private" in (
                asked.get("visibility"),
                "private" if asked.get("private") else None,
            )
            return _json({"url": f"{self.server.address}/{name}"})
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(BIG) else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            return _json({"files": files})
        if path.endswith("/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            return self._commit(found[1], [json.loads(line) for line in body.splitlines() if line])
        return 404, {}, b""

    def _batch(self, asked: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        objects = [
            {
                **one,
                "actions": {"upload": {"href": f"{self.server.address}/upload/{one['oid']}", "header": {}}},
            }
            for one in asked["objects"]
        ]
        return _json({"transfer": "basic", "objects": objects}, "application/vnd.git-lfs+json")

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> tuple[int, dict[str, str], bytes]:
        repository = self.server.repository(name)
        files = dict(repository.commits.get(repository.branches.get("main", ""), {}))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(files)
        url = f"{self.server.address}/{name}/commit/{sha}"
        return _json({"commitUrl": url, "commitOid": sha, "success": True})


def _json(document: object, kind: str = "application/json") -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": kind}, json.dumps(document).encode()
