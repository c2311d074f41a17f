"""Kill runs with SIGKILL at random times, resume each to its end, and compare it with an undisturbed run.

    python tools/stress/kills.py 50                      # FedAvg, SCAFFOLD, FedDyn, pFedPara + FedPAQ in turn
    python tools/stress/kills.py 50 executor=processes   # with these options for every run

Every run is a process of its own, forked from one that has done the imports. The kills hit its rounds, including their
writes. The exit status is 1 if a run differs.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from fedpara.runs import CHECKPOINT, CLIENTS, METRICS, Run
from helpers.runs import rows_without_times

RUNS = {
    "FedAvg": ["algorithm=fedavg"],
    "SCAFFOLD": ["algorithm=scaffold"],
    "FedDyn": ["algorithm=feddyn", "callbacks.checkpoint.memory_gb=0"],
    "pFedPara + FedPAQ": ["factorization=pfedpara", "sharing=pfedpara", "link=fedpaq"],
}
COMMON = [
    "model=mlp", "data.max_train=60", "data.max_test=40", "data.batch_size=16", "logger=none", "trainer.max_epochs=1",
    "federation.num_clients=5", "federation.clients_per_round=2", "federation.num_rounds=8",
]  # fmt: skip


def start(folder, arguments):
    """`src/train.py` in a process of its own, its output in `<folder>.log`; returns its id."""
    Path(f"{folder}.log").touch()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        from fedpara.app import cli

        with Path(f"{folder}.log").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.environ["PROJECT_ROOT"] = str(folder.parent)
        sys.argv = ["train.py", *arguments]
        cli.main()
        status = 0
    except SystemExit as end:
        status = end.code
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def begun(folder):
    """Wait until the first round has begun (with worker processes: has ended), or for an error."""
    metrics, num_lines = folder / METRICS, 2 if "executor=processes" in COMMON else 0
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) >= num_lines):
        if "rror" in Path(f"{folder}.log").read_text():
            return
        time.sleep(0.005)


def kill_after(seconds, folder, arguments):
    """Start a run and kill it so long after its first round has begun; returns whether it was still running."""
    child = start(folder, arguments)
    begun(folder)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return wait(child) == -signal.SIGKILL


def go_on(folder, arguments):
    """Resume to the end; a run that was killed before it saved its configuration is started anew."""
    assert wait(start(folder, [f"resume={folder}"] if Run(folder).has_config else arguments)) == 0, Path(
        f"{folder}.log"
    ).read_text()


def outcome(folder):
    """Everything that must be equal in two equal runs: every tensor, byte and row, except times."""
    from fedpara.storage import read_tensors

    state, metadata = read_tensors(folder / CHECKPOINT, {})
    return {
        "server": {name: tensor.numpy().tobytes() for name, tensor in state.items()},
        "progress": json.loads(metadata["progress"]),
        "clients": {str(p.relative_to(folder)): p.read_bytes() for p in (folder / CLIENTS).rglob("*") if p.is_file()},
        "rows": rows_without_times(folder),
        "summary": (Run(folder).state, Run(folder).summary["rounds"]),
    }


def trial(base, name, generator, whole, seconds):
    """Kill once within `seconds`; returns whether it hit, the rounds before it, and the parts that differ."""
    folder = Path(tempfile.mkdtemp(dir=base)) / "run"
    arguments = [*COMMON, *RUNS[name], f"hydra.run.dir={folder}"]
    hit = kill_after(generator.uniform(0, seconds), folder, arguments)
    rounds = len(Run(folder).rows)
    go_on(folder, arguments)
    found = outcome(folder)
    differing = [part for part in whole if found[part] != whole[part]]
    shutil.rmtree(folder.parent)
    return hit, rounds, differing


def undisturbed(base, name):
    """The outcome of a run that nothing stops, and the seconds its rounds took."""
    folder = base / "undisturbed" / name.replace(" ", "")
    folder.parent.mkdir(exist_ok=True)
    child = start(folder, [*COMMON, *RUNS[name], f"hydra.run.dir={folder}"])
    begun(folder)
    begin = time.perf_counter()
    assert wait(child) == 0, Path(f"{folder}.log").read_text()
    return outcome(folder), time.perf_counter() - begin


def main(num_kills, *options, seed=0):
    import torch

    import fedpara.callbacks
    import fedpara.models
    import fedpara.nn  # noqa: F401 (import once all that a run needs)

    torch.set_num_threads(1)  # bits depend on it; the tests use one too
    COMMON.extend(options)
    generator = random.Random(seed)
    base = Path(tempfile.mkdtemp(prefix="kills-"))
    wholes = {name: undisturbed(base, name) for name in RUNS}
    kills, failed = {name: [] for name in RUNS}, 0
    while sum(map(len, kills.values())) < num_kills:
        name = min(kills, key=lambda name: len(kills[name]))
        hit, rounds, differing = trial(base, name, generator, *wholes[name])
        failed += bool(differing)
        if differing:
            print(f"{name}: killed after {rounds} rounds, differs in {', '.join(differing)}", flush=True)
        if hit:
            kills[name].append(rounds)
    for name, rounds in kills.items():
        print(f"{name}: {len(rounds)} kills, after {', '.join(map(str, sorted(rounds)))} rounds")
    print(f"{sum(map(len, kills.values()))} kills, {failed} runs differ from the undisturbed one")
    shutil.rmtree(base)
    return failed


if __name__ == "__main__":
    sys.exit(bool(main(int(sys.argv[1]), *sys.argv[2:])))
