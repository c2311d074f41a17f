"""A federation of real processes on this machine, compared with its simulation: `python deploy/demo.py`.

    python deploy/demo.py method=pfedpara partition=dirichlet   # any experiment; out=<folder> keeps everything

It starts one SuperLink and four SuperNodes on loopback, each in its own folder, with TLS and with keys that identify
the nodes. A fifth node has an unknown key. All traffic of the nodes passes through a relay, which counts it.
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
    "OMP_NUM_THREADS": "1",  # another number of threads would add in another order, and give other bits
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05",  # seconds; 1 by default
}


class Demonstration:
    """The processes of a deployment and their folders.

    Args:
        folder: holds a folder for each process, the keys and the logs.
        overrides: the experiment's overrides.
    """

    def __init__(self, folder: Path, overrides: list[str]) -> None:
        from relay import CountingRelay

        self.folder, self.overrides = folder, overrides
        self.port = free_port()
        self.relay = CountingRelay(self.port)
        self.certificate = folder / "server.pem"

    def prepare(self) -> None:
        """Write data, keys, and the file that tells `flwr` where the SuperLink is."""
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
        """The registered names of the nodes."""
        return [f"client-{client}" for client in range(NUM_CLIENTS)]

    def superlink(self) -> list[Any]:
        """The command that starts the server's end."""
        key, cert = self.folder / "server.key", self.certificate
        tls = ["--ssl-certfile", cert, "--ssl-keyfile", key, "--ssl-ca-certfile", cert]
        safe = ["--enable-supernode-auth", "--disable-runtime-dependency-installation"]
        return ["flower-superlink", "--port", self.port, *tls, *safe]

    def supernode(self, name: str, superlink_port: int) -> list[Any]:
        """The command that starts a client's end."""
        known = ["--root-certificates", self.certificate, "--auth-supernode-private-key", self.folder / f"{name}.key"]
        own = ["--port", free_port(), "--node-config", f'folder="{self.folder / "data" / name}"']
        return ["flower-supernode", "--superlink", f"127.0.0.1:{superlink_port}", *known, *own]

    @contextmanager
    def running(self, name: str, command: list[Any]) -> Iterator[subprocess.Popen[bytes]]:
        """Run a process with its own home; its output goes to `<name>.log`."""
        typed, home = list(map(str, command)), {"FLWR_HOME": str(self.folder / f"home-{name}")}
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(typed, stdout=log, stderr=log, env=ENVIRONMENT | home, start_new_session=True)
        try:
            yield process
        finally:
            end(process)

    def call(self, name: str, command: list[Any], shown: bool = False) -> None:
        """Run a command to its end.

        Raises:
            CalledProcessError: it failed; its output is printed.
        """
        typed, home = list(map(str, command)), {"FLWR_HOME": str(self.folder / f"home-{name}")}
        output = None if shown else subprocess.PIPE
        done = subprocess.run(typed, env=ENVIRONMENT | home, stdout=output, stderr=subprocess.STDOUT)
        if done.returncode and not shown:
            print(done.stdout.decode(), file=sys.stderr)
        done.check_returncode()

    def refused(self) -> list[str]:
        """Start a node with an unregistered key; returns what it and the SuperLink write about that."""
        with self.running("unknown", self.supernode("unknown", self.port)) as process:
            process.wait(120)
        told = [line for line in self.log("unknown") if "[code" in line]
        return told + [line for line in self.log("superlink") if "activate-node" in line and " 200" not in line]

    def log(self, name: str) -> list[str]:
        """The lines that a process has written so far, without colours."""
        return re.sub(r"\x1b\[\d+m", "", (self.folder / f"{name}.log").read_text()).splitlines()

    def await_nodes(self, timeout_s: float = 120) -> None:
        """Wait until all nodes are connected."""
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
    """A port on which nothing listens at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def end(process: subprocess.Popen[bytes]) -> None:
    """Terminate a process; kill it if it does not end."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def demonstrate(folder: Path, overrides: list[str]) -> float:
    """Run the demonstration; returns the largest difference between the two runs."""
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
    """Wait until something listens on the port."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def main() -> None:
    """The command line; the exit status is 1 if the runs differ by more than 1e-4."""
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
        except subprocess.CalledProcessError as error:  # the command has printed the reason
            sys.exit(error.returncode)
    sys.exit(difference > 1e-4)


if __name__ == "__main__":
    main()
