"""Checkpoints of a federation, and how a run goes on from one."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, validate_call
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedpara.federation import Federation, FederationCallback
from fedpara.files import write_atomically
from fedpara.record import RoundRecord
from fedpara.state import State, join, separate

FILE = "checkpoint.safetensors"


class Checkpoint(FederationCallback):
    """Writes what server and clients keep, round and bytes after every `every` rounds and the last, atomically.

    Cohorts and batch orders are functions of seed and round, so nothing else is needed to go on.

    Args:
        folder: the run folder; the file is `checkpoint.safetensors`.
        every: rounds between checkpoints.
    """

    @validate_call
    def __init__(self, folder: Path, every: Annotated[int, Field(ge=1)] = 1) -> None:
        self.path, self.every = folder / FILE, every

    def on_round_end(self, federation: Federation, record: RoundRecord) -> None:
        """Write, if the round is due."""
        if record.round % self.every == 0 or record.round == federation.num_rounds:
            tensors = _prefixed("server", join(federation.server))
            for owner, states in (("personal", federation.personal), ("memories", federation.memories)):
                for client, state in states.items():
                    tensors |= _prefixed(f"{owner}/{client}", state)
            progress = {"round": federation.round, "total_bytes": federation.total_bytes}
            write_atomically(self.path, save(tensors, {"progress": json.dumps(progress)}))


def restore(federation: Federation, folder: Path) -> None:
    """Put `federation` where the checkpoint in the run folder left it.

    Raises:
        FileNotFoundError: there is no checkpoint in `folder`.
        ValueError: the file is damaged, or is of another model.
    """
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no checkpoint there; give the folder of a run that finished a round")
    server, clients, progress = _read(path)
    expected = join(federation.server)
    if {name: tensor.shape for name, tensor in server.items()} != {n: tensor.shape for n, tensor in expected.items()}:
        raise ValueError(f"{path}: holds other parameters than this configuration's model")
    federation.server = separate(
        {name: server[name].to(tensor) for name, tensor in expected.items()}, federation.server
    )
    federation.personal, federation.memories = clients["personal"], clients["memories"]
    federation.round, federation.total_bytes = progress["round"], progress["total_bytes"]


def _prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}/{name}": tensor.contiguous() for name, tensor in state.items()}


def _read(path: Path) -> tuple[State, dict[str, dict[int, State]], dict[str, Any]]:
    """What the server keeps (joined), what the clients keep by kind and client, and the progress."""
    server: State = {}
    clients: dict[str, dict[int, State]] = {"personal": {}, "memories": {}}
    try:
        with safe_open(path, framework="pt") as file:
            progress = json.loads(file.metadata()["progress"])
            for key in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                owner, _, name = key.partition("/")
                if owner == "server":
                    server[name] = file.get_tensor(key)
                else:
                    client, _, name = name.partition("/")
                    clients[owner].setdefault(int(client), {})[name] = file.get_tensor(key)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a checkpoint of this project, or damaged ({error})") from error
    return server, clients, progress
