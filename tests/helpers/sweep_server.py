"""The part of W&B's server that sweeps and workspaces need, on the loopback interface.

It answers the operations of the client's GraphQL by their names, and goes through a grid. openwandb 0.5 lacks them all
(`upsertSweep`, `project.sweep`, `createAgent`, `agentHeartbeat`, `upsertView`). Given another server, it forwards the
rest to that.
"""

import itertools
import json
import re
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

VIEWER = {
    "id": "v", "entity": "me", "username": "me", "name": "me", "email": "", "admin": False, "flags": "{}",
    "teams": {"edges": []}, "apiKeys": {"edges": []},
}  # fmt: skip
PROJECT = {"id": "p", "name": "fedpara", "entity": {"id": "e", "name": "me"}}


class SweepServer(ThreadingHTTPServer):
    """A server at `url`.

    Args:
        behind: address of a server that answers everything else; None: nothing is there.
        port: 0: any that is free.

    Attributes:
        sweeps: configurations by name.
        operations: names of the operations that were asked for, in their order.
        commands: run id to arguments, of the runs that agents were told to start.
        views: workspaces that were saved: what was sent, with `spec` read from its JSON.
    """

    def __init__(self, behind=None, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.behind, self.sweeps, self.operations, self.commands, self._left = behind, {}, [], {}, []
        self.states, self.views = [], []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def answer(self, query, given):
        """The data of an operation; None if it is none of a sweep's."""
        name = (re.search(r"(?:query|mutation)\s+(\w+)", query) or ["", ""])[1]
        self.operations.append(name)
        known = {
            "UpsertSweep": self._create, "SweepWithRuns": self._sweep, "GetSweepState": self._sweep,
            "CreateAgent": lambda given: {"createAgent": {"agent": {"id": "agent-1"}}}, "Heartbeat": self._next,
            "UpsertView2": self._save_view,
        }  # fmt: skip
        if name == "Viewer" and self.behind is None:
            return {"viewer": VIEWER}
        return known[name](given) if name in known else None

    def _create(self, given):
        config = yaml.safe_load(given["config"])
        self.sweeps["grid1"] = given["config"]
        axes = {key: own.get("values", [own.get("value")]) for key, own in config["parameters"].items()}
        self._left = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        self._program = config["program"]
        return {"upsertSweep": {"sweep": {"name": "grid1", "project": PROJECT}, "configValidationWarnings": []}}

    def _sweep(self, given):
        config = self.sweeps.get(given["sweep"])
        sweep = {"id": "s", "name": "grid1", "state": "RUNNING", "config": config, "runs": {"edges": []}}
        return {"project": {"sweep": sweep if config else None}}

    def _save_view(self, given):
        self.views.append({**given, "spec": json.loads(given["spec"])})
        return {"upsertView": {"view": {"id": f"view{len(self.views)}", "name": given["name"]}, "inserted": True}}

    def _next(self, given):
        """The next run if the agent has none, and the end after the last."""
        running = json.loads(given["runState"])
        self.states.append(running)
        commands = []
        if not running and self._left:
            values, number = self._left.pop(0), f"run{len(self.commands)}"
            self.commands[number] = values
            arguments = {key: {"value": value} for key, value in values.items()}
            commands = [{"type": "run", "run_id": number, "program": self._program, "args": arguments}]
        elif not running:
            commands = [{"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": "agent-1"}, "commands": json.dumps(commands)}}


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *words):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/graphql"):
            asked = json.loads(body)
            data = self.server.answer(asked["query"], asked.get("variables") or {})
            if data is not None:
                return self._send(200, json.dumps({"data": data}).encode())
        return self._forward(body)

    def do_GET(self):
        self._forward(None)

    do_PUT = do_POST

    def _forward(self, body):
        if self.server.behind is None:
            return self._send(400, b'{"errors": [{"message": "not known here"}]}')
        kept = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "content-length")}
        asked = urllib.request.Request(self.server.behind + self.path, body, kept, method=self.command)
        try:
            with urllib.request.urlopen(asked) as answer:
                return self._send(answer.status, answer.read(), answer.headers.get("Content-Type"))
        except urllib.error.HTTPError as error:
            return self._send(error.code, error.read())

    def _send(self, status, body, kind="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind or "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
