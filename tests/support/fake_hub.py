"""A hub on this machine: repositories in memory, at the addresses at which huggingface_hub reads and writes them."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

import pytest

TOKEN = "hf_right"
Answer = tuple[int, dict[str, str], bytes]


class FakeHub(ThreadingHTTPServer):
    """Repositories by name: their commits, by revision, each with all its files."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.fault: tuple[int, str] | None = None
        """A status and an error code that all is answered with."""
        self.asked: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, name: str, files: dict[str, bytes], deleted: Sequence[str] = ()) -> str:
        """Put files on top of those of `main`, and take some away; returns the commit."""
        revisions = self.repositories.setdefault(name, {})
        before = {path: content for path, content in revisions.get("main", {}).items() if path not in deleted}
        whole = before | files
        sha = hashlib.sha1(repr(sorted(whole.items())).encode()).hexdigest()
        revisions["main"] = revisions[sha] = whole
        revisions["head"] = {"sha": sha.encode()}
        return sha

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> Answer:
        """Status, headers and content."""
        if path == "/":
            return 200, {}, b""
        if self.fault:
            return self.fault[0], {"X-Error-Code": self.fault[1]}, b"{}"
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body), token)
        parts = path.removeprefix("/api/models").strip("/").split("/")
        name, (verb, *rest) = "/".join(parts[:2]), parts[2:] or ["revision", "main"]
        if name not in self.repositories or (name in self.private and token != TOKEN):
            return 401 if token is None else 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if verb == "preupload":
            files = [each["path"] for each in json.loads(body)["files"]]
            return _json({"files": [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        if verb == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            deleted = [line["value"]["path"] for line in lines if line["key"] == "deletedFile"]
            sha = self.commit(name, {f["path"]: base64.b64decode(f["content"]) for f in files}, deleted)
            return _json({"success": True, "commitOid": sha, "commitUrl": f"{self.endpoint}/{name}/commit/{sha}"})
        return self._read(name, verb, rest)

    def _create(self, wanted: dict, token: str | None) -> Answer:
        name = f"{wanted['organization']}/{wanted['name']}"
        if token != TOKEN:
            return 401, {}, b"{}"
        if wanted["organization"] == "others":
            return 403, {}, b"{}"
        if name in self.repositories:
            return 409, *_json({"url": f"{self.endpoint}/{name}"})[1:]
        self.repositories[name] = {"main": {}, "head": {"sha": b"0" * 40}}
        self.private |= {name} if wanted.get("visibility") == "private" or wanted.get("private") else set()
        return _json({"url": f"{self.endpoint}/{name}"})

    def _read(self, name: str, verb: str, rest: list[str]) -> Answer:
        revisions, revision = self.repositories[name], rest[0]
        if revision not in revisions:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        files, sha = revisions[revision], revisions["head"]["sha"].decode() if revision == "main" else revision
        oids = {path: hashlib.sha1(content).hexdigest() for path, content in files.items()}
        if verb == "revision":
            siblings = [{"rfilename": path} for path in files]
            return _json({"id": name, "sha": sha, "private": name in self.private, "siblings": siblings})
        if verb == "tree":
            rows = [{"type": "file", "path": p, "size": len(files[p]), "oid": oids[p]} for p in sorted(files)]
            return _json(rows)
        path = "/".join(rest[1:])
        if path not in files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
        return 200, {"ETag": f'"{oids[path]}"', "X-Repo-Commit": sha}, files[path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        assert isinstance(self.server, FakeHub)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, bearer = urlparse(self.path).path, self.headers.get("Authorization")
        self.server.asked.append(f"{self.command} {path}")
        token = bearer.removeprefix("Bearer ") if bearer else None
        status, headers, content = self.server.answer(self.command, path, body, token)
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = _answer  # noqa: N815

    def log_message(self, *args) -> None:
        pass


def _json(value: object) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


@contextmanager
def serving(patch: pytest.MonkeyPatch, cache: Path) -> Iterator[FakeHub]:
    """A hub that huggingface_hub takes for the only one, as with HF_ENDPOINT; `cache` is where copies are kept."""
    from huggingface_hub import constants

    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN"):
        patch.delenv(name, raising=False)
    patch.setenv("HF_TOKEN", TOKEN)
    with FakeHub() as hub:
        patch.setattr(constants, "ENDPOINT", hub.endpoint)
        url = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no token"))
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
