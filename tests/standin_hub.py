"""A local stand-in of the hub's API on 127.0.0.1: stores what is pushed to it, and serves it to ``from_pretrained``.

    python tests/standin_hub.py                  prints its address, serves until killed

Large files (``.safetensors``) go the way of LFS, as on the hub. Faults are asked for in the repository's name:
``…/refuse-…`` answers 403, ``…/break-…`` cuts the connection in the middle of each large upload, ``…/slow-…`` takes its
time for each commit.
"""

import base64
import hashlib
import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

TOKEN = "hf_standin"
REPOS: dict[str, dict[str, dict[str, bytes]]] = {}
"""Repository → branch → file → content."""
PRIVATE: dict[str, bool] = {}
LARGE: dict[str, bytes] = {}


class StandIn(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Silent."""

    def answer(self, status: int, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def may_write(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_PUT(self) -> None:
        oid = self.path.rpartition("/")[2]
        if "/broken/" in self.path:
            self.rfile.read(10)
            self.connection.close()
            return
        LARGE[oid] = self.body()
        assert hashlib.sha256(LARGE[oid]).hexdigest() == oid
        self.answer(200)

    def do_POST(self) -> None:
        data, path = self.body(), unquote(urlparse(self.path).path)
        if path == "/standin/files":
            self.answer(200, {name: {b: sorted(files) for b, files in repo.items()} for name, repo in REPOS.items()})
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif not self.may_write():
            self.answer(401, {"error": "Invalid credentials in Authorization header"})
        elif path == "/api/repos/create":
            self.create(json.loads(data))
        elif path.endswith("/info/lfs/objects/batch"):
            kind = "broken" if "/break-" in path else "whole"
            host = f"http://{self.headers['Host']}"
            objects = [
                {"oid": o["oid"], "size": o["size"], "actions": {"upload": {"href": f"{host}/put/{kind}/{o['oid']}"}}}
                for o in json.loads(data)["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": objects})
        else:
            _, _, _, owner, name, action, *rest = path.split("/")
            self.change(f"{owner}/{name}", action, "/".join(rest), data)

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if "/refuse-" in name:
            self.answer(403, {"error": "You don't have the rights to create a model under this namespace"})
        elif name in REPOS:
            self.answer(409, {"error": "exists", "url": f"http://{self.headers['Host']}/{name}"})
        else:
            REPOS[name] = {"main": {".gitattributes": b"*.safetensors filter=lfs\n"}}
            PRIVATE[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.answer(200, {"url": f"http://{self.headers['Host']}/{name}"})

    def change(self, name: str, action: str, revision: str, data: bytes) -> None:
        if action == "branch":
            if revision in REPOS[name]:
                self.answer(409, {"error": "exists"})
                return
            REPOS[name][revision] = dict(REPOS[name]["main"])
            self.answer(200, {})
        elif action == "preupload":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(data)["files"]
            ]
            self.answer(200, {"files": modes})
        elif action == "commit":
            time.sleep(0.3 if "/slow-" in name else 0)
            files = dict(REPOS[name][revision])
            for line in data.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = LARGE[value["oid"]]
                elif entry["key"] == "deletedFile":
                    del files[value["path"]]
            REPOS[name][revision] = files
            oid = commit_of(files)
            url = f"http://{self.headers['Host']}/{name}/commit/{oid}"
            self.answer(200, {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})
        else:
            self.answer(404, {"error": f"no {action}"})

    def do_GET(self) -> None:
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        if parts == ["api", "whoami-v2"]:
            self.answer(*((200, {"name": "me"}) if self.may_write() else (401, {"error": "Invalid credentials"})))
            return
        is_api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if is_api else parts[:2])
        repo = REPOS.get(name)
        if repo is None or (PRIVATE[name] and not self.may_write()):
            self.answer(401 if repo is None else 403, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return
        action, *rest = (parts[4:] if is_api else parts[2:]) or ["revision", "main"]
        revision = rest[0] if rest else "main"
        files = repo.get(revision) or next((f for f in repo.values() if commit_of(f) == revision), None)
        if files is None:
            self.answer(404, {"error": "no revision"}, X_Error_Code="RevisionNotFound")
        elif action == "resolve":
            self.serve(files, "/".join(rest[1:]))
        elif action == "tree":
            below = "/".join(rest[1:])
            self.answer(200, [tree_entry(path, data) for path, data in files.items() if path.startswith(below)])
        else:
            siblings = [{"rfilename": path} for path in files]
            self.answer(
                200, {"id": name, "sha": commit_of(files), "private": PRIVATE[name], "siblings": siblings, "tags": []}
            )

    do_HEAD = do_GET

    def serve(self, files: dict[str, bytes], path: str) -> None:
        commit = commit_of(files)
        if path not in files:
            self.answer(404, {"error": "no file"}, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            return
        etag = f'"{hashlib.sha256(files[path]).hexdigest()}"'
        self.answer(200, files[path], ETag=etag, X_Repo_Commit=commit)


def commit_of(files: dict[str, bytes]) -> str:
    """A commit's name, from its files."""
    digest = hashlib.sha1()
    for name in sorted(files):
        digest.update(name.encode() + files[name])
    return digest.hexdigest()


def tree_entry(path: str, data: bytes) -> dict[str, Any]:
    """A file in a listing."""
    return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()
