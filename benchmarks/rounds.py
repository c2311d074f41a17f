"""Seconds per round of this project's executors, a bare loop and other simulators on the same work, interleaved.

`python benchmarks/rounds.py net=tiny,cnn variants=floor,serial,flower rounds=15 out=results/benchmark/rounds.json`

Every variant is a process of its own that trains only when this one tells it to, so that one computes at a time. A
round of the floor precedes each round of a variant, and a ratio compares these two. The first round is not counted.
Before that, a proof in float64 shows that all compute the same: after two rounds the global models must be equal.
"""

import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import UTC, datetime
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from environments import python_of
from load import ForeignLoad
from ours import overrides
from pace import DESCRIPTOR
from workload import WORKLOADS

FLOOR = "floor"
PROOF = 2  # rounds; the second starts from what the first aggregated
QUIET = 0.1  # a round counts if other processes use fewer cores than this
ENOUGH = 5  # quiet rounds; if there are fewer, all rounds count
SAME = 1e-4  # relative to the distance that the floor's parameters moved; swapping two epochs gives 2e-3 or more

OURS: dict[str, list[str]] = {  # further arguments of src/train.py
    "serial": [],
    "single_batches": ["executor.whole_epochs=false"],
    "whole_epochs": ["executor.whole_epochs=true"],
    "serial_medium": ["executor.matmul_precision=medium"],
    "processes": ["executor=processes"],
    "processes_vectorized": ["executor=processes", "executor@executor.inner=vectorized", "executor.chunk=4"],
    "vectorized": ["executor=vectorized"],
    "auto": ["executor=auto"],
    "ray": ["executor=ray"],
    "ray_two_nodes": ["executor=ray"],
    "serial_checkpoint": [  # with checkpoints, which every other variant leaves out
        "callbacks.checkpoint={_target_: fedpara.callbacks.Checkpoint, folder: '${paths.output_dir}'}"
    ],
}
PROGRAMS = {"ray_two_nodes": "benchmarks/nodes.py"}  # instead of src/train.py
PEERS: dict[str, list[str]] = {  # environment, script in benchmarks/peers, its arguments
    "flower": ["flower", "flower_simulation.py", "1"],  # one actor per processor
    "flower_default": ["flower", "flower_simulation.py", "2"],  # actors of two processors each, Flower's default
    "pfl": ["pfl", "pfl_simulation.py"],
    "fedlab": ["fedlab", "fedlab_simulation.py"],
}
FLOORS = {  # script and its arguments
    FLOOR: ["floor.py"],
    "floor_1_thread": ["floor.py", "1"],
    "floor_channels_last": ["floor.py", "", "channels_last"],
    "limit": ["limit.py"],  # a bare loop for each core
}


class Variant:
    """One way to compute the workload, in a process that waits for its turn.

    Raises:
        RuntimeError: the process does not start; the message is the last line that it printed.
    """

    def __init__(self, name: str, net: str, folder: Path, threads: str) -> None:
        command = _command(name, net, folder)
        self.log = folder / f"{net}-{name}.log"
        self.start = time.perf_counter()
        self.connection, theirs = Pipe()
        environment = os.environ | {
            DESCRIPTOR: str(theirs.fileno()),
            "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("benchmarks", "benchmarks/peers", "src")),
            "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0",
        }  # fmt: skip
        if name in PEERS:
            environment["RAY_ADDRESS"] = "local"  # not the Ray of another variant
        environment.pop("OMP_NUM_THREADS", None)  # each uses its own default number of threads
        if threads:
            environment["OMP_NUM_THREADS"] = threads
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, env=environment, cwd=folder, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip
        theirs.close()
        self.about: dict[str, Any] = self._receive()

    def _receive(self) -> Any:
        try:
            while not self.connection.poll(1):
                if self.process.poll() is not None:
                    raise EOFError
            return self.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            lines = self.log.read_text().strip().splitlines() or ["nothing printed"]
            raise RuntimeError(lines[-1]) from error

    def round(self) -> tuple[float, float]:
        """Train one round; returns its seconds and the cores that other processes used meanwhile."""
        load = ForeignLoad(self.process.pid)
        start = time.perf_counter()
        self.connection.send("train")
        self.about |= self._receive()
        return time.perf_counter() - start, load.cores()

    def model(self) -> dict[str, np.ndarray]:
        """The global model."""
        self.connection.send("model")
        return self._receive()

    def end(self) -> None:
        """Let the process finish by itself; kill it if it does not."""
        try:
            self.connection.send("end")
            self.process.wait(60)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # its workers too


