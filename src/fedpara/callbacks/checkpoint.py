"""Writes checkpoints of a federation, and restores them."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, DirectoryPath, Field, NonNegativeInt, validate_call

from fedpara.execution.base import Executor
from fedpara.federation import Federation, FederationCallback, MakeClients, Outcome, simulated
from fedpara.files import UnusableFile
from fedpara.privacy import PrivacyState
from fedpara.record import RoundRecord
from fedpara.runs import CHECKPOINT, CLIENTS
from fedpara.state import Parts, join, layout_of, require_same_names, separate
from fedpara.storage import read_tensors, write_tensors

SERVER, CATCH_UP = "server", "catch_up/"  # before the names of tensors: of the server's state, of `Federation.catch_up`
Versions = dict[NonNegativeInt, NonNegativeInt]


class Progress(BaseModel):
    """The progress of a run, with the matching versions of its clients' states, and with `catch_up` what they hold."""

    round: NonNegativeInt
    total_bytes: NonNegativeInt
    personal: Versions = Field(default_factory=dict)
    memories: Versions = Field(default_factory=dict)
    crashes: dict[NonNegativeInt, NonNegativeInt] = Field(default_factory=dict)
    privacy: PrivacyState | None = None
    changed: dict[str, NonNegativeInt] = Field(default_factory=dict)
    last: Versions = Field(default_factory=dict)


class Checkpoint(FederationCallback):
    """Writes the server's state, the round and the bytes: at the start, after every `every` rounds, and after the last.

    The states of clients are in files of their own, `clients/<kind>/<client>-<version>.safetensors`, which are written
    as they change. A checkpoint names their versions, and older ones are deleted once it is on the disk. So it costs as
    much as the states of one round's clients, not of all. Cohorts and batch orders follow from seed and round.

    Args:
        folder: the run folder; the file is `checkpoint.safetensors`.
        every: rounds between checkpoints.
        memory_gb: gigabytes (10^9 bytes) of clients' states per kind that stay in memory besides their files; the
            others are read when they are needed.
    """

    @validate_call
    def __init__(
        self,
        folder: DirectoryPath,
        every: Annotated[int, Field(ge=1)] = 1,
        memory_gb: Annotated[float, Field(ge=0)] = 1.0,
    ) -> None:
        self.folder, self.every, self.memory_gb = folder, every, memory_gb
        self._written = 0

    def clients(self, executor: Executor) -> MakeClients:
        """Simulated clients whose states are in this checkpoint's files, for `Federation(clients=...)`."""
        return simulated(executor, self.folder / CLIENTS, self.memory_gb)

    def require(self, federation: Federation) -> None:
        """Refuse checkpoints that lose rounds of a private run.

        Raises:
            ValueError: rounds that have been released and counted would be done again after an interruption.
        """
        if federation.privacy and self.every != 1:
            raise ValueError(f"every={self.every}: must be 1 with privacy, a round done again would be released twice")

    def on_fit_start(self, federation: Federation) -> None:
        """Write a checkpoint, so that there is one even if the run is killed in its first round.

        Raises:
            ValueError: clients keep their states in memory or in another folder, where no checkpoint can name them; or
                see `require`.
        """
        self.require(federation)
        store = federation.clients.store
        if store and store.is_used and store.folder != self.folder / CLIENTS:
            kept = store.folder or "memory"
            raise ValueError(f"clients keep their states in {kept}: take Checkpoint.clients(executor) for them")
        self.write(federation)

    def on_round_end(self, federation: Federation, record: RoundRecord) -> None:
        """Write a checkpoint if the round is due."""
        if record.round % self.every == 0 or record.round == federation.num_rounds:
            self.write(federation)

    def on_fit_end(self, federation: Federation, outcome: Outcome) -> None:
        """Write the last round of a run that was stopped before it was due."""
        if outcome == "finished" and self._written < federation.round:
            self.write(federation)

    def write(self, federation: Federation) -> None:
        """Write the checkpoint of the finished round, and delete the files of clients that only older ones name."""
        metadata = {"progress": progress_of(federation).model_dump_json(exclude_none=True)}

        tensors = join(_on_file(federation))
        if catch_up := federation.catch_up:
            tensors |= {CATCH_UP + name: tensor for name, tensor in catch_up.tensors().items()}

        def ready(temporary: Path) -> None:
            for callback in federation.callbacks:
                callback.on_checkpoint(federation, temporary)

        write_tensors(self.folder / CHECKPOINT, tensors, metadata, ready=ready)
        if federation.clients.store:
            federation.clients.store.prune()
        self._written = federation.round


def progress_of(federation: Federation) -> Progress:
    """What a checkpoint says besides the server's state; the clients' files that it names are safely on the disk."""
    store = federation.clients.store
    figures = {
        "round": federation.round, "total_bytes": federation.total_bytes, "crashes": federation.crashes,
        "privacy": federation.privacy and federation.privacy.state,
    }  # fmt: skip
    held = {"changed": catch_up.changed, "last": catch_up.last} if (catch_up := federation.catch_up) else {}
    return Progress.model_validate(figures | held | dict(store.save() if store else {}))


def restore(federation: Federation, folder: Path) -> None:
    """Set `federation`, and its clients' states, to the checkpoint in a run folder.

    Raises:
        FileNotFoundError: `folder` holds no checkpoint.
        UnusableFile: the checkpoint is damaged, or belongs to another model.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no checkpoint there; give the folder of a run that finished a round")
    layout = layout_of(join(_on_file(federation)))
    state, metadata = read_tensors(path, layout)
    try:
        kept = {name.removeprefix(CATCH_UP): state.pop(name) for name in [*state] if name.startswith(CATCH_UP)}
        require_same_names(layout, state)
        progress = Progress.model_validate_json(metadata["progress"])
        if federation.catch_up:
            federation.catch_up.resume(progress.changed, progress.last, kept)
    except (KeyError, ValueError) as error:
        raise UnusableFile(f"{path}: not a checkpoint of this configuration's model ({error})") from error
    (server,) = separate(state, [SERVER]).values()
    federation.server = separate(server, federation.server)
    if federation.clients.store:
        versions = {"personal": progress.personal, "memories": progress.memories}
        federation.clients.store.load(folder / CLIENTS, versions)
    federation.round, federation.total_bytes = progress.round, progress.total_bytes
    federation.crashes = progress.crashes
    if federation.privacy:
        federation.privacy.resume(progress.privacy, progress.round)


def _on_file(federation: Federation) -> Parts:
    return {SERVER: join(federation.server)}
