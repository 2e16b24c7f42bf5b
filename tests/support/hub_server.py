"""A data-set hub on this machine: the few paths of the Hugging Face API that `datasets` asks for, from files in memory.

The real hub cannot be used: tests have no network, and its sets are not ours to hold. The client is the real one, the
`datasets` and `huggingface_hub` packages, told where the hub is by HF_ENDPOINT.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Commits = dict[str, dict[str, bytes]]  # by commit: content by path


class Hub:
    """Serves data sets by OWNER/NAME; the last commit of each is its branch main."""

    def __init__(self, sets: dict[str, Commits]) -> None:
        self.sets = sets
        self.url = ""

    def commit(self, repo: str, revision: str) -> str | None:
        """Return the commit of a revision, None where there is none."""
        commits = list(self.sets.get(repo, {}))
        return commits[-1] if commits and revision == "main" else revision if revision in commits else None


@contextmanager
def serving(sets: dict[str, Commits]) -> Iterator[Hub]:
    """Yield the hub while it listens on a free port of 127.0.0.1."""
    hub = Hub(sets)

    class Handler(_Handler):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        start = parts.index("datasets") + 1 if "datasets" in parts else 0
        repo, rest = "/".join(parts[start : start + 2]), parts[start + 2 :]
        verb, revision = rest[:2] if len(rest) > 1 else ("info", "main")
        path = "/".join(rest[2:])
        if repo not in self.served.sets:
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        commit = self.served.commit(repo, revision)
        if commit is None:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        files = self.served.sets[repo][commit]
        if verb == "resolve":
            return self._file(files, path, commit)
        if verb == "tree":
            return self._json([_entry(name, content) for name, content in files.items() if name.startswith(path)])
        return self._json({"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in files]})

    def _file(self, files: dict[str, bytes], path: str, commit: str) -> None:
        if path not in files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content = files[path]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_oid(content)}"'}
        return self._send(200, content, headers)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _oid(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def _entry(name: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "oid": _oid(content), "size": len(content)}