def _command(name: str, net: str, folder: Path) -> list[str]:
    if name in FLOORS:
        script, *arguments = FLOORS[name]
        return [sys.executable, str(ROOT / "benchmarks" / script), net, *arguments]
    if name in PEERS:
        peer, script, *arguments = PEERS[name]
        return [python_of(peer), str(ROOT / "benchmarks/peers" / script), net, *arguments]
    inner = OURS[name][:1] in (["executor=processes"], ["executor=ray"])  # whose own executor is a worker's
    given = [o.replace("executor.matmul", "executor.inner.matmul") if inner else o for o in overrides(net)]
    run = f"hydra.run.dir={folder / net / name}"
    return [sys.executable, str(ROOT / PROGRAMS.get(name, "src/train.py")), *given, *OURS[name], run]


def prove(net: str, names: list[str], folder: Path, threads: str = "") -> dict[str, float]:
    """The `difference` from the floor after `PROOF` rounds in float64, for each variant that starts."""
    differences: dict[str, float] = {}
    reference: dict[str, np.ndarray] = {}
    for name in _floor_first(names):
        try:
            variant = Variant(name, f"{net}_float64", folder, threads)
        except RuntimeError:  # it will not start in float32 either, where its error is listed
            continue
        try:
            for _ in range(PROOF):
                variant.round()
            model = variant.model()
        except RuntimeError as error:
            print(f"{net} {name} in float64: {error}", file=sys.stderr)
            continue
        finally:
            variant.end()
        reference = model if name == FLOOR else reference
        differences[name] = difference(model, reference, net)
        print(f"{net} {name}: differs from the floor by {differences[name]:.0e}", file=sys.stderr)
    return differences


def measure(net: str, names: list[str], num_rounds: int, folder: Path, threads: str = "") -> dict[str, Any]:
    """Every variant's rounds, each preceded by one of the floor; for a variant that does not start, its error."""
    results: dict[str, Any] = {}
    variants: dict[str, Variant] = {}
    try:
        for name in _floor_first(names):
            try:
                variants[name] = variant = Variant(name, net, folder, threads)
                first, _ = variant.round()
            except RuntimeError as error:
                results[name] = {"error": str(error)}
                variants.pop(name, None)
                continue
            started = time.perf_counter() - variant.start
            results[name] = variant.about | {
                "first_round_s": first, "to_first_round_s": started, "rounds": [],
            }  # fmt: skip
            print(f"{net} {name}: ready", file=sys.stderr)
        floor = variants[FLOOR]
        for number in range(num_rounds):
            for name, variant in list(variants.items()):
                try:
                    pair = [variant.round()] if variant is floor else [floor.round(), variant.round()]
                except RuntimeError as error:
                    results[name]["error"] = str(error)
                    variants.pop(name).end()
                    continue
                results[name]["rounds"].append(pair)
            print(f"{net}: {number + 1} of {num_rounds} rounds", file=sys.stderr)
    finally:
        for variant in variants.values():
            variant.end()
    return results


def _floor_first(names: list[str]) -> list[str]:
    return [FLOOR, *(name for name in names if name != FLOOR)]


def difference(model: dict[str, np.ndarray], reference: dict[str, np.ndarray], net: str) -> float:
    """Largest difference of a parameter, relative to the largest distance that the floor's parameters moved."""
    start = WORKLOADS[net].build().state_dict()
    moved = max(np.abs(reference[name] - start[name].numpy()).max() for name in reference)
    own = {name.removeprefix("network."): array for name, array in model.items()}  # pfl's module holds the network
    return float(max(np.abs(own[name] - reference[name]).max() for name in reference) / moved)


def summarise(result: dict[str, Any]) -> dict[str, Any]:
    """Medians and quartiles over the quiet rounds, or over all rounds if too few are quiet."""
    rounds = result["rounds"]
    quiet = [pair for pair in rounds if all(load < QUIET for _, load in pair)]
    counted = quiet if len(quiet) >= ENOUGH else rounds
    seconds = _quartiles([pair[-1][0] for pair in counted])
    ratios = _quartiles([pair[-1][0] / pair[0][0] for pair in counted])
    return {"seconds": seconds, "ratio": ratios, "counted": len(counted), "quiet": len(quiet), "of": len(rounds)}


