"""A Hugging Face Hub on loopback: the HTTP interface of pushing and fetching models, as the real client speaks it.

Repositories are lists of commits; large files go through LFS, whose objects are refused where their SHA-256 is another.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants

Files = dict[str, bytes]
LARGE = (".safetensors", ".npz", ".png")  # what goes through LFS, whatever its size


@dataclass
class Repo:
    """Branches, each a list of commits (hash, files); ``lfs`` has the paths that went through LFS."""

    private: bool
    branches: dict[str, list[tuple[str, Files]]] = field(default_factory=dict)
    lfs: set[str] = field(default_factory=set)

    def at(self, revision: str) -> tuple[str, Files] | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        every = [commit for branch in self.branches.values() for commit in branch]
        return next((commit for commit in every if commit[0] == revision), None)


class Hub(ThreadingHTTPServer):
    """The server.

    Attributes:
        tokens: token -> (user, whether it may write).
        repos: by name.  objects: what was uploaded, by SHA-256.
        asked: "METHOD path" of each request, without its query.
        failing: regular expression of such a line -> (status, how often still, None for always, the hub's code for it).
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tokens: dict[str, tuple[str, bool]] = {"hf_writer": ("me", True), "hf_reader": ("me", False)}
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.failing: dict[str, tuple[int, int | None] | tuple[int, int | None, str]] = {}
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def hold(self, name: str, files: Files, commit: str) -> None:
        """A public repository with one commit of these files."""
        self.repos[name] = Repo(False, {"main": [(commit, files)]})

    def commits(self, repo: str, branch: str = "main") -> list[Files]:
        """The files of each commit, the first of them empty: the hub makes it with the repository."""
        return [files for _, files in self.repos[repo].branches[branch]]

    def sent(self, what: str) -> list[str]:
        """Requests so far that match."""
        return [line for line in self.asked if re.search(what, line)]


def identity(path: str, content: bytes, repo: Repo) -> str:
    """A file's oid as preupload says it: of an LFS file its SHA-256, else git's hash of a blob."""
    if path in repo.lfs:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        self.respond()

    do_HEAD = do_POST = do_PUT = do_GET

    def respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        line = f"{self.command} {path}"
        with self.server.lock:
            self.server.asked.append(line)
            for what, (status, times, *code) in self.server.failing.items():
                if times != 0 and re.search(what, line):
                    self.server.failing[what] = (status, None if times is None else times - 1, *code)
                    headers = {"X-Error-Code": code[0]} if code else {}
                    return self.answer(status, {"error": "as the test wants it"}, headers)
            self.route(path, body)

    def route(self, path: str, body: bytes) -> None:
        raw = urlsplit(self.path).path  # a branch's slash is quoted in it
        if path == "/api/validate-yaml":
            return self.validate(json.loads(body))
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path.startswith("/objects/"):
            return self.store(path.rpartition("/")[2], body)
        if found := re.match(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch$", path):
            return self.batch(found[1], json.loads(body))
        if found := re.match(r"/api/models/([^/]+/[^/]+)(?:/(\w+(?:-\w+)?))?(?:/([^/]+))?(?:/(.+))?$", raw):
            return self.model(found[1], found[2] or "info", unquote(found[3] or "main"), body)
        if found := re.match(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)$", raw):
            return self.file(found[1], unquote(found[2]), unquote(found[3]))
        return self.answer(404, {"error": f"no such place: {path}"})

    def user(self) -> tuple[str, bool] | None:
        return self.server.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def may_write(self, owner: str) -> bool:
        """Answers where not."""
        user = self.user()
        if user is None:
            self.answer(401, {"error": "Invalid username or password."})
        elif user != (owner, True):
            self.answer(403, {"error": "You don't have the required permissions to write here."})
        return user == (owner, True)

    def validate(self, asked: Any) -> None:
        """As the hub does: a model's card names a base model as owner/name, a licence, a model-index with values."""
        front, errors = yaml.safe_load(asked["content"].split("---\n")[1]), []
        for name in [front["base_model"]] if "base_model" in front else []:
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
                errors.append({"message": f'"base_model" with value "{name}" is not valid'})
        for result in [r for entry in front.get("model-index", []) for r in entry["results"]]:
            if not re.fullmatch(r"[\w./-]+", result["dataset"]["type"]):
                errors.append({"message": '"model-index[0].results[0].dataset.type" is not valid'})
            if not all(isinstance(metric["value"], int | float) for metric in result["metrics"]):
                errors.append({"message": "a metric has no value"})
        self.answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def create(self, asked: Any) -> None:
        owner = asked.get("organization") or (self.user() or ("", False))[0]
        name = f"{owner}/{asked['name']}"
        if not self.may_write(owner):
            return None
        if name in self.server.repos:
            return self.answer(
                409, {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}
            )
        private = asked["visibility"] == "private" if "visibility" in asked else bool(asked.get("private"))
        self.server.repos[name] = Repo(private, {"main": [("0" * 40, {})]})
        return self.answer(200, {"url": f"{self.server.url}/{name}", "name": name, "id": "1"})

    def model(self, name: str, what: str, revision: str, body: bytes) -> None:
        repo = self.seen(name)
        if repo is None:
            return None
        if what == "branch":
            if not self.may_write(name.partition("/")[0]):
                return None
            if revision in repo.branches:
                return self.answer(409, {"error": "Reference already exists"})
            repo.branches[revision] = list(repo.branches["main"])
            return self.answer(201, {})
        found = repo.at(revision)
        if found is None:
            return self.answer(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        commit, files = found
        if what in ("info", "revision"):
            siblings = [{"rfilename": path} for path in files]
            return self.answer(200, {"id": name, "sha": commit, "private": repo.private, "siblings": siblings})
        if what == "tree":
            return self.answer(200, [self.entry(path, content, repo) for path, content in files.items()])
        if not self.may_write(name.partition("/")[0]):
            return None
        if what == "preupload":
            return self.preupload(json.loads(body), repo, files)
        if what == "commit":
            return self.commit(name, repo, revision, [json.loads(line) for line in body.splitlines()])
        return self.answer(404, {"error": f"no such place: {what}"})

    def seen(self, name: str) -> Repo | None:
        """The repository, where whoever asks may see it; answers where not, in the hub's way of not telling."""
        repo = self.server.repos.get(name)
        user = self.user()
        if repo is None or (repo.private and (user is None or user[0] != name.partition("/")[0])):
            self.answer(404 if user else 401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        return repo

    def entry(self, path: str, content: bytes, repo: Repo) -> dict[str, Any]:
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        lfs = {"lfs": {"oid": identity(path, content, repo), "size": len(content), "pointerSize": 130}}
        return {"type": "file", "path": path, "size": len(content), "oid": git, **(lfs if path in repo.lfs else {})}

    def preupload(self, asked: Any, repo: Repo, files: Files) -> None:
        answers = []
        for file in asked["files"]:
            path = file["path"]
            mode = "lfs" if path.endswith(LARGE) or file["size"] > 10_000_000 else "regular"
            oid = {"oid": identity(path, files[path], repo)} if path in files else {}
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **oid})
        self.answer(200, {"files": answers})

    def batch(self, name: str, asked: Any) -> None:
        if not self.may_write(name.partition("/")[0]):
            return
        objects = []
        for each in asked["objects"]:
            upload = {"actions": {"upload": {"href": f"{self.server.url}/objects/{each['oid']}", "header": {}}}}
            objects.append({**each, **({} if each["oid"] in self.server.objects else upload)})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def store(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self.answer(400, {"error": "SHA-256 is another"})
        self.server.objects[oid] = body
        return self.answer(200, {})

    def commit(self, name: str, repo: Repo, revision: str, lines: list[Any]) -> None:
        if revision not in repo.branches:
            return self.answer(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        files = dict(repo.branches[revision][-1][1])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.server.objects:
                    return self.answer(400, {"error": f"LFS object {value['oid']} was never uploaded"})
                files[value["path"]] = self.server.objects[value["oid"]]
                repo.lfs.add(value["path"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        told = json.dumps([lines, len(repo.branches[revision])]).encode()
        commit = hashlib.sha1(told).hexdigest()
        repo.branches[revision].append((commit, files))
        return self.answer(200, {"commitUrl": f"{self.server.url}/{name}/commit/{commit}", "commitOid": commit})

    def file(self, name: str, revision: str, path: str) -> None:
        repo = self.seen(name)
        if repo is None:
            return None
        found = repo.at(revision)
        if found is None:
            return self.answer(404, {}, {"X-Error-Code": "RevisionNotFound"})
        if path not in found[1]:
            return self.answer(404, {}, {"X-Error-Code": "EntryNotFound"})
        content = found[1][path]
        return self.answer(200, content, {"X-Repo-Commit": found[0], "ETag": f'"{identity(path, content, repo)}"'})

    def answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        if status >= 400 and isinstance(body, dict) and "error" in body:
            headers = {"X-Error-Message": body["error"], **(headers or {})}
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def reach(server: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client of this process take it for the hub, with an empty cache."""
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # of Xet's servers there are none but the hub's own
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")


@contextmanager
def running() -> Iterator[Hub]:
    """A hub without repositories."""
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
