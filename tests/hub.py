"""A small server that speaks the Hugging Face hub's API as `huggingface_hub` uses it: dataset repositories in memory,
their trees page by page, large files by LFS whole or in parts, and commits, each of which is a whole.

As the hub does, it checks that a large file has the size and sha256 that were said, and that a commit's large files are
there. `rule(method, path, body)` gives an answer in its place: a status and a sentence.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

TOKEN = "hf_test"
_PAGE = 3
_LARGE = re.compile(r"\.(tar|parquet|zip|png|jpg|webp)$")


class Repo:
    def __init__(self, private: bool) -> None:
        self.private = private
        self.files: dict[str, bytes] = {".gitattributes": b"*.tar filter=lfs\n"}
        self.commits = ["initial commit"]

    @property
    def sha(self) -> str:
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()


class Hub:
    def __init__(self, chunk: int | None = None, cleared: Callable[[str, str, bytes], Any] = lambda *_: None) -> None:
        """`chunk`: files that are larger go up in parts of so many bytes."""
        outer = self
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.uploaded: list[str] = []
        self.chunk, self.rule = chunk, cleared

        class Handler(_Handler):
            hub = outer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        found = self.hub.rule(self.command, path, body)
        if found is not None:
            self.say(found[0], {"error": found[1]}, {"X-Error-Message": found[1]})
        elif path.startswith("/lfs/"):
            self.lfs(path, body)
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.say(401, {"error": "Invalid credentials in Authorization header"})
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif path == "/api/validate-yaml":
            self.say(200, {"errors": [], "warnings": []})
        elif (match := re.fullmatch(r"/(?:api/)?datasets/([^/]+/[^/]+?)(?:\.git)?(?:/(.*))?", path)) is None:
            self.say(404, {"error": "no such route"})
        elif match[1] not in self.hub.repos:
            self.say(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        else:
            self.of_repo(match[1], match[2] or "", body)

    do_GET = do_HEAD = do_PUT = do_POST = answer  # noqa: N815  http.server's names

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        assert asked["type"] == "dataset"
        self.hub.repos[name] = Repo(asked["visibility"] == "private")
        self.say(200, {"url": f"{self.hub.url}/datasets/{name}", "name": name})

    def of_repo(self, name: str, rest: str, body: bytes) -> None:
        repo = self.hub.repos[name]
        if not rest or rest.startswith("revision/"):
            self.say(200, {"id": name, "sha": repo.sha, "private": repo.private})
        elif rest.startswith("tree/"):
            self.tree(repo)
        elif rest.startswith("preupload/"):
            found = [
                {"path": one["path"], "uploadMode": "lfs" if _LARGE.search(one["path"]) else "regular",
                 "shouldIgnore": False, "oid": self.oid(repo, one["path"])}
                for one in json.loads(body)["files"]
            ]  # fmt: skip
            self.say(200, {"files": found})
        elif rest == "info/lfs/objects/batch":
            self.say(200, {"transfer": "basic", "objects": [self.action(one) for one in json.loads(body)["objects"]]})
        elif rest.startswith("commit/"):
            self.commit(name, repo, [json.loads(line) for line in body.splitlines()])
        elif rest.startswith("resolve/") and (path := rest.split("/", 2)[2]) in repo.files:
            content = repo.files[path]
            self.reply(200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": repo.sha})
        else:
            self.say(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})

    def tree(self, repo: Repo) -> None:
        asked = parse_qs(urlsplit(self.path).query)
        begin = int(asked.get("cursor", ["0"])[0])
        paths = sorted(repo.files)
        found: list[dict[str, Any]] = []
        for path in paths[begin : begin + _PAGE]:
            entry = {"type": "file", "path": path, "oid": self.oid(repo, path), "size": len(repo.files[path])}
            if _LARGE.search(path):
                sha = hashlib.sha256(repo.files[path]).hexdigest()
                entry["lfs"] = {"oid": sha, "size": len(repo.files[path]), "pointerSize": 130}
            found.append(entry)
        more = f"{self.hub.url}{urlsplit(self.path).path}?recursive=true&cursor={begin + _PAGE}"
        self.say(200, found, {"Link": f'<{more}>; rel="next"'} if begin + _PAGE < len(paths) else {})

    @staticmethod
    def oid(repo: Repo, path: str) -> str | None:
        content = repo.files.get(path)
        if content is None:
            return None
        if _LARGE.search(path):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def action(self, one: dict[str, Any]) -> dict[str, Any]:
        oid, size = one["oid"], one["size"]
        if oid in self.hub.stored:
            return one
        href = f"{self.hub.url}/lfs/{oid}/{size}"
        action: dict[str, Any] = {"href": href}
        if self.hub.chunk is not None and size > self.hub.chunk:
            count = -(-size // self.hub.chunk)
            action["header"] = {"chunk_size": str(self.hub.chunk)} | {
                str(number): f"{href}/{number}" for number in range(1, count + 1)
            }
        return one | {"actions": {"upload": action, "verify": {"href": f"{self.hub.url}/lfs/{oid}/{size}/verify"}}}

    def lfs(self, path: str, body: bytes) -> None:
        oid, size, *more = path.removeprefix("/lfs/").split("/")
        if more == ["verify"]:
            self.say(200 if oid in self.hub.stored else 404, {})
            return
        if more:
            self.hub.parts.setdefault(oid, {})[int(more[0])] = body
            self.reply(200, b"", {"ETag": f'"{more[0]}"'})
            return
        if self.command == "POST":  # the parts are all there
            parts = self.hub.parts.pop(oid)
            body = b"".join(parts[number] for number in sorted(parts))
        if (hashlib.sha256(body).hexdigest(), len(body)) != (oid, int(size)):
            self.say(400, {"error": "the content is not what was said"})
            return
        self.hub.stored[oid] = body
        self.hub.uploaded.append(oid)
        self.say(200, {})

    def commit(self, name: str, repo: Repo, lines: list[dict[str, Any]]) -> None:
        head = next(line["value"] for line in lines if line["key"] == "header")
        if head.get("parentCommit", repo.sha) != repo.sha:
            self.say(412, {"error": "A commit has happened since"})
            return
        files = dict(repo.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        repo.files = files
        repo.commits.append(head["summary"])
        url = f"{self.hub.url}/datasets/{name}/commit/{repo.sha}"
        self.say(200, {"success": True, "commitOid": repo.sha, "commitUrl": url, "hookOutput": ""})

    def say(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        self.reply(status, json.dumps(content).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass
