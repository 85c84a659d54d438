"""
Serves a Hub on loopback: the part of the Hub's HTTP protocol that huggingface_hub, transformers, datasets and evaluate
use to push and to load. Repositories are in memory, with a commit for every change. `requests` lists all requests;
unknown ones get status 501 and are also listed in `unknown`.
"""

import base64
import contextlib
import fnmatch
import hashlib
import json
import os
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

TOKEN = "hf_localhublocalhublocalhublocalhub"
USER = "user"
# Files that the Hub stores outside git: https://huggingface.co/docs/hub/repositories-getting-started
LARGE = (".safetensors", ".bin", ".pt", ".onnx", ".wav", ".flac", ".zip", ".parquet", ".png", ".mp3")
REPOSITORY = r"(?P<kind>models|datasets|spaces)/(?P<repo>[\w.-]+/[\w.-]+?)"
PLACE = r"/(?P<prefix>datasets/|spaces/)?(?P<repo>[\w.-]+/[\w.-]+?)"


@dataclass(frozen=True)
class Blob:
    """Holds the content of one file in one commit."""

    content: bytes
    is_large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_id(self) -> str:
        text = self.content
        if self.is_large:
            text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(text)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(text) + text).hexdigest()


@dataclass(frozen=True)
class Commit:
    """Holds a state of a repository: path -> content."""

    title: str
    files: dict[str, Blob]
    parent: str | None

    @property
    def sha(self) -> str:
        listing = [f"{path} {blob.git_id}" for path, blob in sorted(self.files.items())]
        return hashlib.sha1("\n".join([self.title, str(self.parent), *listing]).encode()).hexdigest()


@dataclass
class Repository:
    """Holds commits, newest last: `main` is the last one."""

    private: bool = False
    sdk: str | None = None
    commits: list[Commit] = field(default_factory=lambda: [Commit("initial commit", {}, None)])

    def at(self, revision: str) -> Commit | None:
        if revision == "main":
            return self.commits[-1]
        return next((c for c in self.commits if len(revision) >= 7 and c.sha.startswith(revision)), None)

    def commit(self, title: str, files: dict[str, Blob | None]) -> Commit:
        """Changes files, or removes those that are `None`, in one commit."""
        merged = {path: blob for path, blob in {**self.commits[-1].files, **files}.items() if blob is not None}
        self.commits.append(Commit(title, merged, self.commits[-1].sha))
        return self.commits[-1]


@dataclass
class Failure:
    """Describes a deliberately wrong answer."""

    pattern: str
    method: str | None
    status: int | None
    cut: str | None
    times: int


class Refusal(Exception):
    """Ends a request with a status and the Hub's headers for errors."""

    def __init__(self, status: int, message: str, code: str | None = None):
        self.status, self.message, self.code = status, message, code


class HubServer:
    """
    Serves the Hub, as a context manager.

    Attributes:
        endpoint: such as `http://127.0.0.1:12345`
        token: the accepted token, of `user`, who may write to repositories of that name
        requests, unknown: (method, path) of all requests, and of those with status 501
    """

    def __init__(self):
        self.token = TOKEN
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large: dict[str, bytes] = {}  # sha256 -> uploaded content, committed or not
        self.failures: list[Failure] = []
        self.requests: list[tuple[str, str]] = []
        self.unknown: list[tuple[str, str]] = []
        self.lock = threading.RLock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._http.daemon_threads = True
        self._http.hub = self
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}"
        # Large files come from another host, as on the Hub; a client must not send its token there.
        self.storage = f"http://localhost:{self._http.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()

    def environment(self, cache: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Returns the variables of a fresh process with this Hub and an empty cache, without this process's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHONPATH"))}
        return {
            **kept,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",  # clients would choose Xet, whose protocol is not the Hub's HTTP
            "NO_PROXY": "127.0.0.1,localhost",
            "OMP_NUM_THREADS": "1",
            **({"HF_TOKEN": token} if token else {}),
        }

    def repository(self, repo_id: str, kind: str = "models") -> Repository:
        return self.repositories[kind, repo_id]

    def files(self, repo_id: str, kind: str = "models", revision: str = "main") -> dict[str, bytes]:
        """Returns path -> content of a revision."""
        return {path: blob.content for path, blob in self.repository(repo_id, kind).at(revision).files.items()}

    def create(self, repo_id: str, files: dict[str, bytes], kind: str = "models", private: bool = False) -> Repository:
        """Creates a repository with files, as if it had been pushed earlier."""
        repository = self.repositories.setdefault((kind, repo_id), Repository(private))
        blobs = {path: Blob(content, path.endswith(LARGE)) for path, content in files.items()}
        self.large |= {blob.sha256: blob.content for blob in blobs.values() if blob.is_large}
        repository.commit("files", blobs)
        return repository

    def fail(
        self,
        pattern: str,
        method: str | None = None,
        status: int | None = None,
        *,
        cut: str | None = None,
        times: int = 1000,
    ):
        """
        Lets the next `times` requests whose path matches fail with a status or a cut connection. `cut`: "request" cuts
        in the middle of the client's request, "response" in the middle of the answer, after the work is done.
        """
        self.failures.append(Failure(pattern, method, status, cut, times))

    def heal(self):
        """Ends all failures."""
        self.failures.clear()

    def _next_failure(self, method: str, path: str) -> Failure | None:
        with self.lock:
            for failure in self.failures:
                if failure.times > 0 and failure.method in (None, method) and re.search(failure.pattern, path):
                    failure.times -= 1
                    return failure
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each small answer waits 40 ms
    wbufsize = -1

    @property
    def hub(self) -> HubServer:
        return self.server.hub

    def log_message(self, *_):
        pass

    def _handle(self):
        self.url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(self.url.query).items()}
        path = unquote(self.url.path)
        self.hub.requests.append((self.command, path))
        self.failure = self.hub._next_failure(self.command, path)
        try:
            self.body = self._read_body()
            if self.failure and self.failure.status:
                raise Refusal(self.failure.status, "as the test wants it")
            for method, pattern, handler in ROUTES:
                if self.command in method and (found := re.fullmatch(pattern, path)):
                    return handler(self, **found.groupdict())
            self.hub.unknown.append((self.command, path))
            raise Refusal(501, "the local Hub does not know this")
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            self._send_json({"error": refusal.message}, refusal.status, headers)
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _read_body(self) -> bytes:
        length = int(self.headers.get("Content-Length") or 0)
        if self.failure and self.failure.cut == "request":
            self.rfile.read(length // 2)
            self._cut()
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(length)
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _cut(self):
        self.wfile.flush()
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        raise ConnectionError("cut")

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None, length=None):
        is_cut = self.failure and self.failure.cut == "response"
        if is_cut and not content:
            self._cut()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if is_cut:
            self.wfile.write(content[: len(content) // 2])
            self._cut()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send_json(self, value, status: int = 200, headers: dict[str, str] | None = None):
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    # Permissions.

    def _user(self) -> str | None:
        sent = self.headers.get("Authorization")
        if sent is None:
            return None
        if sent != f"Bearer {self.hub.token}":
            raise Refusal(401, "Invalid credentials in Authorization header")
        return USER

    def _check_writer(self, repo: str):
        user = self._user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        if repo.split("/")[0] != user:
            raise Refusal(403, f"You don't have the rights to change {repo}")

    def _find(self, kind: str, repo: str) -> Repository:
        """Finds a repository. As on the Hub, a missing or foreign private one is a 404, or a 401 without a token."""
        user = self._user()
        found = self.hub.repositories.get((kind, repo))
        if found is None or (found.private and repo.split("/")[0] != user):
            if user is None:
                raise Refusal(401, "Invalid username or password.")
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return found

    def _find_commit(self, kind: str, repo: str, revision: str | None) -> Commit:
        commit = self._find(kind, repo).at(unquote(revision or "main"))
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # The Hub's API.

    def whoami(self):
        if self._user() is None:
            raise Refusal(401, "Invalid username or password.")
        token = {"displayName": "test", "role": "write"}
        self._send_json({"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": token}})

    def create_repository(self):
        wanted = json.loads(self.body)
        repo = f"{wanted.get('organization') or self._user() or ''}/{wanted['name']}"
        self._check_writer(repo)
        kind = f"{wanted.get('type') or 'model'}s"
        url = f"{self.hub.endpoint}/{repo}" if kind == "models" else f"{self.hub.endpoint}/{kind}/{repo}"
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        with self.hub.lock:
            if (kind, repo) in self.hub.repositories:
                self._send_json({"error": "You already created this repo", "url": url}, 409)
                return
            self.hub.repositories[kind, repo] = Repository(private, wanted.get("sdk"))
        self._send_json({"url": url, "name": repo})

    def repository_info(self, kind: str, repo: str, revision: str | None = None):
        repository, commit = self._find(kind, repo), self._find_commit(kind, repo, revision)
        files = [{"rfilename": path} | _entry(path, blob) for path, blob in sorted(commit.files.items())]
        info = {"_id": "0" * 24, "id": repo, "sha": commit.sha, "private": repository.private, "siblings": files}
        card = commit.files.get("README.md")
        metadata = _front_matter(card.content.decode())[0] if card else {}
        info |= {"tags": [], "cardData": metadata or {}, "lastModified": "2026-01-01T00:00:00.000Z"}
        info |= {"disabled": False, "gated": False, "downloads": 0, "likes": 0}
        self._send_json(info | ({"sdk": repository.sdk} if kind == "spaces" else {}))

    def refs(self, kind: str, repo: str):
        repository = self._find(kind, repo)
        heads = [{"name": "main", "ref": "refs/heads/main", "targetCommit": repository.at("main").sha}]
        self._send_json({"branches": heads, "tags": [], "converts": [], "pullRequests": []})

    def tree(self, kind: str, repo: str, revision: str, path: str | None = None):
        commit = self._find_commit(kind, repo, revision)
        prefix = f"{path.strip('/')}/" if path and path.strip("/") else ""
        inside = {name: blob for name, blob in sorted(commit.files.items()) if name.startswith(prefix)}
        if prefix and not inside:
            raise Refusal(404, f"{prefix} does not exist", "EntryNotFound")
        is_recursive = self.query.get("recursive", "").lower() == "true"
        entries = [_folder_entry(name) for name in _folders(inside, prefix, is_recursive)]
        entries += [_entry(n, blob) for n, blob in inside.items() if is_recursive or "/" not in n[len(prefix) :]]
        self._send_json(entries)

    def paths_info(self, kind: str, repo: str, revision: str):
        commit = self._find_commit(kind, repo, revision)
        is_form = "urlencoded" in self.headers.get("Content-Type", "")
        wanted = parse_qs(self.body.decode())["paths"] if is_form else json.loads(self.body)["paths"]
        folders = set(_folders(commit.files, "", True))
        entries = [_entry(path, commit.files[path]) for path in wanted if path in commit.files]
        self._send_json(entries + [_folder_entry(path) for path in wanted if path in folders])

    def preupload(self, kind: str, repo: str, revision: str):
        commit = self._find_commit(kind, repo, revision)
        self._check_writer(repo)
        ignoring = commit.files.get(".gitignore")
        ignored = ignoring.content.decode().split() if ignoring else []
        answers = []
        for wanted in json.loads(self.body)["files"]:
            path, sample = wanted["path"], base64.b64decode(wanted["sample"])
            is_large = path.endswith(LARGE) or wanted["size"] > 10 * 1024 * 1024 or b"\0" in sample
            known = commit.files.get(path)
            answer = {"path": path, "uploadMode": "lfs" if is_large else "regular"}
            answer["shouldIgnore"] = any(fnmatch.fnmatch(path, pattern) for pattern in ignored)
            if known:
                answer["oid"] = known.sha256 if known.is_large else known.git_id
            answers.append(answer)
        self._send_json({"files": answers})

    def large_batch(self, repo: str, prefix: str | None = None):
        self._find((prefix or "models/").strip("/"), repo)
        self._check_writer(repo)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.large:
                href = f"{self.hub.storage}/storage/{wanted['oid']}"
                verify = f"{self.hub.endpoint}/{prefix or ''}{repo}.git/info/lfs/objects/verify"
                answer["actions"] = {"upload": {"href": href, "header": {}}, "verify": {"href": verify}}
            objects.append(answer)
        self._send_json({"transfer": "basic", "objects": objects})

    def verify_large(self, repo: str, prefix: str | None = None):
        wanted = json.loads(self.body)
        if len(self.hub.large.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refusal(404, "the upload is not there")
        self._send_json({})

    def upload_large(self, oid: str):
        self._refuse_token()
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "the upload has another checksum")
        self.hub.large[oid] = self.body
        self._send(b"")

    def make_commit(self, kind: str, repo: str, revision: str):
        repository = self._find(kind, repo)
        self._check_writer(repo)
        if revision != "main":
            raise Refusal(501, "the local Hub commits to main only")
        lines = [json.loads(line) for line in self.body.splitlines() if line]
        header, changes = lines[0]["value"], {}
        with self.hub.lock:
            current = repository.at("main")
            if header.get("parentCommit") not in (None, current.sha):
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            for line in lines[1:]:
                value = line["value"]
                changes |= self._change(line["key"], value, current)
            commit = repository.commit(header["summary"], changes)
        url = f"{self.hub.endpoint}/{'' if kind == 'models' else kind + '/'}{repo}/commit/{commit.sha}"
        self._send_json({"success": True, "commitOid": commit.sha, "commitUrl": url, "hookOutput": ""})

    def _change(self, key: str, value: dict, current: Commit) -> dict[str, Blob | None]:
        path = value["path"]
        if key == "file":
            return {path: Blob(base64.b64decode(value["content"]), False)}
        if key == "lfsFile":
            if value["oid"] not in self.hub.large:
                raise Refusal(400, f"{path} was not uploaded")
            return {path: Blob(self.hub.large[value["oid"]], True)}
        if key == "deletedFile":
            if path not in current.files:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
            return {path: None}
        if key == "deletedFolder":
            return {name: None for name in current.files if name.startswith(path.rstrip("/") + "/")}
        raise Refusal(501, f"the local Hub does not know the change {key}")

    def validate_card(self):
        """Checks a card by the Hub's rules on the type of each field: https://huggingface.co/docs/hub/model-cards"""
        metadata, problem = _front_matter(json.loads(self.body)["content"])
        errors = [problem] if problem else []
        for name, value in (metadata or {}).items():
            expected = CARD_FIELDS.get(name)
            if expected and not isinstance(value, expected):
                errors.append(f'"{name}" must be of another kind than {type(value).__name__}')
        for entry in (metadata or {}).get("model-index") or []:
            if not entry.get("name") or not isinstance(entry.get("results"), list):
                errors.append('"model-index" needs a name and a list of results')
            for result in entry.get("results") or []:
                if not result.get("task", {}).get("type"):
                    errors.append('"model-index" needs results with task.type')
                if not all("type" in metric and "value" in metric for metric in result.get("metrics") or [{}]):
                    errors.append('"model-index" needs metrics with type and value')
        warnings = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        answer = {"errors": [{"message": message} for message in errors], "warnings": warnings}
        self._send_json(answer, 400 if errors else 200)

    def resolve(self, repo: str, revision: str, path: str, prefix: str | None = None):
        commit = self._find_commit((prefix or "models/").strip("/"), repo, revision)
        blob = commit.files.get(path)
        headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if blob is None:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        if not blob.is_large:
            return self._send_content(blob.content, headers | {"ETag": f'"{blob.git_id}"'})
        headers |= {"X-Linked-Size": str(len(blob.content)), "X-Linked-Etag": f'"{blob.sha256}"'}
        headers["Location"] = f"{self.hub.storage}/storage/{blob.sha256}?name={quote(path)}"
        self._send(b"", 302, headers)

    def download_large(self, oid: str):
        self._refuse_token()
        if oid not in self.hub.large:
            raise Refusal(404, "not there")
        self._send_content(self.hub.large[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def _refuse_token(self):
        if self.headers.get("Authorization"):
            raise Refusal(400, "Only one auth mechanism allowed")  # the answer of signed addresses to a token

    def _send_content(self, content: bytes, headers: dict[str, str]):
        """Sends the whole content or the requested range."""
        headers["Content-Type"] = "application/octet-stream"
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            return self._send(content, 200, headers, len(content))
        size = len(content)
        first = int(wanted[1]) if wanted[1] else size - int(wanted[2])
        last = min(int(wanted[2]) if wanted[1] and wanted[2] else size - 1, size - 1)
        if first >= size:
            return self._send(b"", 416, {"Content-Range": f"bytes */{size}"})
        self._send(content[first : last + 1], 206, headers | {"Content-Range": f"bytes {first}-{last}/{size}"})

    def nothing(self):
        raise Refusal(404, "not there")


ROUTES = (
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create_repository),
    ("POST", r"/api/validate-yaml", _Handler.validate_card),
    ("GET", r"/api/agent-harnesses", _Handler.nothing),  # names of programs, for the clients' user agent
    ("GET", rf"/api/{REPOSITORY}", _Handler.repository_info),
    ("GET", rf"/api/{REPOSITORY}/revision/(?P<revision>.+)", _Handler.repository_info),
    ("GET", rf"/api/{REPOSITORY}/refs", _Handler.refs),
    ("GET", rf"/api/{REPOSITORY}/tree/(?P<revision>[^/]+)(?P<path>/.*)?", _Handler.tree),
    ("POST", rf"/api/{REPOSITORY}/paths-info/(?P<revision>.+)", _Handler.paths_info),
    ("POST", rf"/api/{REPOSITORY}/preupload/(?P<revision>.+)", _Handler.preupload),
    ("POST", rf"/api/{REPOSITORY}/commit/(?P<revision>.+)", _Handler.make_commit),
    ("POST", rf"{PLACE}\.git/info/lfs/objects/batch", _Handler.large_batch),
    ("POST", rf"{PLACE}\.git/info/lfs/objects/verify", _Handler.verify_large),
    ("PUT", r"/storage/(?P<oid>\w+)", _Handler.upload_large),
    ("GET HEAD", r"/storage/(?P<oid>\w+)", _Handler.download_large),
    ("GET HEAD", rf"{PLACE}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
)

CARD_FIELDS = {
    "license": str,
    "language": (str, list),
    "tags": list,
    "datasets": (str, list),
    "metrics": (str, list),
    "base_model": (str, list),
    "library_name": str,
    "pipeline_tag": str,
    "model_name": str,
    "model-index": list,
}


def _front_matter(text: str) -> tuple[dict | None, str | None]:
    """Returns the metadata of a card, and a description of its error."""
    found = re.match(r"---\s*\n(.*?)\n---\s*(?:\n|$)", text, re.DOTALL)
    if not found:
        return None, None
    try:
        metadata = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return None, f"bad YAML: {' '.join(str(error).split())}"
    return (metadata, None) if isinstance(metadata, dict) else (None, "the metadata must be a mapping")


def _entry(path: str, blob: Blob) -> dict:
    entry = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.git_id, "blobId": blob.git_id}
    if blob.is_large:
        entry["lfs"] = {"oid": blob.sha256, "sha256": blob.sha256, "size": len(blob.content), "pointerSize": 134}
    return entry


def _folder_entry(path: str) -> dict:
    return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}


def _folders(files: dict, prefix: str, is_recursive: bool) -> list[str]:
    found = set()
    for name in files:
        parts = name[len(prefix) :].split("/")[:-1]
        found |= {
            prefix + "/".join(parts[: end + 1]) for end in range(len(parts) if is_recursive else min(1, len(parts)))
        }
    return sorted(found)