def _quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


def table(net: str, results: dict[str, Any]) -> str:
    """The table in GitHub's markdown."""
    workload = WORKLOADS[net]
    parameters = sum(parameter.numel() for parameter in workload.build().parameters())
    lines = [
        f"{net}: {parameters:,} parameters, {workload.clients_per_round} clients a round, {workload.num_steps} steps "
        f"of {workload.batch_size}", "",
        "| variant | threads | s a round | quartiles | ratio to floor | quartiles | to the first round's end, s "
        "| steps | model against the floor's, float64 | rounds counted |", "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, result in results.items():
        if "error" in result:
            lines.append(f"| {name} | | did not run: {result['error'][:160]} | | | | | | | |")
            continue
        summary = result["summary"]
        (low, median, high), (ratio_low, ratio, ratio_high) = summary["seconds"], summary["ratio"]
        proof = _verdict(result.get("difference"))
        noisy = "" if summary["quiet"] >= summary["counted"] else f", only {summary['quiet']} quiet"
        lines.append(
            f"| {name} | {result['threads']} | {median:.3f} | {low:.3f} to {high:.3f} | {ratio:.2f} "
            f"| {ratio_low:.2f} to {ratio_high:.2f} | {result['to_first_round_s']:.1f} | {result['num_steps']} "
            f"| {proof} | {summary['counted']} of {summary['of']}{noisy} |"
        )
    return "\n".join(lines)


def _verdict(measured: float | None) -> str:
    if measured is None:
        return "not tried"
    return f"same, {measured:.0e}" if measured < SAME else f"**differs**, {measured:.0e}"


def machine() -> dict[str, Any]:
    """The machine, the command and the commit of the figures."""
    from fedpara.callbacks.run_folder import git_commit

    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return {
        "command": " ".join(["python", "benchmarks/rounds.py", *sys.argv[1:]]),
        "git_commit": git_commit(), "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": names[0] if names else platform.processor(), "cores": os.cpu_count(),
        "python": platform.python_version(), "platform": platform.platform(),
    }  # fmt: skip


def read_options(arguments: list[str]) -> dict[str, Any]:
    """`key=value` arguments over the defaults.

    Raises:
        ValueError: an unknown key or value; one line.
    """
    options: dict[str, Any] = {
        "net": "tiny,cnn", "variants": ",".join([*FLOORS, *OURS, *PEERS]), "rounds": "15",
        "threads": "", "proof": "yes", "out": "",
    }  # fmt: skip
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in options:
            raise ValueError(f"{key}: no such option; allowed: {', '.join(options)}")
        options[key] = value
    allowed: dict[str, list[str]] = {"net": [*WORKLOADS], "variants": [*FLOORS, *OURS, *PEERS]}
    for key, known in allowed.items():
        options[key] = options[key].split(",")
        for value in options[key]:
            if value not in known:
                raise ValueError(f"{key}={value}: must be one of {', '.join(known)}")
    for key in ("rounds", "threads"):
        if not (options[key].isdigit() and int(options[key])) and (key, options[key]) != ("threads", ""):
            raise ValueError(f"{key}={options[key]}: must be a whole number, 1 or more")
    return options | {"rounds": int(options["rounds"])}


def main(arguments: list[str]) -> None:
    """Measure, print and write the results."""
    try:
        options = read_options(arguments)
    except ValueError as error:
        sys.exit(f"error: {error}")
    report: dict[str, Any] = machine() | {"quiet_cores": QUIET, "nets": {}}
    with tempfile.TemporaryDirectory() as folder:
        for net in options["net"]:
            names, threads = options["variants"], options["threads"]
            differences = prove(net, names, Path(folder), threads) if options["proof"] == "yes" else {}
            results = measure(net, names, options["rounds"], Path(folder), threads)
            for name, result in results.items():
                if "error" not in result:
                    result |= {"summary": summarise(result), "difference": differences.get(name)}
            report["nets"][net] = results
            print(table(net, results), end="\n\n", flush=True)
    print(f"{report['processor']}, {report['cores']} cores; commit {report['git_commit']}; {report['command']}")
    if options["out"]:
        out = Path(options["out"])
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
