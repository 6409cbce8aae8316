"""A small Hugging Face Hub on this machine: folders served with the Hub's own paths, headers and refusals."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + "0" * 34
# repository -> the status and error code with which the real Hub refuses it
REFUSED = {"lab/gated": (403, "GatedRepo"), "lab/broken": (500, "")}


class FakeHub(ThreadingHTTPServer):
    """`repos`: Hub id -> folder. `asked`: every path that was requested."""

    def __init__(self, repos: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos = repos
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serve(repos: dict[str, Path]) -> Iterator[FakeHub]:
    """Run a FakeHub in a thread."""
    with FakeHub(repos) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.split("?")[0].strip("/")
        self.server.asked.append(path)
        parts = path.removeprefix("api/models/").split("/")
        repo, rest = "/".join(parts[:2]), parts[2:]
        if repo in REFUSED:
            return self._refuse(*REFUSED[repo])
        if repo not in self.server.repos:
            return self._refuse(404, "RepoNotFound")
        if len(rest) > 1 and rest[1] not in ("main", COMMIT):
            return self._refuse(404, "RevisionNotFound")
        folder = self.server.repos[repo]
        if path.startswith("api/"):
            return self._send(json.dumps(_about(repo, folder, rest)).encode(), body)
        file = folder / "/".join(rest[2:])
        return self._send(file.read_bytes(), body) if file.is_file() else self._refuse(404, "EntryNotFound")

    def _send(self, content: bytes, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _about(repo: str, folder: Path, rest: list[str]) -> object:
    names = sorted(path.name for path in folder.iterdir())
    if rest[:1] == ["tree"]:
        return [_entry(folder / name) for name in names]
    return {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}


def _entry(path: Path) -> dict[str, object]:
    content = path.read_bytes()
    oid = hashlib.sha1(content).hexdigest()
    return {"type": "file", "path": path.name, "size": len(content), "oid": oid}
