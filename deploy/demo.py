"""A federation of real processes on this machine, beside its simulation: `python deploy/demo.py`.

    python deploy/demo.py method=pfedpara partition=dirichlet   # any experiment; out=<folder> keeps everything

One SuperLink and four SuperNodes on loopback, each in a folder of its own, with TLS and with keys by which the
SuperLink knows its nodes; a fifth node, whose key it does not know. All that nodes send and receive passes a relay.
"""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NUM_CLIENTS = 4
OVERRIDES = [
    f"federation.num_clients={NUM_CLIENTS}", f"federation.clients_per_round={NUM_CLIENTS}", "federation.num_rounds=4",
    "trainer.max_epochs=1", "trainer.accelerator=cpu", "logger=none",
]  # fmt: skip
HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",  # the processes share the machine, and a sum in another order is another sum
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05",  # seconds; 1 by default
}


class Demonstration:
    """The processes of a deployment, and where they are.

    Args:
        folder: a folder for each, their keys and logs.
        overrides: of the experiment.
    """

    def __init__(self, folder: Path, overrides: list[str]) -> None:
        from relay import CountingRelay

        self.folder, self.overrides = folder, overrides
        self.port = free_port()
        self.relay = CountingRelay(self.port)
        self.certificate = folder / "server.pem"

    def prepare(self) -> None:
        """Data, keys, and where `flwr` finds the SuperLink."""
        from keys import write_certificate, write_node_key

        write_certificate(self.folder)
        for name in (*self.names(), "unknown"):
            write_node_key(self.folder / f"{name}.key")
        self.call("split", [sys.executable, HERE / "split.py", *self.overrides, f"out={self.folder / 'data'}"])
        home = self.folder / "home-flwr"
        home.mkdir()
        link = f'address = "127.0.0.1:{self.port}"\nroot-certificates = "{self.certificate}"\n'
        (home / "config.toml").write_text(f'[superlink]\ndefault = "demo"\n\n[superlink.demo]\n{link}')

    def names(self) -> list[str]:
        """Of the nodes, as they are registered."""
        return [f"client-{client}" for client in range(NUM_CLIENTS)]

    def superlink(self) -> list[Any]:
        """The command of the server's end."""
        key, cert = self.folder / "server.key", self.certificate
        tls = ["--ssl-certfile", cert, "--ssl-keyfile", key, "--ssl-ca-certfile", cert]
        safe = ["--enable-supernode-auth", "--disable-runtime-dependency-installation"]
        return ["flower-superlink", "--port", self.port, *tls, *safe]

    def supernode(self, name: str, superlink_port: int) -> list[Any]:
        """The command of a client's end."""
        known = ["--root-certificates", self.certificate, "--auth-supernode-private-key", self.folder / f"{name}.key"]
        own = ["--port", free_port(), "--node-config", f'folder="{self.folder / "data" / name}"']
        return ["flower-supernode", "--superlink", f"127.0.0.1:{superlink_port}", *known, *own]

    @contextmanager
    def running(self, name: str, command: list[Any]) -> Iterator[subprocess.Popen[bytes]]:
        """A process with a home of its own, whose output is in `<name>.log`."""
        typed, home = list(map(str, command)), {"FLWR_HOME": str(self.folder / f"home-{name}")}
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(typed, stdout=log, stderr=log, env=ENVIRONMENT | home, start_new_session=True)
        try:
            yield process
        finally:
            end(process)

    def call(self, name: str, command: list[Any], shown: bool = False) -> None:
        """Run to the end.

        Raises:
            CalledProcessError: it failed; its output is shown.
        """
        typed, home = list(map(str, command)), {"FLWR_HOME": str(self.folder / f"home-{name}")}
        output = None if shown else subprocess.PIPE
        done = subprocess.run(typed, env=ENVIRONMENT | home, stdout=output, stderr=subprocess.STDOUT)
        if done.returncode and not shown:
            print(done.stdout.decode(), file=sys.stderr)
        done.check_returncode()

    def refused(self) -> list[str]:
        """What a node whose key is not registered is told, and what the SuperLink writes of it."""
        with self.running("unknown", self.supernode("unknown", self.port)) as process:
            process.wait(120)
        told = [line for line in self.log("unknown") if "[code" in line]
        return told + [line for line in self.log("superlink") if "activate-node" in line and " 200" not in line]

    def log(self, name: str) -> list[str]:
        """Lines that a process has written so far, without their colours."""
        return re.sub(r"\x1b\[\d+m", "", (self.folder / f"{name}.log").read_text()).splitlines()

    def await_nodes(self, timeout_s: float = 120) -> None:
        """Until all are connected."""
        end = time.monotonic() + timeout_s
        while not all(any("SuperNode ID" in line for line in self.log(name)) for name in self.names()):
            if time.monotonic() > end:
                raise TimeoutError(f"a SuperNode is not connected; see the logs in {self.folder}")
            time.sleep(0.2)

    def run(self) -> None:
        """Start the run, and show its log until it ends."""
        given = {"overrides": shlex.join(self.overrides), "data": f"{self.folder}/data/server"}
        given |= {"folder": str(self.folder / "deployed")}
        toml = self.folder / "run.toml"
        toml.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in given.items()))
        self.call("flwr", ["flwr", "run", HERE, "demo", "--run-config", toml, "--stream"], shown=True)


def free_port() -> int:
    """One that nothing listens to at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def end(process: subprocess.Popen[bytes]) -> None:
    """Politely, then not."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def demonstrate(folder: Path, overrides: list[str]) -> float:
    """All of it; the largest difference between the two runs."""
    from compare import Meter, show
    from fedpara.runs import METRICS

    demonstration = Demonstration(folder, overrides)
    demonstration.prepare()
    with ExitStack() as stack:
        stack.enter_context(demonstration.running("superlink", demonstration.superlink()))
        await_port(demonstration.port)
        for name in demonstration.names():
            key = demonstration.folder / f"{name}.key.pub"
            demonstration.call("flwr", ["flwr", "supernode", "register", key, "demo", "--name", name])
        for name in demonstration.names():
            stack.enter_context(demonstration.running(name, demonstration.supernode(name, demonstration.relay.port)))
        demonstration.await_nodes()
        print("an unknown node:", *demonstration.refused(), sep="\n  ", flush=True)
        meter = stack.enter_context(Meter(demonstration.relay, folder / "deployed" / METRICS))
        demonstration.run()
    train = [sys.executable, HERE.parent / "src" / "train.py", *overrides, f"hydra.run.dir={folder / 'simulated'}"]
    demonstration.call("simulated", train)
    return show(folder / "deployed", folder / "simulated", meter.readings)


def await_port(port: int, timeout_s: float = 60) -> None:
    """Until something listens to it."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def main() -> None:
    """Exit status 1 where the deployed run is not the simulated one at 1e-4."""
    if find_spec("flwr") is None:
        sys.stderr.write("error: deploy/ needs Flower: pip install -e '.[flower]' in an environment of its own\n")
        sys.exit(2)
    out = next((argument.partition("=")[2] for argument in sys.argv[1:] if argument.startswith("out=")), "")
    overrides = OVERRIDES + [argument for argument in sys.argv[1:] if not argument.startswith("out=")]
    with ExitStack() as stack:
        folder = Path(out or stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            difference = demonstrate(folder, overrides)
        except subprocess.CalledProcessError as error:  # which has said why
            sys.exit(error.returncode)
    sys.exit(difference > 1e-4)


if __name__ == "__main__":
    main()
