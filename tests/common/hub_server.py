# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Mock of the Hub: model repositories in memory, and the API of uploads and downloads."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import pytest


TOKEN = "hf_" + "x" * 34
OWNER = "someone"


@dataclass
class Repository:
    """Repository with the files of each commit, by name, and the commit of each branch."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})
    messages: list[str] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.branches["main"]]

    def commit(self, files: dict[str, bytes], message: str, branch: str = "main") -> str:
        sha = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        self.messages.append(message)
        return sha


@dataclass
class Hub:
    """Mock of the Hub with `repositories` by name. `OWNER` may write to the repositories of `OWNER` with `TOKEN`."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    failure: int | None = None
    """Status of the answer to every request, if set."""


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def answer(self, status: int, value: object = None, **headers: str) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def fail(self, status: int, code: str, message: str) -> None:
        self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    @property
    def is_signed_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        self.hub.requests.append(f"{self.command} {url.path}")
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        if self.hub.failure is not None:
            self.fail(self.hub.failure, "", "the Hub is out of order")
        elif self.headers.get("Authorization") and not self.is_signed_in:
            self.fail(401, "", "Invalid credentials")
        elif parts[:2] == ["api", "repos"]:
            self.create(json.loads(body))
        elif parts == ["api", "validate-yaml"]:
            self.validate(json.loads(body)["content"])
        elif parts[0] == "lfs":
            self.lfs(parts[1], body)
        elif parts[:2] == ["api", "models"]:
            self.model("/".join(parts[2:4]), parts[4:], body, parse_qs(url.query))
        elif parts[2:] == ["info", "lfs", "objects", "batch"]:
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": objects})
        elif parts[2:3] == ["resolve"]:
            self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self.fail(404, "", f"the mock does not support {self.command} {url.path}")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def create(self, request: dict) -> None:
        name = f"{request.get('organization') or OWNER}/{request['name']}"
        if not self.is_signed_in:
            return self.fail(401, "", "Invalid username or password.")
        if name in self.hub.repositories:
            return self.answer(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
        if not name.startswith(f"{OWNER}/"):
            return self.fail(403, "", "You don't have the rights to create a model under this namespace")
        is_private = request.get("visibility") == "private" or bool(request.get("private"))
        self.hub.repositories[name] = Repository(private=is_private)
        return self.answer(200, {"url": f"{self.hub.url}/{name}"})

    def validate(self, content: str) -> None:
        if "license: no license of this world" in content:
            return self.answer(400, {"errors": [{"message": '"license" must be one of a list'}], "warnings": []})
        return self.answer(200, {"errors": [], "warnings": []})

    def lfs(self, oid: str, body: bytes) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self.answer(200, {})

    def model(self, name: str, action: list[str], body: bytes, query: dict[str, list[str]]) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self.is_signed_in):
            return self.fail(404 if self.is_signed_in else 401, "RepoNotFound", "Repository not found")
        match action:
            case [] | ["revision", _]:
                return self.info(name, repository, action[1] if action else "main")
            case ["tree", revision, *_]:
                files = repository.commits[repository.branches.get(revision, revision)]
                tree = [
                    {"type": "file", "path": path, "size": len(files[path]), "oid": "0" * 40} for path in sorted(files)
                ]
                return self.answer(200, tree)
            case ["branch", branch]:
                repository.branches.setdefault(branch, repository.branches["main"])
                return self.answer(200, {})
        if not name.startswith(f"{OWNER}/") and "create_pr" not in query:
            return self.fail(403, "", "Forbidden: you must use a write token to upload to a repository.")
        match action:
            case ["preupload", _]:
                files = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".bin")) else "regular",
                        "shouldIgnore": False,
                    }
                    for file in json.loads(body)["files"]
                ]
                return self.answer(200, {"files": files})
            case ["commit", revision]:
                return self.commit(name, repository, revision, body, "create_pr" in query)
        return self.fail(404, "", f"the mock does not support {action}")

    def info(self, name: str, repository: Repository, revision: str) -> None:
        sha = repository.branches.get(revision, revision)
        if sha not in repository.commits:
            return self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        siblings = [{"rfilename": path} for path in sorted(repository.commits[sha])]
        return self.answer(
            200, {"id": name, "_id": "1", "sha": sha, "private": repository.private, "siblings": siblings, "tags": []}
        )

    def commit(self, name: str, repository: Repository, branch: str, body: bytes, is_pull_request: bool) -> None:
        message, files = "", dict(repository.commits[repository.branches[branch]])
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        sha = repository.commit(files, message, "refs/pr/1" if is_pull_request else branch)
        answer = {"success": True, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha}
        if is_pull_request:
            answer["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/1"
        self.answer(200, answer)

    def resolve(self, name: str, revision: str, path: str) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self.is_signed_in):
            return self.fail(401, "RepoNotFound", "Repository not found")
        sha = repository.branches.get(revision, revision)
        if sha not in repository.commits:
            return self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        content = repository.commits[sha].get(path)
        if content is None:
            return self.answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        etag = hashlib.sha256(content).hexdigest()
        return self.answer(200, content, ETag=f'"{etag}"', X_Repo_Commit=sha, Accept_Ranges="none")


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """Run the mock on a free local port."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()


def use_hub(url: str, monkeypatch: pytest.MonkeyPatch, token: str | None = TOKEN) -> None:
    """Connect `huggingface_hub` in this process to the mock, like environment variables set before its import."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nonexistent")
    if token is None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)  # keeps its address
    huggingface_hub.close_session()


def environment_of(hub: Hub, token: str | None = TOKEN) -> dict[str, str]:
    """Environment variables that connect another process to the mock."""
    variables = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    return variables if token is None else {**variables, "HF_TOKEN": token}
