"""The part of the Hugging Face Hub that a push needs, on the loopback interface."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HubServer(ThreadingHTTPServer):
    """A hub at `url`, whose repositories hold what was committed.

    Attributes:
        token: the only one that it takes.
        repos: name to what it was made with.
        files: repository to the content of its files by path.
    """

    def __init__(self, token):
        super().__init__(("127.0.0.1", 0), Handler)
        self.token, self.repos, self.files = token, {}, {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *words):
        pass

    def do_GET(self):
        self._send(404, {"error": "not known here"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server, parts = self.server, self.path.strip("/").split("/")
        if self.headers.get("Authorization") != f"Bearer {server.token}":
            return self._send(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given.get('organization') or 'me'}/{given['name']}"
            server.repos[name] = given
            return self._send(200, {"url": f"{server.url}/{name}"})
        if self.path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        name = "/".join(parts[2:4])  # api/models/<user>/<name>/...
        if parts[4] == "preupload":  # no file goes to the large-file storage
            files = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            return self._send(200, {"files": modes})
        lines = [json.loads(line) for line in body.splitlines() if line]
        sent = [line["value"] for line in lines if line["key"] == "file"]
        files = {file["path"]: base64.b64decode(file["content"]) for file in sent}
        server.files.setdefault(name, {}).update(files)
        commit = {"commitUrl": f"{server.url}/{name}/commit/1", "commitOid": "1" * 40, "pullRequestUrl": None}
        return self._send(200, commit)

    def _send(self, status, answer):
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
