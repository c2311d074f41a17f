"""Check that a refactor gives the same bits: `write before.json`, refactor, `compare before.json`.

It trains every algorithm x factorisation x split x link x executor for two rounds at a fixed seed, and keeps a checksum
of the server's state, the clients' own states and the metrics. It uses one thread, so that the bits do not depend on
the number of cores. They do depend on the processor and on torch, so run both on one machine. `every=N` takes each N-th
case; `executor=serial` takes one executor.
"""

import hashlib
import itertools
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
os.environ |= {"OMP_NUM_THREADS": "1", "PROJECT_ROOT": str(ROOT)}
sys.path.insert(0, str(ROOT / "src"))

import torch

from fedpara.app.build import build
from fedpara.app.composition import compose
from fedpara.app.errors import ConfigurationError
from fedpara.federation import Federation
from fedpara.record import RoundRecord
from fedpara.state import State, join

GROUPS = ("algorithm", "factorization", "sharing", "link", "executor")
LEFT_OUT = {"ray", "auto"}  # the first is slow to start, the second chooses by the machine
SMALL = (
    "data=mnist_small", "model=vgg_small", "model.network.stages=[[4,8],[8]]", "model.network.hidden=[8]",
    "data.max_train=48", "data.max_test=32", "data.batch_size=8", "federation.num_clients=4", "trainer=cpu",
    "federation.clients_per_round=2", "federation.num_rounds=2", "trainer.max_epochs=1", "factors.gamma=0.5",
    "model.optimizer.lr=0.1", "federation.evaluate_personal=true", "logger=none",
)  # fmt: skip


def cases() -> Iterator[tuple[str, ...]]:
    """Every combination of one choice per group; sharing=pfedpara only with factorization=pfedpara."""
    choices = [sorted(path.stem for path in (ROOT / "configs" / group).glob("*.yaml")) for group in GROUPS]
    for case in itertools.product(*choices):
        if case[-1] not in LEFT_OUT and (case[2] != "pfedpara" or case[1] == "pfedpara"):
            yield case


def digest(case: tuple[str, ...]) -> str:
    """The checksum of a run's result; for a refused run, the refusal."""
    overrides = [f"{group}={choice}" for group, choice in zip(GROUPS, case, strict=True)]
    cfg = compose([*SMALL, *overrides])
    try:
        experiment, federation = build(cfg)
        experiment.datamodule.setup()
        experiment.executor.prepare()
        records = [federation.run_round() for _ in range(2)]
    except ConfigurationError as error:
        return f"refused: {error}"
    except ValueError as error:
        return f"refused: {error}"
    finally:
        if "federation" in locals():
            federation.close()
    return checksum(federation, records)


def checksum(federation: Federation, records: list[RoundRecord]) -> str:
    """A checksum of states and metrics, without times."""
    found = hashlib.sha256()
    kept = [*federation.personal.items(), *federation.memories.items()]
    for state in [join(federation.server), *(state for _, state in sorted(kept, key=lambda one: one[0]))]:
        found.update(_bytes(state))
    rows = [{k: v for k, v in record.as_row().items() if not k.startswith(("time/", "cost/"))} for record in records]
    found.update(json.dumps(rows, sort_keys=True).encode())
    return found.hexdigest()[:16]


def _bytes(state: State) -> bytes:
    return b"".join(
        name.encode() + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in sorted(state.items())
    )


def main(action: str, file: str, *options: str) -> int:
    """Print each case that differs; the exit status is 1 if there is one."""
    given = dict(option.split("=") for option in options)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    chosen = [case for case in cases() if given.get("executor", case[-1]) == case[-1]][:: int(given.get("every", 1))]
    before = json.loads(Path(file).read_text()) if action == "compare" else {}
    found, differing = {}, []
    for case in chosen:
        name = " ".join(case)
        found[name] = digest(case)
        if action == "compare" and before.get(name) != found[name]:
            differing.append(name)
            print(f"{name}: {before.get(name)} before, {found[name]} now", flush=True)
    if action == "write":
        Path(file).write_text(json.dumps(found, indent=1))
    refused = sum(value.startswith("refused") for value in found.values())
    print(f"{len(found)} cases ({refused} refused by a line), {len(differing)} differ")
    return bool(differing)


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("write", "compare"):
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
