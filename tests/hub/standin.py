"""A stand-in for the Hugging Face Hub on a loopback port: the calls that huggingface_hub makes, and files in memory."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_write"
GATED = "user/gated"


class Hub:
    """Repositories: name -> revision -> path -> bytes. `commits`: what was uploaded at once. seconds: before it answers
    what it is asked for."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.commits: list[tuple[str, str, list[str]]] = []
        self.private: dict[str, bool] = {}
        self.requests: list[str] = []
        self.url, self.seconds = "", 0.0


@contextmanager
def hub() -> Iterator[Hub]:
    """Serve a Hub until the context is left."""
    state = Hub()

    class Handler(_Handler):
        hub = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        threading.Event().wait(self.hub.seconds)
        parts = self.path.partition("?")[0].strip("/").split("/")
        if len(parts) >= 5 and parts[2] == "resolve":
            self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def do_POST(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._reply(401, b'{"error": "Invalid credentials"}')
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        else:
            self._repository(path.removeprefix("/api/models/").split("/"), body)

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
        if name in self.hub.repositories:
            self._json({"url": f"{self.hub.url}/{name}", "error": "You already created this model repo"}, 409)
            return
        self.hub.repositories[name] = {"main": {}}
        self.hub.private[name] = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        self._json({"url": f"{self.hub.url}/{name}", "name": name})

    def _repository(self, parts: list[str], body: bytes) -> None:
        name, action, revision = "/".join(parts[:2]), parts[2], "/".join(parts[3:])
        revisions = self.hub.repositories[name]
        if action == "branch":
            revisions.setdefault(revision, dict(revisions["main"]))
            self._json({})
        elif action == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif action == "commit":
            lines = [json.loads(line) for line in body.splitlines() if line]
            added = {
                v["value"]["path"]: base64.b64decode(v["value"]["content"])
                for v in lines
                if v["key"] == "file"
            }
            revisions[revision].update(added)
            self.hub.commits.append((name, revision, sorted(added)))
            self._json(
                {"commitUrl": f"{self.hub.url}/{name}/commit/abc", "commitOid": "a" * 40, "success": True}
            )
        else:
            self._reply(404, b"{}")

    def _file(self, name: str, revision: str, path: str) -> None:
        authorised = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if name == GATED and not authorised:
            self._reply(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        elif name not in self.hub.repositories or (self.hub.private.get(name) and not authorised):
            self._reply(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif revision not in self.hub.repositories[name]:
            self._reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif path not in self.hub.repositories[name][revision]:
            self._reply(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        else:
            content = self.hub.repositories[name][revision][path]
            commit = hashlib.sha1(revision.encode()).hexdigest()
            digest = hashlib.sha256(content).hexdigest()
            self._reply(200, content, {"ETag": f'"{digest}"', "X-Repo-Commit": commit})

    def _json(self, value: Any, status: int = 200) -> None:
        self._reply(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
