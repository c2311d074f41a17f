"""Checkpoints of a federation, and how a run goes on from one."""

from collections.abc import MutableMapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, DirectoryPath, Field, NonNegativeInt, validate_call

from fedpara.federation import Federation, FederationCallback
from fedpara.files import UnusableFile
from fedpara.record import GIGABYTE, RoundRecord
from fedpara.runs import CHECKPOINT, CLIENTS
from fedpara.state import State, join, require_same_names, separate
from fedpara.storage import ClientStates, read_tensors, write_tensors

SERVER = "server/"
Kept = Literal["personal", "memories"]
Versions = dict[NonNegativeInt, NonNegativeInt]


class Progress(BaseModel):
    """How far a run is, and which versions of its clients' states belong to that."""

    round: NonNegativeInt
    total_bytes: NonNegativeInt
    personal: Versions = Field(default_factory=dict)
    memories: Versions = Field(default_factory=dict)
    crashes: dict[NonNegativeInt, NonNegativeInt] = Field(default_factory=dict)


class Checkpoint(FederationCallback):
    """Writes what the server keeps, round and bytes at the start, after every `every` rounds and the last, atomically.

    What clients keep is in files of its own, `clients/<kind>/<client>-<version>.safetensors`, written as it changes; a
    checkpoint names the versions, and those before are deleted once it is on the disk: it costs what the round's
    clients keep, not what all do. Cohorts and batch orders are functions of seed and round: nothing else is needed.

    Args:
        folder: the run folder; the file is `checkpoint.safetensors`.
        every: rounds between checkpoints.
        memory_gb: 10^9 bytes of what clients keep that stay in memory as well, per kind; the rest is read when needed.
    """

    @validate_call
    def __init__(
        self,
        folder: DirectoryPath,
        every: Annotated[int, Field(ge=1)] = 1,
        memory_gb: Annotated[float, Field(ge=0)] = 1.0,
    ) -> None:
        self.folder, self.every, self.memory_bytes = folder, every, int(memory_gb * GIGABYTE)

    def on_fit_start(self, federation: Federation) -> None:
        """Have what clients keep in files; write a checkpoint, so that there is one whenever the run may be killed."""
        personal, memories = _required(federation)
        federation.personal = self.personal = self._in_files("personal", federation.personal, personal)
        federation.memories = self.memories = self._in_files("memories", federation.memories, memories)
        self._write(federation)

    def on_round_end(self, federation: Federation, record: RoundRecord) -> None:
        """Write, if the round is due."""
        if record.round % self.every == 0 or record.round == federation.num_rounds:
            self._write(federation)

    def _in_files(self, kind: Kept, states: MutableMapping[int, State], required: State) -> ClientStates:
        folder = self.folder / CLIENTS / kind
        if isinstance(states, ClientStates) and states.folder == folder:  # those of a run that goes on
            states.memory_bytes = self.memory_bytes
            return states
        kept = ClientStates(folder, required, self.memory_bytes)
        kept.update(states)
        return kept

    def _write(self, federation: Federation) -> None:
        clients = {"personal": self.personal.versions, "memories": self.memories.versions}
        progress = Progress(
            round=federation.round, total_bytes=federation.total_bytes, crashes=federation.crashes, **clients
        )
        for states in (self.personal, self.memories):
            states.flush()
        write_tensors(self.folder / CHECKPOINT, _on_file(federation), {"progress": progress.model_dump_json()})
        for states in (self.personal, self.memories):
            states.prune()


def restore(federation: Federation, folder: Path) -> None:
    """Put `federation` where the checkpoint in the run folder left it; what clients keep is read when needed.

    Raises:
        FileNotFoundError: there is no checkpoint in `folder`.
        UnusableFile: the checkpoint is damaged, or is of another model.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no checkpoint there; give the folder of a run that finished a round")
    expected = _on_file(federation)
    state, metadata = read_tensors(path, expected)
    try:
        require_same_names(expected, state)
        progress = Progress.model_validate_json(metadata["progress"])
    except (KeyError, ValueError) as error:
        raise UnusableFile(f"{path}: not a checkpoint of this configuration's model ({error})") from error
    server = {name.removeprefix(SERVER): state[name].to(tensor.device) for name, tensor in expected.items()}
    federation.server = separate(server, federation.server)
    personal, memories = _required(federation)
    federation.personal = ClientStates(folder / CLIENTS / "personal", personal, 0, progress.personal)
    federation.memories = ClientStates(folder / CLIENTS / "memories", memories, 0, progress.memories)
    federation.round, federation.total_bytes = progress.round, progress.total_bytes
    federation.crashes = progress.crashes


def _on_file(federation: Federation) -> State:
    return {f"{SERVER}{name}": tensor for name, tensor in join(federation.server).items()}


def _required(federation: Federation) -> tuple[State, State]:
    """What every client's personal part and memory must hold."""
    personal = federation.split.personal_part(federation.executor.initial_state())
    return personal, federation.algorithm.remembered(federation.server)
